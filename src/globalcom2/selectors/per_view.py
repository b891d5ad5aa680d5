"""For selectors that treat every view alike: thumbnail and crops in one stack, and sets of given sizes as an order."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from globalcom2.core.allocation import ranks
from globalcom2.core.ranking import Counts, Merge, Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError


def stacked(views: Views) -> tuple[Tensor, Tensor]:
    """Scores of all views, float (batch, 1 + crops, tokens), and which tokens are real, bool (1 + crops, tokens).

    The first view is the thumbnail. Where there is none to keep, its scores are zero.
    """
    own = views.thumbnail_scores
    first = views.scores.new_zeros(len(views.scores), views.tokens) if own is None else own
    real = torch.ones_like(views.valid_mask[:1]) if views.crops else first.new_ones(1, views.tokens, dtype=torch.bool)
    return torch.cat([first[:, None].to(views.scores.dtype), views.scores], 1), torch.cat([real, views.valid_mask])


def sizes(views: Views, counts: Counts) -> Tensor:
    """How many tokens each view keeps, int64 (batch, 1 + crops), thumbnail first."""
    own = torch.full_like(counts.crops[:, :1], counts.thumbnail) if views.crops else None
    if own is None:
        own = torch.full((len(views.scores), 1), counts.thumbnail, device=views.scores.device)
    return torch.cat([own, counts.crops], 1)


def first_of(wanted: Tensor, by: Tensor) -> Tensor:
    """Ranks (..., tokens) by `by`, float (..., tokens), of the tokens in `wanted`, bool; all others come after them.

    Equal values go by index.
    """
    return ranks(by.masked_fill(~wanted, -torch.inf))


def in_tiers(tiers: list[Tensor], by: list[Tensor]) -> Tensor:
    """One order, float64 (..., tokens), higher first: tokens of the first tier, then of the second, and so on.

    Args:
        tiers: bool (..., tokens) each. A token counts in the first one that has it; tokens of none come last, by the last
            of `by`.
        by: float (..., tokens) each: the order within the tier.
    """
    tokens = tiers[0].shape[-1]
    order = -ranks(by[-1]).double() - len(tiers) * tokens
    for number in range(len(tiers) - 1, -1, -1):
        order = torch.where(tiers[number], -ranks(by[number]).double() - number * tokens, order)
    return order


def even_ranking(views: Views, order: Tensor, retention_ratio: float, merge: Merge | None = None) -> Ranking:
    """A ranking of all views by `order`, float (batch, 1 + crops, tokens), with the same ratio for each of them."""
    ratios = torch.full(views.scores.shape[:-1], retention_ratio, dtype=torch.float64, device=views.scores.device)
    return Ranking(None if views.thumbnail_scores is None else order[:, 0], order[:, 1:], ratios, merge=merge)


def given(views: Views, name: str, method: str) -> Tensor:
    """The tensor of `views` that a method cannot do without.

    Raises:
        InputError: It is None.
    """
    tensor: Tensor | None = getattr(views, name)
    if tensor is None:
        raise InputError(
            f"{name} must be given for method {method!r}, got None. Use it with compress, or pass {name} to Views."
        )
    return tensor


def share(value: float, name: str) -> float:
    """Return an option that is a number in [0, 1].

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must be a number in [0, 1], got {value!r}.")
    return value


def whole(value: int, name: str) -> int:
    """Return an option that is a positive integer.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}.")
    return value
