"""HiPrune: tokens of objects by a middle layer, their neighbours, and tokens of the whole by a deep layer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.ranking import Counts, Ranking
from globalcom2.core.views import Views
from globalcom2.selectors import whole
from globalcom2.selectors.per_view import even_ranking, first_of, in_tiers, layer_scores, share, sizes, stacked


def hiprune(views: Views, retention_ratio: float, *, alpha: float = 0.1, counts: Counts | None = None) -> Ranking:
    """Anchor tokens, buffer tokens beside them, and register tokens.

    Args:
        views: Images or videos, with scores of type "received" and one further layer in `layer_scores`.
        retention_ratio: Fraction to keep, in (0, 1].
        alpha: The part of each view's tokens that is meant for anchors and buffers, in [0, 1]. An anchor has four
            neighbours, so a fifth of that part are anchors, rounded down.
        counts: How many tokens each view keeps.

    Returns:
        Every view's anchors, which get most attention in the middle layer; then buffers, the neighbours of anchors above,
        below, left and right; then registers, which get most attention in the deep layer.

    Raises:
        InputError: `alpha` out of range, or no further layer.

    Paper: https://arxiv.org/abs/2508.00553. Differs from the paper: budgets are exact and every view has its own; padding is
    never kept and no buffer. The middle layer is the tower's fifth, which is one of the middle layers both of CLIP ViT-L,
    where the paper takes the ninth of 24, and of the mini model. Another one:
    `method=dataclasses.replace(get_method("hiprune"), layers=(8,))`. The deep layer is that of the features. How its code
    rounds, and what it does with newlines, was not found out.
    """
    share(alpha, "alpha")
    layer = layer_scores(views, "hiprune")
    deep, real = stacked(views), whole.valid_by_view(views)
    if counts is None:
        return even_ranking(views, deep, retention_ratio)
    middle = layer.to(deep.dtype)
    number = (sizes(views, counts).double() * alpha / 5 + 1e-9).long()
    anchor = first_of(real, middle) < number[..., None]
    buffer = _beside(anchor, views.token_grid) & real  # type: ignore[arg-type]
    return even_ranking(views, in_tiers([anchor, buffer], [middle, middle, deep]), retention_ratio)


def _beside(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens above, below, left and right of those in `tokens`, bool (..., tokens), within their view."""
    padded = F.pad(tokens.unflatten(-1, grid), (1, 1, 1, 1))
    around = padded[..., :-2, 1:-1] | padded[..., 2:, 1:-1] | padded[..., 1:-1, :-2] | padded[..., 1:-1, 2:]
    flat: Tensor = around.flatten(-2)
    return flat
