"""Which kept token a dropped one is most like, and who joins whom."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.allocation import nth_of_its_kind
from globalcom2.selectors import whole


def nearest(vectors: Tensor, tokens: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """For each token of `tokens`, the one of `targets` with the largest cosine; of equal ones the first.

    Args:
        vectors: float (..., n, dim).
        tokens: bool (..., n).
        targets: bool (..., n).

    Returns:
        int64 (..., n), -1 for what is not in `tokens` and where there is no target; and the cosine, float32 (..., n).
    """
    near, into = whole.cosines(vectors, vectors).masked_fill(~targets[..., None, :], -torch.inf).max(-1)
    found = tokens & targets.any(-1, keepdim=True)
    return into.masked_fill(~found, -1), near


def place_in_group(group: Tensor, by: Tensor) -> Tensor:
    """For each token, how many of its group come before it by `by`, higher first; int64 (..., n).

    Args:
        group: int64 (..., n).
        by: float (..., n). Equal values go by index.
    """
    order = by.argsort(dim=-1, descending=True, stable=True)
    return torch.empty_like(order).scatter(-1, order, nth_of_its_kind(group.gather(-1, order)) - 1)
