"""PruMerge+: outliers of [CLS] attention and evenly spread tokens, averaged with what is like them."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.ranking import Counts, Merge, Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors import whole
from globalcom2.selectors.per_view import even_ranking, first_of, in_tiers, positive, sizes, stacked
from globalcom2.selectors.resemblance import nearest, place_in_group


def prumerge(views: Views, retention_ratio: float, *, neighbours: int = 32, counts: Counts | None = None) -> Ranking:
    """Tokens whose attention is an outlier, others at even distances, and all others merged into these.

    Args:
        views: Images or videos, with scores of type "attention" or "received", and keys.
        retention_ratio: Fraction to keep, in (0, 1].
        neighbours: How many dropped tokens a kept one takes in at most, those with the most similar keys.
        counts: How many tokens each view keeps.

    Returns:
        Every view's outliers by attention, above the third quartile by 1.5 interquartile ranges, then tokens at even
        distances through the rest. Every other token joins the kept one with the most similar key; the kept one's feature
        becomes the mean of its group, weighted by attention.

    Raises:
        InputError: `neighbours` out of range, no keys, or scores that cannot be weights.

    Paper: https://arxiv.org/abs/2403.15388, the variant with evenly spread tokens. Differs from the paper: the count is
    the budget's and not the outliers', so that half of the budget at most, and one token at least, goes to outliers; a
    dropped token joins one kept token, where the paper's may count for several; padding is neither kept nor merged. Attention
    and keys are those of the features' layer. In towers without [CLS] the mean query stands in for it. The published code is
    for models without newlines.
    """
    positive(neighbours, "neighbours")
    keys = whole.by_view(views, "keys", "prumerge")
    if views.score_type not in ("attention", "received"):
        raise InputError(
            f"score_type must be 'attention' or 'received' for method 'prumerge', whose means are weighted by it, got "
            f"{views.score_type!r}. Leave score out."
        )
    scores, real = stacked(views), whole.valid_by_view(views)
    if counts is None:
        return even_ranking(views, scores, retention_ratio)
    size = sizes(views, counts)
    best = (outliers(scores, real).minimum((size + 1) // 2)).clamp(min=1).minimum(size)
    chosen = first_of(real, scores) < best[..., None]
    spread = _spread(real & ~chosen, size - best)
    order = in_tiers([chosen, spread], [scores, scores, scores])
    merge = _merge(real & ~chosen & ~spread, chosen | spread, keys, scores, neighbours)
    return even_ranking(views, order, retention_ratio, merge)


def outliers(scores: Tensor, real: Tensor) -> Tensor:
    """How many real tokens lie above the third quartile by more than 1.5 interquartile ranges, int64 (...).

    Args:
        scores: float (..., tokens).
        real: bool (..., tokens); quartiles are interpolated linearly between these.
    """
    ordered = scores.double().masked_fill(~real, torch.inf).sort(-1).values
    last = (real.sum(-1, keepdim=True) - 1).clamp(min=0)
    low, high = (_at(ordered, last.double() * part) for part in (0.25, 0.75))
    return (real & (scores > high + 1.5 * (high - low))).sum(-1)


def _at(ordered: Tensor, place: Tensor) -> Tensor:
    """Values of sorted ones at places between two of them, float (..., 1)."""
    place = place.expand(*ordered.shape[:-1], 1)
    below, above = place.floor().long(), place.ceil().long()
    lower, upper = ordered.gather(-1, below), ordered.gather(-1, above)
    return torch.lerp(lower, upper, place - below)


def _spread(rest: Tensor, count: Tensor) -> Tensor:
    """`count` (...) of the tokens in `rest`, bool (..., tokens), at even distances: numbers floor(i * len / count)."""
    place, length, count = rest.cumsum(-1) - 1, rest.sum(-1, keepdim=True), count[..., None]
    number = (place * count + length - 1) // length.clamp(min=1)
    return rest & (number < count) & (number * length // count.clamp(min=1) == place)


def _merge(dropped: Tensor, kept: Tensor, keys: Tensor, scores: Tensor, neighbours: int) -> Merge:
    into, near = nearest(keys, dropped, kept)
    into = into.masked_fill(place_in_group(into, near) >= neighbours, -1)
    place = torch.arange(into.shape[-1], device=into.device).expand_as(into)
    group = torch.where(into >= 0, into, place)
    # Half precision cannot sum up a view's attention; a view whose attention is all zero has plain means.
    attention = scores.float().clamp(min=torch.finfo(torch.float32).tiny)
    total = torch.zeros_like(attention).scatter_add(-1, group, attention)
    return Merge(into, attention / total.gather(-1, group))
