"""Evaluation sets: images with questions and answers from a parquet file, one row per question.

The format is that of Hugging Face datasets, so that `datasets.load_dataset("parquet", ...)` reads the file too.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from globalcom2.errors import InputError, unknown_name
from globalcom2.lab.images import to_rgb
from globalcom2.mini import EVALUATION_SET, NATIVE_QUESTIONS

OWN_SETS: dict[str, tuple[Path, Path | None]] = {
    "mini": (EVALUATION_SET, None),
    "mini-native": (NATIVE_QUESTIONS, EVALUATION_SET),
}
"""Sets that ship with the package: a file with questions, and the file with their pictures where that is another one."""
COLUMNS = ("picture", "image", "kind", "question", "answer")
ORIENTATION = 0x0112
"""EXIF tag; from 5 on, width and height are exchanged."""


@dataclass(frozen=True)
class Question:
    """What is asked and the only right answer, in lower case."""

    kind: str
    text: str
    answer: str


@dataclass(frozen=True)
class Example:
    """One image of a set with its questions."""

    number: int
    """The image's number in the set, from the column `picture`."""
    encoded: bytes
    """The image file; decoded when it is needed."""
    questions: tuple[Question, ...]

    @property
    def image(self) -> Image.Image:
        """The image as RGB, upright. Raises `DataError` where `to_rgb` does."""
        return to_rgb(ImageOps.exif_transpose(self._opened()), f"image of example {self.number}")

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in px of the upright image, without decoding."""
        image = self._opened()
        width, height = image.size
        exchanged = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) >= 5  # Pillow turns TIFF itself
        return (height, width) if exchanged else (width, height)

    def _opened(self) -> Image.Image:
        return Image.open(io.BytesIO(self.encoded))


def own_examples(name: str, first: int | None = None) -> list[Example]:
    """Read a set that ships with the package.

    Args:
        name: "mini", or "mini-native": the same pictures with the same questions, and where tags are.
        first: Read only that many images, from the first on.

    Raises:
        InputError: Another name, or pyarrow is missing.
    """
    if name not in OWN_SETS:
        raise unknown_name("the evaluation set", name, OWN_SETS)
    path, pictures = OWN_SETS[name]
    return load_examples(path, first, pictures)


def load_examples(path: Path, first: int | None = None, pictures: Path | None = None) -> list[Example]:
    """Read an evaluation set.

    Args:
        path: Parquet file with the columns picture (int), image (struct of bytes and path), kind, question, answer.
        first: Read only that many images, from the first on.
        pictures: Another file, with the columns picture and image. Then `path` needs no column image.

    Raises:
        InputError: No such file, another format, or pyarrow is missing.
    """
    columns = COLUMNS if pictures is None else tuple(name for name in COLUMNS if name != "image")
    table = _read(path, columns)
    shown = table if pictures is None else _read(pictures, ("picture", "image"))
    encoded: dict[int, bytes] = {}
    for number, image in zip(shown["picture"], shown["image"], strict=True):
        encoded.setdefault(number, image["bytes"])
    questions: dict[int, list[Question]] = {}
    for number, *asked in zip(*(table[name] for name in ("picture", "kind", "question", "answer")), strict=True):
        questions.setdefault(number, []).append(Question(*asked))
    missing = set(questions) - set(encoded)
    if missing:
        raise InputError(
            f"{str(pictures)!r} must have the pictures that are asked about, got no picture {min(missing)}."
        )
    return [Example(number, encoded[number], tuple(questions[number])) for number in list(questions)[:first]]


def _read(path: Path, columns: tuple[str, ...]) -> dict[str, list[Any]]:
    """A parquet file's columns as lists."""
    try:
        from pyarrow import parquet  # noqa: PLC0415
        from pyarrow.lib import ArrowInvalid  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "pyarrow must be installed to read an evaluation set, got none. Run: pip install pyarrow"
        ) from None
    if not path.is_file():
        raise InputError(f"the evaluation set must be a parquet file, got {str(path)!r}, which is not there.")
    try:
        table = parquet.read_table(path, columns=list(columns)).to_pydict()
    except (ArrowInvalid, KeyError) as error:
        raise InputError(
            f"the evaluation set must be a parquet file with the columns {', '.join(columns)}, got {str(path)!r}: {error}."
        ) from None
    if set(table) != set(columns):
        missing = ", ".join(sorted(set(columns) - set(table)))
        raise InputError(f"the evaluation set must have the columns {', '.join(columns)}, got none named {missing}.")
    return dict(table)


def fingerprint(examples: list[Example]) -> str:
    """Short hash of what is shown and asked."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(example.encoded)
        digest.update(repr(example.questions).encode())
    return digest.hexdigest()[:16]
