"""Rows of attention maps, from queries and keys: that of [CLS], that of the mean query, and attention received."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def attention_row(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    cls_index: int | None,
    softmax: bool,
    mean: bool = False,
) -> Tensor:
    """One row of an attention map, averaged over heads.

    Args:
        query: (views, heads, sequence, head_dim), as the kernel sees it.
        key: The same; may have fewer heads (grouped queries).
        mask: None, a 4-D mask (additive or bool), or 1 where a key is real, (views, sequence).
        scaling: Factor on the products; None means head_dim ** -0.5.
        cls_index: Where [CLS] stands, if anywhere: the row, unless `mean`.
        softmax: True for attention probabilities, False for the logits before the softmax.
        mean: Take the mean query of all tokens but [CLS] and padding. Its logits are the mean of theirs, for the price
            of one row.

    Returns:
        float32 (views, sequence).
    """
    line = _key_mask(mask)
    if mean or cls_index is None:
        counts = _shown(line, query)
        if cls_index is not None:
            counts[:, :, cls_index] = 0
        row = (query * counts).sum(2, keepdim=True) / counts.sum(2, keepdim=True)
    else:
        row = query[:, :, cls_index][:, :, None]
    logits = _logits(row, key, line, scaling)[:, :, 0]
    return (logits.softmax(-1) if softmax else logits).mean(1)


ROWS = 128  # queries at a time: a chunk of the map, never the whole


def received_attention(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """How much attention every token receives, averaged over heads and queries but padding; sums to one in each view.

    Args:
        query: (views, heads, sequence, head_dim), as the kernel sees it.
        key: The same; may have fewer heads (grouped queries).
        mask: None, a 4-D mask (additive or bool), or 1 where a key is real, (views, sequence).
        scaling: Factor on the products; None means head_dim ** -0.5.

    Returns:
        float32 (views, sequence).
    """
    received = torch.zeros(key.shape[0], key.shape[2], device=key.device)
    line = _key_mask(mask)
    counts = _shown(line, query)
    for first in range(0, query.shape[2], ROWS):
        rows = slice(first, first + ROWS)
        received += (_logits(query[:, :, rows], key, line, scaling).softmax(-1) * counts[:, :, rows]).sum(2).mean(1)
    return received / counts.sum((1, 2, 3))[:, None]


def _key_mask(mask: Any) -> Tensor | None:
    """Which keys are padding, (views, 1, 1, sequence), additive or bool: vision towers show all queries the same ones."""
    if not isinstance(mask, Tensor):
        return None
    return mask[:, :1, :1] if mask.ndim == 4 else mask.bool()[:, None, None]  # flash kernels get (views, sequence)


def _shown(line: Tensor | None, query: Tensor) -> Tensor:
    """1 for queries of real tokens and 0 for padding, float (views, 1, sequence, 1)."""
    if line is None:
        return query.new_ones(query.shape[0], 1, query.shape[2], 1, dtype=torch.float32)
    shown = line if line.dtype == torch.bool else line == 0
    return shown.mT.float().expand(query.shape[0], -1, -1, -1).clone()


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """float32 (views, heads, queries, sequence)."""
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query.float() * scale) @ key.float().mT
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
