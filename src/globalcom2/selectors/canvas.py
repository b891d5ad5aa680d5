"""Where the crops' tokens lie on the image, and what of the thumbnail, or of a guide, shows the same."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.views import Views


class Canvas:
    """Where crop tokens lie on the stitched crops, and which rectangle of it is image and not padding."""

    def __init__(self, views: Views):
        (self.rows, self.cols), (self.height, self.width) = views.grid, views.token_grid  # type: ignore[misc]
        grid = views.thumbnail_grid if views.commander is None else views.commander[1]
        self.thumbnail_height, self.thumbnail_width = grid  # type: ignore[misc]
        self.device = views.scores.device
        # Kept where the caller has it: on the CPU these reductions cost no synchronisation.
        valid = views.valid if views.valid is not None else torch.ones(views.crops, views.tokens, dtype=torch.bool)
        stitched = valid.view(self.rows, self.cols, self.height, self.width).transpose(1, 2).flatten(2).flatten(0, 1)
        self.y = self._extent(stitched.any(1))
        self.x = self._extent(stitched.any(0))

    @staticmethod
    def _extent(line: Tensor) -> tuple[int, int]:
        where = line.nonzero().flatten()
        return (int(where[0]), int(where[-1]) + 1) if len(where) else (0, len(line))

    def overlaps(self) -> tuple[Tensor, Tensor]:
        """Per axis, how much of each thumbnail cell a crop's valid area covers: (rows, cells) and (cols, cells)."""
        rows = _overlap(self.rows, self.height, self.thumbnail_height, *self.y, self.device)
        cols = _overlap(self.cols, self.width, self.thumbnail_width, *self.x, self.device)
        return rows, cols

    def blocks(self) -> tuple[Tensor, Tensor]:
        """Per axis, the published code's equal blocks as 0/1 weights."""
        rows = _block(self.rows, self.thumbnail_height, self.device)
        return rows, _block(self.cols, self.thumbnail_width, self.device)

    def project(self, thumbnail_map: Tensor) -> Tensor:
        """The thumbnail's map (batch, height, width), resized to the valid area, as (batch, crops, tokens)."""
        size = (self.y[1] - self.y[0], self.x[1] - self.x[0])
        resized = F.interpolate(thumbnail_map[:, None], size, mode="bilinear", align_corners=False)[:, 0]
        canvas = resized.new_zeros(resized.shape[0], self.rows * self.height, self.cols * self.width)
        canvas[:, self.y[0] : self.y[1], self.x[0] : self.x[1]] = resized
        tiles = canvas.unflatten(2, (self.cols, self.width)).unflatten(1, (self.rows, self.height))
        projected: Tensor = tiles.transpose(2, 3).flatten(3).flatten(1, 2)
        return projected


@lru_cache(maxsize=4096)
def _overlap(crops: int, size: int, cells: int, start: int, stop: int, device: torch.device) -> Tensor:
    # The thumbnail shows the valid area, from start to stop on the canvas of crops of `size` tokens, stretched over
    # `cells` cells.
    scale = cells / (stop - start)
    edges: Tensor = ((torch.arange(crops + 1) * size).clamp(start, stop) - start).double() * scale
    cell = torch.arange(cells)
    upper = torch.minimum(edges[1:, None], cell + 1.0)
    lower = torch.maximum(edges[:-1, None], cell.double())
    covered: Tensor = (upper - lower).clamp(min=0)
    return covered.to(device)  # waits, once: other streams will read it too


@lru_cache(maxsize=4096)
def _block(crops: int, cells: int, device: torch.device) -> Tensor:
    owner = (torch.arange(cells) // max(1, cells // crops)).clamp(max=crops - 1)
    member: Tensor = F.one_hot(owner, crops).T.double()
    return member.to(device)
