"""The views of an image as 8-bit pictures: cut out of the image itself, or made of what the vision tower saw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from globalcom2.core.layout import Layout

LONGEST_SIDE = 1344
"""Pixels along the longer side of the crops together."""
VIEW_SIDE = 448
"""Pixels along the longer side of the thumbnail."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """What each view of an image shows."""

    thumbnail: Image.Image | None
    """RGB: what the thumbnail shows, or the guide in its place; None of a video, which has neither."""
    crops: tuple[Image.Image, ...]
    """RGB, all of one size, row by row."""

    @classmethod
    def of_image(cls, image: Image.Image, layout: Layout) -> Pictures | None:
        """The image cut as `layout` says, with its padding in black.

        Args:
            image: RGB.
            layout: The image's layout.

        Returns:
            None where nothing tells how the crops lie, or for a video.
        """
        if not layout.known_grid or not (layout.thumbnail or layout.guide_grid):
            return None
        height, width = layout.guide_grid or layout.thumbnail_grid
        thumbnail = image.resize(fitted(width, height, VIEW_SIDE), Image.Resampling.BICUBIC)
        (rows, cols), (height, width) = layout.grid, layout.token_grid
        if not rows:
            return cls(thumbnail, ())
        side = max(1, LONGEST_SIDE // max(rows * height, cols * width))  # of a token
        side = min(side, max(1, 2 * VIEW_SIDE // max(height, width)))
        valid = stitched(layout.valid.numpy().reshape(-1, height, width), layout.grid)
        ys, xs = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
        canvas = Image.new("RGB", (cols * width * side, rows * height * side))
        if len(ys):  # of a very long and narrow image, no token of the crops may be more than padding
            box = [int(n) * side for n in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)]
            canvas.paste(image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC), (box[0], box[1]))
        w, h = width * side, height * side
        places = [(col * w, row * h) for row in range(rows) for col in range(cols)]
        return cls(thumbnail, tuple(canvas.crop((x, y, x + w, y + h)) for x, y in places))

    @classmethod
    def of_views(cls, views: NDArray, layout: Layout) -> Pictures:
        """What the vision tower saw. Its normalization is undone by the least and the greatest value of the image.

        Args:
            views: float (views, 3, height, width), the thumbnail first if there is one.
            layout: The image's layout.
        """
        shown = [Image.fromarray(view) for view in eight_bits(views).transpose(0, 2, 3, 1)]
        return cls(shown[0], tuple(shown[1:])) if layout.thumbnail else cls(None, tuple(shown))

    @classmethod
    def of_picture(cls, picture: NDArray, layout: Layout) -> Pictures | None:
        """What the vision tower saw of an image that keeps its resolution, float (3, height, width), cut into windows."""
        return cls.of_image(Image.fromarray(eight_bits(picture).transpose(1, 2, 0)), layout)

    def sheet(self, grid: tuple[int, int]) -> Image.Image:
        """All crops on one picture of at most `LONGEST_SIDE` px, row by row, in (rows, cols) of places."""
        (rows, cols), (width, height) = grid, self.crops[0].size
        sheet = Image.new("RGB", (cols * width, rows * height))
        for number, crop in enumerate(self.crops):
            row, col = divmod(number, cols)
            sheet.paste(crop, (col * width, row * height))
        # Every crop keeps a whole number of pixels, since the sheet is cut into crops again.
        scale = min(1.0, LONGEST_SIDE / max(sheet.size))
        size = (cols * max(1, int(width * scale)), rows * max(1, int(height * scale)))
        return sheet if size == sheet.size else sheet.resize(size, Image.Resampling.LANCZOS)


def eight_bits(values: NDArray) -> NDArray:
    """Normalised pixels as uint8: the least value is black, the greatest white."""
    low, high = float(values.min()), float(values.max())
    scaled: NDArray = np.rint((values - low) / max(high - low, 1e-12) * 255).astype(np.uint8)
    return scaled


def fitted(width: int, height: int, side: int) -> tuple[int, int]:
    """Size in px of a view of `width` x `height` tokens, `side` px along the longer one, whole px per token if it fits."""
    token = max(1, side // max(width, height))
    return width * token, height * token


def stitched(values: NDArray, grid: tuple[int, int]) -> NDArray:
    """Values of crops (rows * cols, height, width) laid side by side: (rows * height, cols * width)."""
    rows, cols = grid
    height, width = values.shape[1:]
    return values.reshape(rows, cols, height, width).transpose(0, 2, 1, 3).reshape(rows * height, cols * width)
