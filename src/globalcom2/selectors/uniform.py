"""The plain baseline: every view keeps the same fraction, best local scores first."""

from __future__ import annotations

import torch

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views


def uniform(views: Views, retention_ratio: float) -> Ranking:
    """Equal ratio per view, top-k by each view's own score.

    Source: the "uniform" row of the paper's ablation, and FasterVLM (https://arxiv.org/abs/2412.01818).
    Differs from FasterVLM: padding is never kept and newlines stay, as in every selector here.
    """
    ratios = torch.full(views.scores.shape[:-1], retention_ratio, dtype=torch.float64, device=views.scores.device)
    return Ranking(views.thumbnail_scores, views.scores, ratios)
