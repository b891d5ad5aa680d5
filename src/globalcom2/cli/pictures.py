"""Where `ask` gets its pictures from: files, standard input, and addresses on the web if they are allowed."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from globalcom2.cli.output import notes
from globalcom2.errors import DataError, InputError

if TYPE_CHECKING:
    from PIL import Image

STDIN = "-"
DEMO = "demo.png"
WEB_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is read of an address. Pillow hands some other formats, such as EPS, to programs of the machine."""


def split_words(words: Sequence[str]) -> tuple[list[str], str | None]:
    """The pictures and the question among the words after `ask`: the question is the last one.

    Returns:
        Both; no pictures and None where there are no words, which means the demo.

    Raises:
        InputError: No question, or none at the end.
    """
    if not words:
        return [], None
    *images, question = words
    if not images:
        raise InputError(
            f"QUESTION must be given with an image, got {question!r} alone. Put the images first and the question last, in "
            "quotes."
        )
    if not question.strip():
        raise InputError(f"question must be text, got {question!r}. Put it last, in quotes.")
    if "" in images:
        raise InputError("IMAGE must be a file, got an empty word. Is a variable of the shell empty?")
    if Path(question).is_file():
        raise InputError(
            f"QUESTION must be the last word, got the file {question!r} there. Put the question last, in quotes."
        )
    if images.count(STDIN) > 1:
        raise InputError(
            f"IMAGE {STDIN!r} must be given once, since standard input is read once, got it {images.count(STDIN)} times."
        )
    return images, question


def read_picture(name: str, allow_url: bool, most_megabytes: float) -> Image.Image:
    """One picture, RGB: a file, standard input, or an address.

    Args:
        name: The file, "-" or the address.
        allow_url: Whether addresses are fetched.
        most_megabytes: Of what standard input or an address may hold.
    """
    from globalcom2.lab.downloads import fetch, is_address  # noqa: PLC0415
    from globalcom2.lab.images import open_image, read_image  # noqa: PLC0415

    most = int(most_megabytes * 1e6)
    if name == STDIN:
        data = b"" if sys.stdin is None else sys.stdin.buffer.read(most + 1)  # None: closed by the shell, with <&-
        if len(data) > most:
            raise DataError(
                f"image must be a file of at most {most_megabytes:g} MB, got more on standard input. Raise --max-mb."
            )
        if not data:
            raise DataError(
                "image must be on standard input for '-', got nothing there. Write: globalcom2 ask - QUESTION < FILE"
            )
        return read_image(io.BytesIO(data), "standard input")
    if is_address(name) and allow_url:
        with notes.status(f"Fetching {name}"):
            data = fetch(name, most)
        return read_image(io.BytesIO(data), name, WEB_FORMATS)
    return open_image(name)
