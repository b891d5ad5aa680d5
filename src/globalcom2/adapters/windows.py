"""The layout of an image that keeps its resolution: windows of its grid of tokens play the crops, and a guide commands."""

from __future__ import annotations

from functools import lru_cache
from math import ceil

import torch

from globalcom2.adapters.tagged import Size
from globalcom2.core.layout import Layout

WINDOW = 14
"""Tokens on a side of a window, at most."""
SHRINK = 3
"""Sides of an image over sides of its guide."""


def guide_size(height: int, width: int) -> Size:
    """Height and width in tokens of the guide of an image of that many tokens."""
    return max(1, round(height / SHRINK)), max(1, round(width / SHRINK))


@lru_cache(maxsize=512)  # up to 150 KB each
def windows(height: int, width: int, guide: str = "pooled") -> Layout:
    """The layout of an image of that many tokens.

    Args:
        height: Rows of tokens.
        width: Columns of tokens.
        guide: "pooled" or "thumbnail".

    Returns:
        Windows of one size, those at the bottom and at the right padded.
    """
    tile_h, tile_w = (ceil(side / ceil(side / WINDOW)) for side in (height, width))
    rows, cols = ceil(height / tile_h), ceil(width / tile_w)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    window = y // tile_h * cols + x // tile_w
    slots = (window * tile_h * tile_w + y % tile_h * tile_w + x % tile_w).flatten()
    valid = torch.zeros(rows * cols * tile_h * tile_w, dtype=torch.bool)
    valid[slots] = True
    return Layout(
        grid=(rows, cols),
        token_grid=(tile_h, tile_w),
        valid=valid.view(rows * cols, -1),
        lines=None,
        slots=slots,
        thumbnail=False,
        guide_grid=guide_size(height, width),
        guide_pass=guide == "thumbnail",
    )
