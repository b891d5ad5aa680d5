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
    length, gone, longest = rest.sum(-1, keepdim=True), ~rest, tokens
    while longest:
        alive = torch.arange(longest, device=rest.device) < length
        near = _likeness(alike, left, alive)
        half = alive[:, ::2].sum(-1, keepdim=True)
        out = (length - wanted).clamp(min=0, max=step).minimum(half)
        removed = torch.zeros_like(alive)
        removed[:, ::2] = ranks(near) < out
        gone = gone.scatter(-1, left, gone.gather(-1, left) | removed)
        left = left.gather(-1, torch.where(alive & ~removed, 0, 1).argsort(dim=-1, stable=True))
        length = length - out
        longest -= min(step, (longest + 1) // 2)
        left = left[:, :longest]
    return ~gone.view(shape)


def _likeness(alike: Tensor, left: Tensor, alive: Tensor) -> Tensor:
    """Of every other token, how much it is like the one of those between that it is most like; float (views, half).

    Args:
        alike: float (views, tokens, tokens), symmetric.
        left: int64 (views, n): tokens in order, those that are alive first.
        alive: bool (views, n).

    Returns:
        -2, below every cosine, where none is between; minus infinity for tokens that are not alive.
    """
    tokens = alike.shape[-1]
    first, second = left[:, ::2], left[:, 1::2]
    near = alike.new_full(first.shape, -2.0)
    if second.shape[1]:
        # What is not alive gives way to a token that is, so that the largest value stays.
        second = torch.where(alive[:, 1::2], second, second[:, :1])
        rows = second + tokens * torch.arange(len(left), device=left.device)[:, None]
        among = alike.flatten(0, 1).index_select(0, rows.flatten()).unflatten(0, rows.shape)
        near = torch.where(alive[:, 1:2], among.amax(1).gather(-1, first), near)
    return near.masked_fill(~alive[:, ::2], -torch.inf)
