"""How an image's crops lie, read from pixels: in the right grid, they show together what the thumbnail shows.

For families whose processor cuts the image and does not tell the grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

# All five were chosen by hand. tests/adapters/test_grids.py measures what they lead to: no wrong grid in its pictures.
BINS = 32  # per side of a view, at most
BIN = 4  # px on a side of a bin, at least: below that, the thumbnail's resampling shows
# The right mosaic leaves little of the thumbnail unexplained, and every other one much more. Fine regular patterns
# are an exception: they vanish in the thumbnail, and what is left of them is an accident of resampling.
FIT = 0.1  # share of the thumbnail's variance that may stay unexplained
MARGIN = 4.0  # the next best error over the best one, at least
FLOOR = 1e-8  # squared difference of pixel values (around one in size) that rounding alone can make

Grid = tuple[int, int]


def match_grid(crops: Tensor, thumbnail: Tensor) -> Grid | None:
    """(rows, cols) of one image's crops, or None where pixels do not tell; see `match_grids`."""
    return match_grids([(crops, thumbnail)])[0]


def match_grids(images: Sequence[tuple[Tensor, Tensor]]) -> list[Grid | None]:
    """(rows, cols) of each image's crops, or None where pixels do not tell.

    Waits for the device once.

    Args:
        images: Crops (n, channels, height, width), row by row, and thumbnail (channels, height, width) of each image.

    Returns:
        For each image, the one grid of its n crops whose mosaic clearly fits the thumbnail best; None for blank and
        finely periodic pictures, and for crops that do not make up the thumbnail in any grid.
    """
    grids = [_factors(len(crops)) for crops, _ in images]
    if not grids:
        return []
    flat = torch.cat([_errors(*image, own) for image, own in zip(images, grids, strict=True)]).tolist()  # one host sync
    found: list[Grid | None] = []
    for own in grids:
        (spread, *errors), flat = flat[: len(own) + 1], flat[len(own) + 1 :]
        found.append(_clear_best(own, errors, spread))
    return found


def _factors(crops: int) -> list[Grid]:
    """All grids of that many crops. A processor cuts each of them for some picture."""
    return [(rows, crops // rows) for rows in range(1, crops + 1) if crops % rows == 0]


def _errors(crops: Tensor, thumbnail: Tensor, grids: list[Grid]) -> Tensor:
    """The thumbnail's variance, then the mean squared difference of each grid's mosaic to it, (1 + grids,)."""
    height, width = (_bins(side) for side in thumbnail.shape[-2:])
    small = adaptive_avg_pool2d(thumbnail.float(), (height, width))
    parts = adaptive_avg_pool2d(crops.float(), (height, width))
    values = [(small - small.mean((1, 2), keepdim=True)).square().mean()]
    for rows, cols in grids:
        # (channels, rows * height, cols * width), and means over rows x cols bins of it: the size of `small`.
        mosaic = parts.unflatten(0, (rows, cols)).permute(2, 0, 3, 1, 4)
        blocks = mosaic.reshape(-1, height, rows, width, cols).mean((2, 4))
        values.append((blocks - small).square().mean())
    return torch.stack(values)


def _bins(side: int) -> int:
    """How many bins a view's side of that many px is cut into: bins of equal size where the side allows it."""
    most = max(min(BINS, side // BIN), 1)
    return max((bins for bins in range(most // 2 + 1, most + 1) if side % bins == 0), default=most)


def _clear_best(grids: list[Grid], errors: list[float], spread: float) -> Grid | None:
    """The grid whose error is clearly the least, or None; `spread` is the thumbnail's variance."""
    if len(grids) == 1:
        return grids[0] if errors[0] <= FIT * spread + FLOOR else None
    best, second = sorted(errors)[:2]
    clear = math.isfinite(second) and best <= FIT * spread and second > max(MARGIN * best, FLOOR)
    return grids[errors.index(best)] if clear else None
