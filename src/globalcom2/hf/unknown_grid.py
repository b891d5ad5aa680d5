"""The masks of a call's images, and what happens where nobody knows how the crops of an image lie."""

from __future__ import annotations

import warnings
from dataclasses import replace

from globalcom2.core.methods import get_method
from globalcom2.core.selection import Keep, select
from globalcom2.core.views import Views
from globalcom2.hf.settings import Settings

GRID_UNKNOWN = (
    "globalcom2: an image is too uniform or too regular to tell how its crops lie, and the call does not say; its crops "
    "get equal budgets."
)


def choose_tokens(settings: Settings, views: Views, known_grid: bool) -> Keep:
    """What stays of a batch of images of one layout.

    Without a known grid, a method that looks at the places of crops is replaced by "uniform", with a warning: crops get
    the same ratio.
    """
    if not known_grid and get_method(settings.method).needs_grid:
        warnings.warn(GRID_UNKNOWN, stacklevel=2)
        settings = replace(settings, method="uniform", options={})
    return select(
        views,
        settings.retention_ratio,
        settings.method,
        settings.exact,
        settings.newlines,
        settings.thumbnail_weight,
        check=False,
        **settings.options,
    )
