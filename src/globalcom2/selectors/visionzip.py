"""VisionZip: tokens that [CLS] attends to, and averages of what is left around evenly spaced ones."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.ranking import Counts, Merge, Ranking
from globalcom2.core.views import Views
from globalcom2.selectors import whole
from globalcom2.selectors.per_view import even_ranking, first_of, in_tiers, share, sizes, stacked
from globalcom2.selectors.resemblance import nearest

PAPER_SHARE = 10 / 64


def visionzip(
    views: Views, retention_ratio: float, *, contextual: float = PAPER_SHARE, counts: Counts | None = None
) -> Ranking:
    """Dominant tokens, and contextual ones that take in all others.

    Args:
        views: Images or videos, with scores of type "attention", and keys.
        retention_ratio: Fraction to keep, in (0, 1].
        contextual: The part of each view's tokens that are contextual, in [0, 1]: at least one of two or more, unless it is
            0. The default is the paper's 10 of 64.
        counts: How many tokens each view keeps.

    Returns:
        Every view's dominant tokens by attention, then targets at even steps through the rest. Every other token joins the
        target with the most similar key; the mean of those that join is added to the target's feature.

    Raises:
        InputError: `contextual` out of range, or no keys.

    Paper: https://arxiv.org/abs/2412.04467. Differs from the paper: budgets are exact, padding is neither kept nor merged,
    and [CLS] itself is not kept. Attention and keys are those of the features' layer. In towers without [CLS] the mean
    query stands in for it. The published code has no newlines.
    """
    share(contextual, "contextual")
    keys = whole.by_view(views, "keys", "visionzip")
    scores, real = stacked(views), whole.valid_by_view(views)
    if counts is None:
        return even_ranking(views, scores, retention_ratio)
    size = sizes(views, counts)
    # Half a token rounds up, on every device alike.
    targets = (size.double() * contextual + 0.5).long()
    targets = targets.clamp(min=1 if contextual else 0).minimum((size - 1).clamp(min=0)) if contextual < 1 else size
    dominant = first_of(real, scores) < (size - targets)[..., None]
    target = _evenly(real & ~dominant, targets)
    order = in_tiers([dominant, target], [scores, scores, scores])
    return even_ranking(views, order, retention_ratio, _merge(real & ~dominant & ~target, target, keys))


def _evenly(rest: Tensor, count: Tensor) -> Tensor:
    """`count` (...) of the tokens in `rest`, bool (..., tokens), at even steps from the first one on."""
    place = rest.cumsum(-1) - 1
    step = (rest.sum(-1) // count.clamp(min=1)).clamp(min=1)[..., None]
    return rest & (place % step == 0) & (place // step < count[..., None])


def _merge(dropped: Tensor, target: Tensor, keys: Tensor) -> Merge:
    into, _ = nearest(keys, dropped, target)
    joined = torch.zeros(into.shape, dtype=torch.float32, device=into.device)
    joined = joined.scatter_add(-1, into.clamp(min=0), (into >= 0).float())
    mean = 1 / joined.gather(-1, into.clamp(min=0)).clamp(min=1)
    return Merge(into, torch.where(into >= 0, mean, 1.0))
