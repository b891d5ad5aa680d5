"""The masks of a call's images, and what happens where nobody knows how the crops of an image lie."""

from __future__ import annotations

import warnings

from globalcom2.core.selection import Keep, select
from globalcom2.core.views import Views
from globalcom2.hf.config import CompressionConfig

GRID_UNKNOWN = (
    "globalcom2: an image is too uniform or too regular to tell how its crops lie, and the call does not say; its crops "
    "get equal budgets."
)


def choose_tokens(settings: CompressionConfig, views: Views, known_grid: bool, ratio: float | None = None) -> Keep:
    """What stays of a batch of images of one layout, at the settings' highest ratio or at another one.

    Without a known grid, a method that looks at the places of crops is replaced by "uniform", with a warning: crops get
    the same ratio.
    """
    if not known_grid and settings.selector.needs_grid:
        warnings.warn(GRID_UNKNOWN, stacklevel=2)
        settings = settings.replace(method="uniform", options={})
    return select(
        views,
        settings.highest_ratio if ratio is None else ratio,
        settings.method,
        settings.exact,
        settings.newlines,
        settings.thumbnail_weight,
        check=False,
        **settings.options,
    )
