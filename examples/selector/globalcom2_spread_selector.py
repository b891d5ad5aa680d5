"""The algorithm. It is imported when the method is used, not before."""

import torch
import torch.nn.functional as F

from globalcom2 import InputError, Ranking


def spread(views, retention_ratio, *, block=2):
    """Every view keeps the same fraction. First come the best tokens of all blocks, then the others, each by score.

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
        thumbnail = _best_of_blocks_first(thumbnail.float(), views.thumbnail_grid, block)
    return Ranking(thumbnail, _best_of_blocks_first(scores, views.token_grid, block), ratios)


def _best_of_blocks_first(scores, grid, block):
    """Ranks (..., tokens): higher for the best token of a block than for all that are not."""
    if not scores.numel():
        return scores
    (height, width), maps = grid, scores.reshape(-1, 1, *grid)
    best = F.max_pool2d(maps, block, ceil_mode=True)
    best = best.repeat_interleave(block, 2).repeat_interleave(block, 3)[..., :height, :width]
    place = scores.argsort(-1).argsort(-1)  # 0 for the lowest score
    return (place + scores.shape[-1] * (maps >= best).reshape(scores.shape)).to(scores.dtype)
