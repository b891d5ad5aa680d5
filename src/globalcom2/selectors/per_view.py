"""For selectors that treat every view alike: thumbnail and crops in one stack, and sets of given sizes as an order."""

from __future__ import annotations

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.allocation import ranks
from globalcom2.core.ranking import Counts, Merge, Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors import whole


def stacked(views: Views) -> Tensor:
    """Scores of all views that can be kept, float (batch, kept views, tokens), the thumbnail first if there is one."""
    own = views.thumbnail_scores
    return views.scores if own is None else torch.cat([own[:, None], views.scores], 1)


def layer_scores(views: Views, method: str) -> Tensor:
    """Scores of the first further layer that a method reads, shaped as those of `stacked`.

    Raises:
        InputError: The views have none.
    """
    if views.layer_scores is None:
        raise InputError(
            f"layer_scores must be given for method {method!r}, got None. Use it with compress, or a method that reads one "
            "layer alone, such as 'fastervlm'."
        )
    layer = views.layer_scores[:, 0]
    return layer if views.thumbnail_scores is not None else layer[:, 1:]


def sizes(views: Views, counts: Counts) -> Tensor:
    """How many tokens each of these views keeps, int64 (batch, kept views)."""
    if views.thumbnail_scores is None:
        return counts.crops
    return F.pad(counts.crops, (1, 0), value=counts.thumbnail)


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
    """A ranking of all views with the same ratio for each of them.

    Args:
        views: With a batch axis.
        order: float (batch, kept views, tokens), higher first.
        retention_ratio: The ratio.
        merge: Of the kept views.
    """
    thumbnail, crops = whole.parts(views, order)
    if merge is not None and thumbnail is None:
        merge = Merge(F.pad(merge.into, (0, 0, 1, 0), value=-1), F.pad(merge.weight, (0, 0, 1, 0), value=1.0))
    return Ranking(thumbnail, crops, whole.even_ratios(views, retention_ratio), merge=merge)


def share(value: float, name: str) -> float:
    """Return an option that is a number in [0, 1].

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must be a number in [0, 1], got {value!r}.")
    return value


def positive(value: int, name: str) -> int:
    """Return an option that is a positive integer.

    Raises:
        InputError: It is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} must be a positive integer, got {value!r}.")
    return value
