"""Opens the pictures that visitors of the page hand in: limits first, then `open_image`."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from globalcom2.errors import DataError, InputError
from globalcom2.lab.images import open_image

MEGABYTE = 1024 * 1024
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Pillow reads more, some of them through other programs; a stranger's file gets no choice of these."""
SHOWN_BY_BROWSERS = ("AVIF", "BMP", "GIF", "JPEG", "MPO", "PNG", "WEBP")
_opening = threading.Lock()  # open_image changes warning filters, which belong to the whole process


@dataclass(frozen=True)
class Limits:
    """What a visitor may hand in.

    Raises:
        InputError: A limit that lets nothing through.
    """

    upload_mb: float = 10.0
    """Largest file, in units of 1024 * 1024 bytes."""
    pixels: int = 25_000_000
    """Most pixels of a picture."""
    question: int = 500
    """Longest question, in characters."""
    minutes: float = 60.0
    """How long a picture stays on the server."""

    def __post_init__(self) -> None:
        for name in ("upload_mb", "pixels", "question", "minutes"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be positive, got {getattr(self, name)}.")

    @property
    def upload_bytes(self) -> int:
        """Largest file, in bytes."""
        return int(self.upload_mb * MEGABYTE)


def open_upload(path: str | None, limits: Limits) -> Image.Image:
    """A visitor's picture as RGB, upright.

    Args:
        path: Where the server put the picture; None if there is none.
        limits: What is let through.

    Raises:
        InputError: No picture, or one that was deleted meanwhile.
        DataError: Too large, too many pixels, a format that is not let in, or what `open_image` refuses.
    """
    _check(path, limits)
    with _opening:
        return open_image(str(path))


def picture_to_show(path: str | None, limits: Limits) -> Image.Image | None:
    """Check a picture; returns a copy that browsers can show, or None where they can show the file itself.

    Args:
        path: As in `open_upload`.
        limits: As in `open_upload`.

    Raises:
        InputError: As `open_upload` does.
        DataError: As `open_upload` does.
    """
    kind = _check(path, limits)
    with _opening:
        image = open_image(str(path))
    return None if kind in SHOWN_BY_BROWSERS else image


def _check(path: str | None, limits: Limits) -> str:
    """The file's format, once its size and pixels are known to be within the limits; nothing is decoded yet."""
    if path is None:
        raise InputError("a picture must be given, got none. Upload one, or choose an example.")
    file = Path(path)
    if not file.is_file():
        raise InputError(
            f"the picture must still be on the server, got one that was deleted: pictures stay {limits.minutes:g} minutes. "
            "Upload it again."
        )
    if file.stat().st_size > limits.upload_bytes:
        raise DataError(
            f"a picture must have at most {limits.upload_mb:g} MB, got {file.stat().st_size / MEGABYTE:.1f} MB. "
            "Shrink it first."
        )
    try:
        Image.init()
        with Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as found:
            kind, (width, height) = str(found.format), found.size
    except Image.DecompressionBombError:
        raise _too_many("more", limits) from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError):
        known = ", ".join(name for name in FORMATS if name != "MPO")
        raise DataError(
            f"a picture must be one of {known}, got {file.name!r}, which is none. Save it as PNG or JPEG."
        ) from None
    if width * height > limits.pixels:
        raise _too_many(f"{width} x {height}", limits)
    return kind


def _too_many(got: str, limits: Limits) -> DataError:
    return DataError(f"a picture must have at most {limits.pixels:,} pixels, got {got}. Shrink it first.")
