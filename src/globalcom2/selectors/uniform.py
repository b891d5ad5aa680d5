"""The plain baseline: every view keeps the same fraction, best local scores first."""

from __future__ import annotations

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.selectors.whole import even_ratios


def uniform(views: Views, retention_ratio: float) -> Ranking:
    """Equal ratio per view, top-k by each view's own score.

    Args:
        views: Images or videos.
        retention_ratio: Fraction to keep, in (0, 1].

    Source: the "uniform" row of the paper's ablation, and FasterVLM (https://arxiv.org/abs/2412.01818).
    Differs from FasterVLM: the model family's own score is read. `fastervlm` reads FasterVLM's.
    """
    return Ranking(views.thumbnail_scores, views.scores, even_ratios(views, retention_ratio))
