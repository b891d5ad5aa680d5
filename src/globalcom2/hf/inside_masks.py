"""Attention masks of layers that read fewer tokens than the first ones. Pure tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def cut_mask(mask: Tensor, columns: Tensor, real: Tensor, rows: Tensor | None = None) -> Tensor:
    """The mask of the layers after a drop.

    Args:
        mask: (batch or 1, heads or 1, queries, keys) of the first layers: bool, True where a query sees a key, or float to
            be added.
        columns: int (batch, left): which keys are left.
        real: bool (batch, left): False on padding.
        rows: int (batch, left): which queries are left; None where all are.
    """
    mask = mask.expand(len(columns), *mask.shape[1:])
    if rows is not None:
        mask = mask.gather(2, rows[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3]))
    mask = mask.gather(3, columns[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
    hidden = ~real[:, None, None]
    mask = mask & ~hidden if mask.dtype == torch.bool else mask.masked_fill(hidden, torch.finfo(mask.dtype).min)
    return mask if rows is None else _padding_sees_all(mask, real)


def made_mask(real: Tensor, queries: int) -> Tensor:
    """A causal bool mask (batch, 1, queries, keys) for rows with padding, the queries being the last of the keys.

    Args:
        real: bool (batch, keys).
        queries: How many.
    """
    keys = real.shape[1]
    seen = torch.ones(queries, keys, dtype=torch.bool, device=real.device).tril(keys - queries) & real[:, None, None]
    return _padding_sees_all(seen, real[:, keys - queries :])


def _padding_sees_all(mask: Tensor, real: Tensor) -> Tensor:
    """No query without a key: nobody reads what padding computes, but it must be finite."""
    padding = ~real[:, None, :, None]
    return mask | padding if mask.dtype == torch.bool else mask.masked_fill(padding, 0.0)
