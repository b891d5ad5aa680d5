"""FasterVLM: what [CLS] attends to stays, the same fraction of every view."""

from __future__ import annotations

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.selectors.uniform import uniform


def fastervlm(views: Views, retention_ratio: float) -> Ranking:
    """The tokens of every view that [CLS] attends to most, the same ratio for each view.

    Args:
        views: Images or videos, with scores of type "attention".
        retention_ratio: Fraction to keep, in (0, 1].

    Returns:
        Every view by its own scores, even ratios.

    Paper: https://arxiv.org/abs/2412.01818. Differs from the paper: budgets are exact, padding is never kept, and the
    attention is read in the layer of the features, as its published code does. That code has no newlines. In towers without
    [CLS] the mean query stands in for it. It is `uniform` with another score.
    """
    return uniform(views, retention_ratio)
