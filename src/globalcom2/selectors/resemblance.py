"""Which kept token a dropped one is most like, and who joins whom."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
    first = by.argsort(dim=-1, descending=True, stable=True)
    then = group.gather(-1, first).argsort(dim=-1, stable=True)
    order = first.gather(-1, then)
    own = group.gather(-1, order)
    place = torch.arange(group.shape[-1], device=group.device).expand_as(order)
    begins = F.pad(own[..., 1:] != own[..., :-1], (1, 0), value=True)
    start = torch.where(begins, place, 0).cummax(-1).values
    return torch.empty_like(order).scatter(-1, order, place - start)
