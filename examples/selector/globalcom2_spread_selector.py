"""The algorithm. It is imported when the method is used, not before."""

import torch
import torch.nn.functional as F

from globalcom2 import InputError, Ranking


def spread(views, retention_ratio, *, block=2):
    """Every view keeps the same fraction: the best token of each block first, then the others.

    Args:
        views: Scores (batch, crops, tokens), and the thumbnail's (batch, tokens).
        retention_ratio: Fraction to keep, in (0, 1].
        block: Side of a block, in tokens.

    Source: an example.
    """
    if type(block) is not int or block < 1:
        raise InputError(f"block must be a positive integer, got {block!r}.")
    scores = views.scores.float().masked_fill(~views.valid_mask, -torch.inf)
    ratios = torch.full(scores.shape[:-1], retention_ratio, device=scores.device)
    thumbnail = views.thumbnail_scores
    if thumbnail is not None:
        thumbnail = _ranked(thumbnail.float(), views.thumbnail_grid, block)
    return Ranking(thumbnail, _ranked(scores, views.token_grid, block), ratios)


def _ranked(scores, grid, block):
    """Ranks (..., tokens): higher for the best token of a block than for all that are not."""
    if not scores.numel():
        return scores
    (height, width), maps = grid, scores.reshape(-1, 1, *grid)
    best = F.max_pool2d(maps, block, ceil_mode=True)
    best = best.repeat_interleave(block, 2).repeat_interleave(block, 3)
    is_best = (maps >= best[..., :height, :width]).reshape(scores.shape)
    place = scores.argsort(-1).argsort(-1)  # 0 for the lowest score
    return (place + scores.shape[-1] * is_best).to(scores.dtype)
