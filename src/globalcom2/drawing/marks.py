"""How kept and dropped tokens are told apart, in every drawing: colours, the heat map's scale, and outlines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

KEPT = "#00d5ff"
"""Line around kept tokens."""
HALO = "#06283d"
"""Darker line under it, so that it shows on white too."""
DROPPED = "#5b6b86"
"""Veil over dropped tokens."""
VEIL = 0.66
"""How much of it there is."""
HATCH = "#c3cee0"
"""Lines across dropped tokens."""

HEAT = (
    (0, 0, 4), (27, 12, 65), (74, 12, 107), (120, 28, 109), (165, 44, 96), (207, 68, 70), (237, 105, 37), (251, 155, 6),
    (247, 209, 61), (252, 255, 164),
)  # fmt: skip
"""Colours of the heat map from the lowest score to the highest: ten places of matplotlib's inferno."""

Line = tuple[int, int, int, int]
"""x, y of the start and x, y of the end, in tokens."""


def heat(scores: NDArray, low: float, high: float) -> NDArray:
    """Scores (height, width) as colours, uint8 (height, width, 3), from `low` to `high`; NaN, in padding, is the lowest."""
    share: NDArray = np.clip((np.nan_to_num(scores, nan=low) - low) / max(high - low, 1e-12), 0, 1) * (len(HEAT) - 1)
    stops = np.arange(len(HEAT))
    channels = [np.interp(share, stops, [color[channel] for color in HEAT]) for channel in range(3)]
    colors: NDArray = np.rint(np.stack(channels, -1)).astype(np.uint8)
    return colors


def runs(mask: NDArray) -> Iterator[tuple[int, int, int]]:
    """Stretches of True in each row of a mask (height, width), as (y, first x, x after the last)."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    for y, row in enumerate(edges):
        yield from (
            (y, int(a), int(b)) for a, b in zip(np.flatnonzero(row == 1), np.flatnonzero(row == -1), strict=True)
        )


def outline(mask: NDArray) -> list[Line]:
    """Lines along the border of every connected region of True in a mask (height, width)."""
    padded = np.pad(mask, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # (height + 1, width): a border above each row
    down = padded[1:-1, 1:] != padded[1:-1, :-1]  # (height, width + 1): a border left of each column
    lines = [(a, y, b, y) for y, a, b in runs(across)]
    return lines + [(x, a, x, b) for x, a, b in runs(down.T)]
