"""How much every image of a call may keep: a ratio each, from sizes, or from what the images show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globalcom2.core.groups import Group, all_of, views_of
from globalcom2.core.layout import Layout
from globalcom2.core.limits import call_ratios
from globalcom2.core.selection import Keep
from globalcom2.core.spread import spread
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.hf.cache import CACHE
from globalcom2.hf.config import CompressionConfig
from globalcom2.hf.visuals import Visuals

STATIC = ("static", "hybrid", "sliding_window")
"""What names of caches of a fixed length have in them; transformers makes static ones of the last two."""
Ratios = list[list[float]]
"""Of each modality, per image or video."""


@dataclass(frozen=True)
class Batch:
    """Images, or videos, of one layout in a call, before anything is chosen."""

    layout: Layout
    members: list[int]
    """Their numbers among those of the call."""
    views: Views
    thumbnails: Tensor
    """float (members, tokens)."""


def ratios_of_sizes(settings: CompressionConfig, found: list[Visuals]) -> Ratios | None:
    """What follows from sizes alone; None where it takes a look at the images.

    Raises:
        InputError: A call may keep fewer tokens than it has images.
    """
    if settings.follows_content:
        return None
    return _limited(settings, found, [[settings.highest_ratio] * len(visuals.layouts) for visuals in found])


def ratios_of_content(settings: CompressionConfig, found: list[Visuals], batches: list[list[Batch]]) -> Ratios:
    """What the images' scores ask for, under the limits. The host waits for the device.

    Raises:
        InputError: As in `ratios_of_sizes`.
    """
    spreads = [spread(batch.views) for own in batches for batch in own]
    left = iter(torch.cat(spreads).tolist() if spreads else [])
    floor, ceiling = settings.auto_floor, settings.auto_ceiling
    asked: Ratios = [[floor] * len(visuals.layouts) for visuals in found]
    for ratios, own in zip(asked, batches, strict=True):
        for batch in own:
            for member in batch.members:
                share = next(left)
                if not math.isfinite(share):
                    continue  # so are the scores, which is told where the masks come to the host
                # Rounded, since a sum over a batch differs from one over an image in its last bits.
                ratio = round(floor + (ceiling - floor) * share, 4)
                ratios[member] = min(max(ratio, floor), ceiling)
    return _limited(settings, found, asked)


def _limited(settings: CompressionConfig, found: list[Visuals], ratios: Ratios) -> Ratios:
    if not settings.limits:
        return ratios
    layouts = [layout for visuals in found for layout in visuals.layouts]
    flat = call_ratios(
        layouts,
        [ratio for own in ratios for ratio in own],
        settings.limits,
        settings.newlines or "counted",
        settings.thumbnail_weight,
    )
    left = iter(flat)
    return [[next(left) for _ in own] for own in ratios]


def chosen_groups(
    batches: list[Batch], ratios: list[float], choose: Callable[[Views, bool, float], Keep]
) -> list[Group]:
    """Select for all images, or videos, of one layout and one ratio in one go; at a ratio of 1 all of them stay.

    Args:
        batches: Those of one modality, by layout.
        ratios: Of each of its images.
        choose: A function of views, of whether their grid is known, and of the ratio.
    """
    groups = []
    for batch in batches:
        for ratio in dict.fromkeys(ratios[member] for member in batch.members):
            rows = [row for row, member in enumerate(batch.members) if ratios[member] == ratio]
            views, thumbnails = batch.views, batch.thumbnails
            if len(rows) < len(batch.members):
                views = views_of(views, rows)
                thumbnails = torch.stack([thumbnails[row] for row in rows])
            if ratio == 1.0:
                keep = all_of(batch.layout, len(rows), views.scores.device)
            else:
                keep = choose(views, batch.layout.known_grid, ratio)
            members = [batch.members[row] for row in rows]
            groups.append(Group(batch.layout, members, views, thumbnails, keep, ratio))
    return groups


def refuse_static(settings: CompressionConfig, model: Any, call: dict[str, Any]) -> None:
    """Raise `InputError` where shapes have to stay the same from call to call, and would follow what images show."""
    if not settings.follows_content:
        return
    asked = [call.get("cache_implementation")]
    asked += [
        getattr(own, "cache_implementation", None)
        for own in (call.get("generation_config"), getattr(model, "generation_config", None))
    ]
    named = next((name for name in asked if name is not None), None)
    kind = type(call.get(CACHE)).__name__
    static = next((text for text in (str(named), kind) if any(part in text.lower() for part in STATIC)), None)
    if static is not None:
        raise InputError(
            f"retention_ratio must be a number with a static cache, got 'auto' with {static!r}: how long the prompt gets "
            "would follow what the images show. Give a ratio, or use a dynamic cache."
        )
