"""Opens image files and turns every kind of Pillow image into RGB; says clearly what cannot be used."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from globalcom2.errors import DataError, InputError

SHORTEST_SIDE = 2
LONGEST_ASPECT = 200
"""A longer strip is thinner than one patch after it is fitted into a grid of crops."""
DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
"""Grey with more than 8 bits. Pillow's own conversion cuts every value above 255 off."""
CURE = (
    "Scale the values to 0 to 255 yourself, as only you know what is black and what is white: "
    "Image.fromarray(((a - a.min()) / (a.max() - a.min()) * 255).astype('uint8')) of the array a."
)


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as RGB, turned upright by its EXIF orientation.

    Deep greys and transparency become what `to_rgb` makes of them.

    Args:
        path: A file in any format that Pillow reads.

    Raises:
        InputError: There is no such file, or it is an address on the web.
        DataError: Not an image, truncated, more pixels than Pillow's limit, values that have no range of their own, or
            a strip that no model can see.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(path)):
        raise InputError(
            f"image must be a file on this machine, got the address {str(path)!r}. Download it first, for example with "
            f"curl -o image.jpg {str(path)!r}, and pass image.jpg; `globalcom2 ask` fetches it with --allow-url."
        )
    path = Path(path)
    if not path.is_file():
        raise InputError(f"image must be a file, got {str(path)!r}, which is a folder or does not exist.")
    # A file object, since Pillow garbles some turned TIFF files that it opens by name and maps into memory.
    with path.open("rb") as file:
        return read_image(file, path.name)


def read_image(file: BinaryIO, name: str, formats: Sequence[str] | None = None) -> Image.Image:
    """Read an image from an open file as `open_image` does.

    Args:
        file: What can be read and sought, in binary mode: a file, or `io.BytesIO`.
        name: What errors call the image.
        formats: Pillow's names of those to be tried, as far as this Pillow knows them; None tries all.

    Raises:
        DataError: As in `open_image`.
    """
    if formats is not None:
        Image.init()
        formats = [known for known in formats if known in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=formats) as found:
                image = ImageOps.exif_transpose(found)
    except UnidentifiedImageError:
        raise DataError(
            f"image must be a picture that Pillow can read, got {name!r}, which is none. Try PNG or JPEG."
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise DataError(
            f"image must have at most {Image.MAX_IMAGE_PIXELS:,} pixels, got more in {name!r}. "
            "Shrink it first; the model scales it to its own crops anyway."
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"image must be complete, got {name!r}, which cannot be decoded ({error}). Save it again."
        ) from None
    check_size(*image.size)
    return to_rgb(image, f"image {name!r}")


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """An 8-bit RGB copy of an image in any of Pillow's modes.

    - Grey with more than 8 bits is scaled. Modes I;16* span the full 16-bit range, so that 65535 is white. Mode I stays
      as it is where all values are within 0 to 255, and spans 16 bits where all are within 0 to 65535. Mode F is
      multiplied by 255 where all values are within 0 to 1, and stays where all are within 0 to 255.
    - Transparency (an alpha channel, a palette with alpha or one transparent colour) is laid on white.
    - Every other mode is converted by Pillow.

    Args:
        image: The image, which is not changed.
        name: What the error message calls the image.

    Raises:
        InputError: No image of Pillow's.
        DataError: Mode I or F with values outside of these ranges, or mode F with NaN or infinity.
    """
    if not isinstance(image, Image.Image):
        raise InputError(
            f"{name} must be a PIL.Image.Image, got {type(image).__name__}. open_image(path) opens a file, and "
            "Image.fromarray(array) takes an array."
        )
    if image.mode in DEEP_MODES:
        return _from_deep_grey(image, name)
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # Pillow converts it to LA alone
        image = image.convert("LA")
    above = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")


def _from_deep_grey(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    grey = _eight_bits(values, image.mode, name)
    transparent = image.info.get("transparency")  # a grey value, in 16-bit PNG
    if isinstance(transparent, int):
        grey = np.where(values == transparent, 255, grey)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _eight_bits(values: NDArray, mode: str, name: str) -> NDArray:
    """Deep grey values scaled to 0 to 255 and rounded."""
    if not np.isfinite(values).all():
        raise DataError(f"{name} must hold finite values, got NaN or infinity in mode {mode}. Replace them first.")
    low, high = (values.min(), values.max()) if values.size else (0, 0)
    if mode == "F":
        if low < 0 or high > 255:
            raise DataError(
                f"{name} must hold values within 0 to 1 or 0 to 255 in mode F, got {low:g} to {high:g}. {CURE}"
            )
        return np.rint(values * (255.0 if high <= 1 else 1.0))
    if low < 0 or high > 65535:
        raise DataError(f"{name} must hold values within 0 to 65535 in mode {mode}, got {low} to {high}. {CURE}")
    if mode == "I" and high <= 255:
        return values
    return np.rint(values / 257)


def check_size(width: int, height: int) -> None:
    """Raise `DataError` for an image of `width` x `height` px that cannot be opened, or of which a model would see nothing."""
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise DataError(
            f"image must have at most {Image.MAX_IMAGE_PIXELS:,} pixels, got {width} x {height}. Shrink it first; the model "
            "scales it to its own crops anyway."
        )
    short, long = sorted((width, height))
    if short < SHORTEST_SIDE or long > LONGEST_ASPECT * short:
        raise DataError(
            f"image must be at least {SHORTEST_SIDE} px on each side and at most {LONGEST_ASPECT} times as long as wide, "
            f"got {width} x {height}. Crop it to the part that matters."
        )
