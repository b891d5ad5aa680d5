"""How an image's views become its run of placeholders, and how many of these it keeps. Follows from its size alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from globalcom2.core.newlines import image_budget


@dataclass(frozen=True, eq=False)
class Layout:
    """How one image's views become its run of placeholders. Follows from the image's size, so it is cached and shared.

    Tensors live on the CPU; `slots` is copied to the features' device when it is used.
    """

    grid: tuple[int, int]
    """(rows, cols) of the crops; (0, 0) for an image without crops."""
    token_grid: tuple[int, int]
    """(height, width) of a crop's tokens; the thumbnail's too unless `thumbnail_grid` says otherwise."""
    valid: Tensor
    """bool (crops, tokens)."""
    lines: Tensor | None
    """int (crops, tokens), see `Views.lines`."""
    slots: Tensor
    """int (placeholders,): what stands in each place of the image's run, as a position in [thumbnail | crops |
    newlines] laid end to end, whatever their order in the run; -1 for a newline that ends no token and is always
    dropped (strips of under one token's width)."""
    known_grid: bool = True
    """False where nothing tells how the crops lie: `grid` is (1, crops) then, and all crops get the same ratio."""
    thumbnail_grid: tuple[int, int] = ()  # type: ignore[assignment]
    """(height, width) of the thumbnail's tokens. Default: `token_grid`."""
    thumbnail: bool = True
    """False where there is none to read: for a video, whose pooled clip guides, and for an image with a guide."""
    guide_grid: tuple[int, int] | None = None
    """(height, width) of the guide, which commands and is not read; None for an image without one."""
    guide_pass: bool = False
    """Whether the tower reads the guide as a picture of its own. Else it is made from the image's own scores."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "thumbnail_grid", self.thumbnail_grid or self.token_grid)

    @property
    def views(self) -> int:
        """Thumbnail and crops, each a pass of the tower of its own; windows of an image share one."""
        return self.thumbnail + self.grid[0] * self.grid[1]

    @property
    def tokens(self) -> int:
        """Tokens per crop."""
        return self.token_grid[0] * self.token_grid[1]

    @property
    def thumbnail_tokens(self) -> int:
        """Tokens of the thumbnail, where there is one to keep."""
        return self.thumbnail_grid[0] * self.thumbnail_grid[1] if self.thumbnail else 0

    @property
    def tower_tokens(self) -> int:
        """Tokens that the tower makes of an image: of all views together, padding included; of a guide of its own, too."""
        if self.guide_grid is not None:
            return len(self.slots) + (self.guide_grid[0] * self.guide_grid[1] if self.guide_pass else 0)
        crops = self.grid[0] * self.grid[1]
        return (self.views - crops) * self.thumbnail_tokens + crops * self.tokens

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in tokens of the stitched crops, padding left out."""
        (rows, cols), (height, width) = self.grid, self.token_grid
        stitched = self.valid.view(rows, cols, height, width).transpose(1, 2).reshape(rows * height, cols * width)
        return int(stitched.any(1).sum()), int(stitched.any(0).sum())

    @property
    def line_count(self) -> int:
        """Newlines of lines that hold tokens."""
        return count_lines(self.lines)


@lru_cache(maxsize=4096)
def unpacked(
    grid: tuple[int, int],
    token_grid: tuple[int, int],
    *,
    thumbnail_last: bool,
    known_grid: bool = True,
    thumbnail_grid: tuple[int, int] | None = None,
) -> Layout:
    """The layout of whole views one after another, crops row by row, without newlines and padding."""
    crops, tokens = grid[0] * grid[1], token_grid[0] * token_grid[1]
    thumbnail_grid = thumbnail_grid or token_grid
    thumbnail = thumbnail_grid[0] * thumbnail_grid[1]
    places = torch.arange(thumbnail + crops * tokens)
    return Layout(
        grid=grid,
        token_grid=token_grid,
        valid=torch.ones(crops, tokens, dtype=torch.bool),
        lines=None,
        slots=places.roll(-thumbnail) if thumbnail_last else places,
        known_grid=known_grid,
        thumbnail_grid=thumbnail_grid,
    )


def count_lines(lines: Tensor | None) -> int:
    """Lines of the stitched crops that end with a newline, from the line of each token (-1 on padding)."""
    return 0 if lines is None or lines.numel() == 0 else int(lines.max()) + 1


def kept_places(
    layout: Layout, retention_ratio: float, newlines: str = "counted", thumbnail_weight: float = 1.0
) -> int:
    """Visual tokens that an image of this layout keeps, newlines included: known before the tower runs."""
    if retention_ratio == 1.0:
        return len(layout.slots)
    valid, lines = int(layout.valid.sum()), layout.line_count
    budget = image_budget(retention_ratio, layout.thumbnail_tokens, valid, lines, newlines, thumbnail_weight)
    return budget.total + (lines if newlines == "all" else 0)
