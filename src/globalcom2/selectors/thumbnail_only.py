"""The floor of those who doubt crops: the thumbnail alone."""

from __future__ import annotations

from torch import Tensor

from globalcom2.core.allocation import ranks
from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError


def thumbnail_only(views: Views, retention_ratio: float) -> Ranking:
    """The thumbnail's tokens, best scores first. Crops get what is left of the budget once all of these are kept.

    Args:
        views: Images with a thumbnail.
        retention_ratio: Fraction to keep, in (0, 1].

    Returns:
        One order over all tokens: the thumbnail's, then those of all crops by their own scores.

    Raises:
        InputError: No thumbnail.

    Source: a floor. What a method keeps of the crops must be worth more than the same number of the thumbnail's tokens.
    """
    if views.thumbnail_scores is None:
        raise InputError(
            "thumbnail_scores must be given for method 'thumbnail_only', got None: there is no thumbnail to keep, as with images "
            "that keep their resolution and with videos. Use 'uniform' there."
        )
    crops = _places(views.scores.flatten(1))
    return Ranking(1 + _places(views.thumbnail_scores), crops.view(views.scores.shape), thumbnail_competes=True)


def _places(scores: Tensor) -> Tensor:
    """Descending places as numbers in (0, 1], float64, 1 for the highest score."""
    return 1 - ranks(scores).double() / max(1, scores.shape[-1])
