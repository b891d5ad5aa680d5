"""SCOPE: the tokens that are kept are salient, and there is one like every token that is dropped."""

from __future__ import annotations

from numbers import Real

import torch
from torch import Tensor

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors import whole
from globalcom2.selectors.per_view import even_ranking, stacked

# Tokens that cover nothing new come in the order of their saliency; far below any gain that counts.
NOTHING = 1e-6
# On a CPU, as many rows of the similarity matrix at a time as stay in its cache.
ROWS = 128


def scope(views: Views, retention_ratio: float, *, joint: bool = True, alpha: float = 1.0) -> Ranking:
    """Greedy coverage, weighted by saliency.

    A token is covered as well as the kept token that is most like it: by their cosine, and not below 0. Each step keeps
    the token with the largest saliency ** alpha * (what it adds to the coverage of all tokens).

    Args:
        views: Images or videos, with features.
        retention_ratio: Fraction to keep, in (0, 1].
        joint: True: over all tokens of an image at once, thumbnail and crops together. False: each view by itself, and
            all keep the same ratio.
        alpha: Weight of saliency, a number that is not negative; 0 is coverage alone.

    Returns:
        One order over all tokens, or one for every view. Time grows with the tokens that are kept times the square of
        all tokens of an image, or of a view. Memory grows with that square.

    Raises:
        InputError: No features, or an option out of range.

    Paper: https://arxiv.org/abs/2510.24214. Differs from the paper: it compares the vision tower's features; the saliency
    of scores that are not attention is their softmax over a view; padding is neither kept nor covered; newlines are kept
    by this package's rules. With `joint=False`, tokens beyond an equal share come in the order of the last step.
    """
    if not isinstance(joint, bool):
        raise InputError(f"joint must be True or False, got {joint!r}.")
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0.0 <= alpha < float("inf"):
        raise InputError(f"alpha must be a number of at least 0, got {alpha!r}.")
    features = whole.by_view(views, "features", "scope")
    valid = whole.valid_by_view(views)
    saliency = _saliency(views, valid).to(features.dtype) ** alpha
    most = whole.most_kept(views, retention_ratio)
    if joint:
        order = coverage(features.flatten(1, 2), saliency.flatten(1), valid.flatten(), most).unflatten(1, valid.shape)
        thumbnail, crops = whole.parts(views, order)
        return Ranking(thumbnail, crops, thumbnail_competes=thumbnail is not None)
    each = min(views.tokens, 1 + most * views.tokens // max(1, int(views.valid_count)))
    return even_ranking(views, coverage(features, saliency, valid, each), retention_ratio)


def _saliency(views: Views, valid: Tensor) -> Tensor:
    """Attention of every token, not negative, float (batch, kept views, tokens)."""
    scores = stacked(views).masked_fill(~valid, 0.0 if views.score_type in ("attention", "received") else -torch.inf)
    if views.score_type in ("attention", "received"):
        return scores.clamp(min=0.0)
    # A view of padding alone would be NaN.
    return scores.float().softmax(-1).nan_to_num(nan=0.0)


def coverage(tokens: Tensor, saliency: Tensor, valid: Tensor, count: int) -> Tensor:
    """Scores (..., n) whose `count` highest are the greedy choice, in its order; what is not valid comes last.

    Args:
        tokens: float (..., n, dim).
        saliency: float (..., n), not negative.
        valid: bool (..., n).
        count: At least 1.
    """
    alike = whole.cosines(tokens, tokens).masked_fill_(~valid[..., None, :], 0)
    covered = torch.zeros_like(saliency)
    scores = torch.zeros_like(saliency)
    left = valid.expand_as(saliency).clone()
    worth = saliency
    for step in range(count):
        worth = saliency * (_gains(alike, covered) + NOTHING)
        pick = worth.masked_fill(~left, -torch.inf).argmax(-1, keepdim=True)
        # A view with fewer valid tokens is through before the others.
        some = left.any(-1, keepdim=True)
        scores.scatter_add_(-1, pick, (count - step) * some.to(scores.dtype))
        left.scatter_(-1, pick, False)
        row = alike.gather(-2, pick[..., None].expand(*pick.shape, alike.shape[-1]))[..., 0, :]
        covered = torch.maximum(covered, row)
    rest = (worth / (1 + worth) - 1).masked_fill(~valid, -torch.inf)
    return torch.where(left | ~valid, rest, scores)


def _gains(alike: Tensor, covered: Tensor) -> Tensor:
    """What each token would add to the coverage of all tokens, (..., n)."""
    rows = alike.split(ROWS, -2) if alike.device.type == "cpu" else (alike,)
    more, gains = torch.empty_like(rows[0]), []
    for own in rows:
        part = more[..., : own.shape[-2], :]
        torch.sub(own, covered[..., None, :], out=part)
        gains.append(part.clamp_(min=0).sum(-1))
    return torch.cat(gains, -1)
