"""The baseline that every selector has to beat."""

from __future__ import annotations

import torch

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.selectors.whole import even_ratios


def random(views: Views, retention_ratio: float, *, seed: int = 0) -> Ranking:
    """Equal ratio per view, tokens drawn at random.

    The draw depends on `seed` and the shapes alone, so an image keeps the same tokens alone and in a batch.

    Args:
        views: Images or videos.
        retention_ratio: Fraction to keep, in (0, 1].
        seed: Of the draw. The same seed keeps the same tokens.

    Source: the usual sanity baseline; see "random" in https://arxiv.org/abs/2503.10501 (benchmarks where it wins).
    """
    if not isinstance(seed, int):
        raise InputError(f"seed must be an integer, got {seed!r}.")
    generator = torch.Generator().manual_seed(seed)
    draw = torch.rand(views.thumbnail_tokens + views.crops * views.tokens, generator=generator)
    own, crops = draw.to(views.scores.device, non_blocking=True).tensor_split([views.thumbnail_tokens])
    thumbnail = None if views.thumbnail_scores is None else own.expand_as(views.thumbnail_scores)
    each = crops.view(views.crops, views.tokens).expand_as(views.scores)
    return Ranking(thumbnail, each, even_ratios(views, retention_ratio))
