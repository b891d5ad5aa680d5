"""DART-like: the tokens that are kept duplicate no pivot."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors import whole
from globalcom2.selectors.per_view import even_ranking, positive


def dart(views: Views, retention_ratio: float, *, pivots: int = 4, joint: bool = True) -> Ranking:
    """A few pivots, then the tokens that are least like any of them.

    Pivots are the tokens whose keys have the largest L1 norm. All others come in the order of their largest cosine to a
    pivot, the smallest first.

    Args:
        views: Images or videos, with features and keys.
        retention_ratio: Fraction to keep, in (0, 1].
        pivots: How many, at least 1. Published settings have four among the tokens of an image.
        joint: True: pivots and order are of all tokens of an image, thumbnail and crops together. False: each view has
            pivots of its own, and all keep the same ratio.

    Returns:
        One order over all tokens, or one for every view.

    Raises:
        InputError: No features or keys, or an option out of range.

    Paper: https://arxiv.org/abs/2502.11494. Differs from the paper, and is called DART-like therefore: the paper prunes
    inside the language model, behind its second layer, with pivots among the words too, while this compares features and
    keys of the vision tower (keys are means over heads). All pivots share one order, so that the budget is exact. Padding
    is never kept, and newlines are kept by this package's rules.
    """
    positive(pivots, "pivots")
    if not isinstance(joint, bool):
        raise InputError(f"joint must be True or False, got {joint!r}.")
    features = whole.by_view(views, "features", "dart")
    norms = whole.by_view(views, "keys", "dart").abs().sum(-1)
    valid = whole.valid_by_view(views)
    if joint:
        order = unlike_pivots(features.flatten(1, 2), norms.flatten(1), valid.flatten(), pivots)
        thumbnail, crops = whole.parts(views, order.unflatten(1, valid.shape))
        return Ranking(thumbnail, crops, thumbnail_competes=thumbnail is not None)
    return even_ranking(views, unlike_pivots(features, norms, valid, pivots), retention_ratio)


def unlike_pivots(tokens: Tensor, norms: Tensor, valid: Tensor, pivots: int) -> Tensor:
    """Scores (..., n) of tokens (..., n, dim): pivots first, by `norms` (..., n); what is not `valid` (..., n) last."""
    count = min(pivots, norms.shape[-1])
    norms = norms.masked_fill(~valid, -torch.inf)
    first = norms.argsort(dim=-1, descending=True, stable=True)[..., :count]
    chosen = tokens.gather(-2, first[..., None].expand(*first.shape, tokens.shape[-1]))
    # Padding is among the pivots only where all others are, too.
    likeness = whole.cosines(tokens, chosen).amax(-1)
    ahead = torch.arange(count, 0, -1, device=first.device, dtype=likeness.dtype).expand_as(first)
    return (-likeness).scatter(-1, first, 1 + ahead).masked_fill(~valid, -torch.inf)
