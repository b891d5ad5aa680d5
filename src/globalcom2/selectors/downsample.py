"""The floor of those who doubt selection: every view is made smaller, as if the picture had been."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from globalcom2.core.ranking import Counts, Merge, Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors.whole import even_ratios


def downsample(views: Views, retention_ratio: float, *, counts: Counts | None = None) -> Ranking:
    """Average pooling of each view into as many cells as its budget pays for.

    A view's rows are cut into bands of equal height, and each band into cells of equal width, as square as they come out.
    Bands may differ by one cell, so that any number of cells is exact. The token nearest to a cell's centre is kept, and
    its feature becomes the mean of the cell's.

    Args:
        views: Images or videos whose views have one token grid.
        retention_ratio: Fraction to keep, in (0, 1].
        counts: Tokens of every view; None: those of an equal share.

    Returns:
        Kept tokens first, equal ratios, and the means as a merge.

    Raises:
        InputError: A thumbnail with a token grid of its own.

    Source: a floor; see https://arxiv.org/abs/2510.07143 (plain down-sampling beats many published methods there).
    Padding is neither kept nor part of a mean. Where newlines count, a few more tokens may be kept than the cells that
    were planned for, or fewer; one more is a token of its cell, which keeps its own feature.
    """
    if views.thumbnail_grid != views.token_grid:
        raise InputError(
            "method must be another than 'downsample' where the thumbnail has a token grid of its own, got "
            f"{views.thumbnail_grid} and {views.token_grid} for crops. Use one that reads scores alone."
        )
    batch, device = len(views.scores), views.scores.device
    shown = views.valid_mask
    per_crop = (retention_ratio * shown.sum(-1)).round().long().clamp(min=1).expand(batch, -1)
    own = max(1, round(retention_ratio * views.thumbnail_tokens))
    if counts is not None:
        own, per_crop = counts.thumbnail, counts.crops
    grid: tuple[int, int] = views.token_grid  # type: ignore[assignment]
    crops = _pooled(per_crop, shown, grid)
    whole = torch.ones(1, views.tokens, dtype=torch.bool, device=device)
    first = _pooled(torch.full((batch, 1), own, device=device), whole, grid)
    merge = Merge(torch.cat([first.into, crops.into], 1), torch.cat([first.weight, crops.weight], 1))
    thumbnail = None if views.thumbnail_scores is None else first.kept[:, 0]
    return Ranking(thumbnail, crops.kept, even_ratios(views, retention_ratio), merge=merge)


class _Pooled(NamedTuple):
    """Of tokens (batch, views, tokens)."""

    kept: Tensor
    """float: 1 for the token nearest to a cell's centre, 0 for all others."""
    into: Tensor
    """int64: that token, for all others of its cell; -1 for itself and for padding."""
    weight: Tensor
    """float: one over the number of tokens of the cell."""


def _pooled(counts: Tensor, valid: Tensor, grid: tuple[int, int]) -> _Pooled:
    """Cells of views: `counts` int (batch, views) of them among the tokens that are `valid`, bool (views, tokens)."""
    tokens = valid.shape[-1]
    shown = valid.unflatten(-1, grid)
    rows, cols = shown.any(-1), shown.any(-2)
    cell = _cells(counts, rows, cols)
    cell = cell.masked_fill(~valid, tokens)  # a cell of its own, behind all others

    place = torch.arange(tokens, device=valid.device).expand_as(cell)
    row, col = place // grid[1], place % grid[1]
    twice = _off_centre(row, cell).square() + _off_centre(col, cell).square()
    key = twice * tokens + place  # the lower index of equally near ones
    nearest = _of_cell(key, cell, "amin")
    kept = (key == nearest) & valid & (counts > 0)[..., None]
    size = torch.zeros_like(cell.new_zeros(*cell.shape[:-1], tokens + 1)).scatter_add(-1, cell, torch.ones_like(cell))
    into = torch.where(kept | ~valid | (counts == 0)[..., None], -1, nearest % tokens)
    weight = torch.where(into.ge(0) | kept, 1.0 / size.gather(-1, cell), 1.0)
    return _Pooled(kept.float(), into, weight)


def _cells(counts: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """The cell of every token, int64 (batch, views, tokens), from bool masks (views, height) and (views, width)."""
    height, width = rows.sum(-1), cols.sum(-1)
    count = counts.clamp(min=1)
    square = (count * height / width.clamp(min=1)).sqrt().round().long()
    least = (count + width - 1) // width.clamp(min=1)
    bands = torch.maximum(square, least).minimum(height).minimum(count).clamp(min=1)[..., None]
    row, col = rows.cumsum(-1) - rows.long(), cols.cumsum(-1) - cols.long()
    band = row * bands // height.clamp(min=1)[:, None]  # (batch, views, height)
    count = count[..., None]
    start = band * count // bands
    in_band = (band + 1) * count // bands - start
    across = col[:, None] * in_band[..., None] // width.clamp(min=1)[:, None, None]
    cells: Tensor = (start[..., None] + across).flatten(-2)
    return cells


def _off_centre(coordinate: Tensor, cell: Tensor) -> Tensor:
    """Twice the distance of a coordinate to the middle of its cell."""
    return 2 * coordinate - _of_cell(coordinate, cell, "amin") - _of_cell(coordinate, cell, "amax")


def _of_cell(values: Tensor, cell: Tensor, how: str) -> Tensor:
    """The smallest or largest value of every token's cell."""
    found = values.new_zeros(*cell.shape[:-1], cell.shape[-1] + 1)
    return found.scatter_reduce(-1, cell, values, how, include_self=False).gather(-1, cell)
