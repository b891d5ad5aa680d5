"""Positions of a prompt's tokens: of the full prompt, of one whose gaps are closed, and of several samples in a row."""

from __future__ import annotations

import torch
from torch import Tensor


def original_positions(present: Tensor) -> Tensor:
    """Positions (batch, long) that an uncompressed call gives to a prompt; `present` is nonzero where a token is."""
    return (present.bool().long().cumsum(-1) - 1).clamp(min=0)


def begins_of_samples(positions: Tensor, real: Tensor, *, by_gaps: bool) -> Tensor:
    """Tokens that begin another sample of a packed row, bool (batch, tokens).

    A sample begins where the caller's positions start again. With `by_gaps` it begins at any gap in them, which is how
    transformers reads positions without a mask.
    """
    step = positions.diff(dim=1)
    return torch.nn.functional.pad((step != 1) if by_gaps else (step <= 0), (1, 0)) & real


def closed_positions(positions: Tensor, kept: Tensor, begins: Tensor) -> Tensor:
    """Lower each position by the tokens dropped before it in its sample. Samples after the first start at 0."""
    step = torch.arange(positions.shape[1]).expand_as(positions)
    lost = step - (kept.cumsum(1) - kept)
    first = torch.where(begins, step, 0).cummax(1).values  # of the sample that a token belongs to
    start = torch.where(first > 0, positions.gather(1, first), 0)
    return (positions - start - (lost - lost.gather(1, first))).clamp(min=0)
