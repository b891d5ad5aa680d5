"""DivPrune: the tokens that are kept are as unlike each other as possible."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.selectors import whole


def divprune(views: Views, retention_ratio: float) -> Ranking:
    """Max-min diversity over all tokens of an image, thumbnail and crops together.

    The distance of two tokens is one minus the cosine of their features. The first token is the one whose nearest other
    token is farthest away; each next one is farthest from its nearest kept token. Equal distances go to the lower index.

    Args:
        views: Images or videos, with features.
        retention_ratio: Fraction to keep, in (0, 1].

    Returns:
        One order over all tokens. Memory grows with the square of an image's tokens, and time with the tokens that are
        kept times all tokens.

    Raises:
        InputError: No features.

    Paper: https://arxiv.org/abs/2503.02175. Differs from the paper: it compares the vision tower's features, not those
    behind the projector; padding is never kept; newlines are kept by this package's rules.
    """
    features = whole.by_view(views, "features", "divprune")
    valid = whole.valid_by_view(views)
    order = max_min(features.flatten(1, 2), valid.flatten(), whole.most_kept(views, retention_ratio))
    thumbnail, crops = whole.parts(views, order.unflatten(1, valid.shape))
    return Ranking(thumbnail, crops, thumbnail_competes=thumbnail is not None)


def max_min(tokens: Tensor, valid: Tensor, count: int) -> Tensor:
    """Scores (batch, n) whose `count` highest are the greedy choice among tokens (batch, n, dim), in its order.

    Behind them stands what is farthest from the chosen ones; tokens that are not `valid`, bool (n,), come last.
    """
    distances = whole.cosines(tokens, tokens).neg_().add_(1).masked_fill_(~valid, torch.inf)  # in place: it is large
    distances.diagonal(dim1=-2, dim2=-1).fill_(torch.inf)
    scores = torch.zeros_like(distances[..., 0])
    left = valid.expand_as(scores).clone()
    nearest = distances.amin(-1)
    for step in range(count):
        pick = nearest.masked_fill(~left, -torch.inf).argmax(-1, keepdim=True)
        scores.scatter_(-1, pick, count - step)
        left.scatter_(-1, pick, False)
        to_pick = distances.gather(1, pick[..., None].expand(-1, -1, len(valid)))[:, 0]
        nearest = to_pick if step == 0 else torch.minimum(nearest, to_pick)
    # Distances are at most 2.
    rest = (nearest.clamp(max=2.0) - 3.0).masked_fill(~valid, -torch.inf)
    return torch.where(left | ~valid, rest, scores)
