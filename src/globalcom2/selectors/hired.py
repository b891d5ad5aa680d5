"""HiRED: the thumbnail's early attention shares the budget out, late attention selects."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.allocation import apportion, keep_best, ranks
from globalcom2.core.ranking import Counts, Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors.canvas import Canvas
from globalcom2.selectors.per_view import layer_scores, share


def hired(views: Views, retention_ratio: float, *, alpha: float = 0.5, counts: Counts | None = None) -> Ranking:
    """Budgets by where the thumbnail looks early, tokens by where each view looks late.

    Args:
        views: Images with a thumbnail, with scores of type "attention" and one further layer in `layer_scores`.
        retention_ratio: Fraction to keep, in (0, 1].
        alpha: The thumbnail's part of the whole budget, in [0, 1]; of N tokens it keeps N at most. The crops share what is
            left by how many of the thumbnail's best (1 - `alpha`) * N tokens of the early layer lie in their region.
        counts: How many tokens the whole image keeps.

    Returns:
        One order over thumbnail and crops.

    Raises:
        InputError: `alpha` out of range, no thumbnail, or no further layer.

    Paper: https://arxiv.org/abs/2408.10945. Differs from the paper: budgets are exact, so what a full crop cannot take
    goes to the others, and what rounding leaves over goes to the largest remainders; padding is never kept; heads are
    averaged, not summed, which orders tokens alike; a thumbnail cell on a border between crops counts for each by the part
    that lies in it. The early layer is the first one, the late one that of the features. What
    its code does with newlines was not found out.
    """
    share(alpha, "alpha")
    if views.thumbnail_scores is None:
        raise InputError(
            "thumbnail_scores must be given for method 'hired', got None: there is no thumbnail to share the budget out, as with "
            "images that keep their resolution and with videos. Use 'fastervlm' there."
        )
    early = layer_scores(views, "hired")[:, 0]
    own, crops = views.thumbnail_tokens, views.valid_count
    if counts is None:
        kept = early.new_full((len(early),), max(1, int(retention_ratio * (own + crops))), dtype=torch.int64)
    else:
        kept = counts.crops[:, 0]
    thumbnail, shares = budgets(views, early, kept, alpha)
    order = _by_share(views.thumbnail_scores, thumbnail)
    if not views.crops:
        return Ranking(order, views.scores.double(), thumbnail_competes=True)
    late = views.scores.masked_fill(~views.valid_mask, -torch.inf)
    return Ranking(order, _by_share(late, shares), thumbnail_competes=True)


def budgets(views: Views, early: Tensor, kept: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Tokens of the thumbnail, int64 (batch,), and of each crop, int64 (batch, crops).

    Args:
        views: With a batch axis.
        early: The thumbnail's early attention, float (batch, tokens).
        kept: Tokens of the whole image, int64 (batch,).
        alpha: See `hired`.
    """
    own, room = views.thumbnail_tokens, views.valid_count
    thumbnail = (alpha * kept.double() + 1e-9).long().clamp(max=own).maximum(kept - room).minimum(kept)
    valid = views.valid_mask.sum(-1)
    if room == 0:
        return thumbnail, valid.expand(len(early), -1)
    best = keep_best(early, int((1 - alpha) * own + 1e-9)).double().unflatten(-1, views.thumbnail_grid)  # type: ignore[arg-type]
    rows, cols = Canvas(views).overlaps()
    held = (rows @ best @ cols.T).flatten(1)
    return thumbnail, apportion(kept - thumbnail, held, torch.zeros_like(held).long(), valid)


def _by_share(scores: Tensor, counts: Tensor) -> Tensor:
    """An order across views, float64 (..., tokens), in which the best `counts` (...) of each view are those above -1."""
    place, counts = ranks(scores).double() + 0.5, counts[..., None].double()
    return torch.where(counts > 0, -place / counts.clamp(min=1), -place - scores.shape[-1])
