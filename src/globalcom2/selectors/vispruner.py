"""VisPruner: tokens that [CLS] attends to, and of the rest what is left when duplicates are taken out."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.allocation import ranks
from globalcom2.core.ranking import Counts, Ranking
from globalcom2.core.views import Views
from globalcom2.selectors import whole
from globalcom2.selectors.per_view import even_ranking, first_of, in_tiers, positive, share, sizes, stacked


def vispruner(
    views: Views, retention_ratio: float, *, important: float = 0.5, step: int = 8, counts: Counts | None = None
) -> Ranking:
    """Important tokens, and diverse ones.

    Args:
        views: Images or videos, with scores of type "attention", and features.
        retention_ratio: Fraction to keep, in (0, 1].
        important: The part of each view's tokens that is chosen by attention, in [0, 1]; at least one token.
        step: How many tokens a round of removals takes out at most.
        counts: How many tokens each view keeps.

    Returns:
        Every view's important tokens by attention, then the diverse ones. These are found in rounds: what is left of the
        other tokens is split by turns into two halves, and those of the first half that are most like one of the second
        are taken out, until the budget is met.

    Raises:
        InputError: An option out of range, or no features.

    Paper: https://arxiv.org/abs/2412.01818v2. Differs from the paper: budgets are exact, padding is neither kept nor
    compared. Attention is that of the features' layer, features are those that the language model's projector reads. In
    towers without [CLS] the mean query stands in for it. The published code has no newlines.
    """
    share(important, "important")
    positive(step, "step")
    features = whole.by_view(views, "features", "vispruner")
    scores, real = stacked(views), whole.valid_by_view(views)
    if counts is None:
        return even_ranking(views, scores, retention_ratio)
    size = sizes(views, counts)
    best = (size.double() * important + 0.5).long().clamp(min=1).minimum(size)
    chosen = first_of(real, scores) < best[..., None]
    diverse = _diverse(real & ~chosen, size - best, features, step)
    return even_ranking(views, in_tiers([chosen, diverse], [scores, scores, scores]), retention_ratio)


def _diverse(rest: Tensor, wanted: Tensor, features: Tensor, step: int) -> Tensor:
    """`wanted` (batch, views) tokens of `rest`, bool (batch, views, tokens), after rounds of removals.

    All views go through the rounds together. A round works on no more tokens than the largest view can have left by then;
    a view that has met its budget before may be cut short there, since nothing more is taken out of it.
    """
    shape, tokens = rest.shape, rest.shape[-1]
    rest, wanted = rest.flatten(0, 1), wanted.flatten()[:, None]
    alike = whole.cosines(features, features).flatten(0, 1)
    # Tokens in order of place, those that are left first.
    left = torch.where(rest, 0, 1).argsort(dim=-1, stable=True)
    length, gone = rest.sum(-1, keepdim=True), ~rest
    longest = tokens
    while longest:
        alive = torch.arange(longest, device=rest.device) < length
        first, second = left[:, ::2], left[:, 1::2]
        pairs = _at(alike, first, second).masked_fill(~alive[:, None, 1::2], -torch.inf)
        near = pairs.amax(-1) if longest > 1 else pairs.new_full(first.shape, -torch.inf)
        half = alive[:, ::2].sum(-1, keepdim=True)
        out = (length - wanted).clamp(min=0, max=step).minimum(half)
        # The lowest finite value keeps what has no partner before what is not there.
        near = near.clamp(min=torch.finfo(near.dtype).min).masked_fill(~alive[:, ::2], -torch.inf)
        removed = torch.zeros_like(alive)
        removed[:, ::2] = ranks(near) < out
        gone = gone.scatter(-1, left, gone.gather(-1, left) | removed)
        left = left.gather(-1, torch.where(alive & ~removed, 0, 1).argsort(dim=-1, stable=True))
        length = length - out
        longest -= min(step, (longest + 1) // 2)
        left = left[:, :longest]
    return ~gone.view(shape)


def _at(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (views, r, c) of (views, n, n) at rows (views, r) and columns (views, c)."""
    chosen = matrix.gather(1, rows[..., None].expand(-1, -1, matrix.shape[-1]))
    return chosen.gather(2, columns[:, None].expand(-1, rows.shape[-1], -1))
