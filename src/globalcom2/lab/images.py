"""Opens picture files, and says clearly what is wrong with those that cannot be used."""

from __future__ import annotations

import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from globalcom2.errors import DataError, InputError

SHORTEST_SIDE = 2
LONGEST_ASPECT = 200
"""A longer strip is thinner than one patch after it is fitted into a grid of crops."""


def open_image(path: str | Path) -> Image.Image:
    """Read a picture as RGB.

    Raises:
        InputError: There is no such file.
        DataError: Not an image, truncated, more pixels than Pillow's limit, or a strip that no model can see.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"image must be a file, got {str(path)!r}, which is a folder or does not exist.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file).convert("RGB")
    except UnidentifiedImageError:
        raise DataError(
            f"image must be a picture that Pillow can read, got {path.name!r}, which is none. Try PNG or JPEG."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"image must have at most {Image.MAX_IMAGE_PIXELS:,} pixels, got more in {path.name!r}. "
            "Shrink it first; the model scales it to its own crops anyway."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"image must be complete, got {path.name!r}, which cannot be decoded ({error}). Save it again."
        ) from None
    check_size(*image.size)
    return image


def check_size(width: int, height: int) -> None:
    """Raise `DataError` for a picture of which a model would see nothing."""
    short, long = sorted((width, height))
    if short < SHORTEST_SIDE or long > LONGEST_ASPECT * short:
        raise DataError(
            f"image must be at least {SHORTEST_SIDE} px on each side and at most {LONGEST_ASPECT} times as long as wide, "
            f"got {width} x {height}. Crop it to the part that matters."
        )
