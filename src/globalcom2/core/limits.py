"""Budgets in tokens: what limits per image and per call come to. Integers from sizes alone."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from globalcom2.core.allocation import apportion
from globalcom2.core.budget import LIMITS
from globalcom2.core.layout import Layout, kept_places
from globalcom2.errors import InputError

_BELOW_ONE = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class Limits:
    """The most visual tokens that are kept; None for no limit."""

    per_image: int | None = None
    per_call: int | None = None

    def __bool__(self) -> bool:
        return self.per_image is not None or self.per_call is not None

    def to_dict(self) -> dict[str, int]:
        """Those that are set, under their names in `compress`."""
        found = zip(LIMITS, (self.per_image, self.per_call), strict=True)
        return {name: value for name, value in found if value is not None}


def check_limit(name: str, value: object) -> int:
    """Return `value` as a positive integer.

    Raises:
        InputError: Something else, booleans and fractions included.
    """
    whole = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else 0
    if whole >= 1:
        return whole
    cure = "For a fraction of the tokens there is retention_ratio." if isinstance(value, float) else "Pass an integer."
    raise InputError(f"{name} must be a whole number of tokens from 1 on, got {value!r}. {cure}")


def limited_ratio(limit: int, layout: Layout) -> float:
    """The ratio at which an image of this layout keeps exactly min(limit, all) tokens: 1.0 where that is all of them.

    Newlines that end no token, as very narrow strips have them, are there at a ratio of 1 alone. A limit that all other
    tokens meet and these exceed comes to those others.

    Args:
        limit: Tokens, newlines that count included; at least 1.
        layout: How the image is cut and packed.
    """
    if limit >= len(layout.slots):
        return 1.0
    return min(limit / max(_most(layout), 1), _BELOW_ONE)


def call_ratios(
    layouts: Sequence[Layout], ratios: Sequence[float], limits: Limits, newlines: str, thumbnail_weight: float
) -> list[float]:
    """The ratio of every image of a call under limits.

    Args:
        layouts: One per image.
        ratios: What each may keep at most, in (0, 1].
        limits: An image keeps what its ratio or the limit allows, whichever is less. Where all images together would
            keep more than a call may, each gives up the same part: shares are in proportion, by largest remainder,
            and at least one token each.
        newlines: The rule for newlines; not "all", which budgets do not count.
        thumbnail_weight: See `keep_counts`.

    Returns:
        Ratios for which budgets are exact; 1.0 for an image that keeps everything.

    Raises:
        InputError: A call may keep fewer tokens than it has images.
    """
    found, counts = list(ratios), []
    for n, (layout, ratio) in enumerate(zip(layouts, ratios, strict=True)):
        wanted = kept_places(layout, ratio, newlines, thumbnail_weight)
        if limits.per_image is not None and wanted > limits.per_image:
            wanted, found[n] = limits.per_image, limited_ratio(limits.per_image, layout)
        counts.append(wanted)
    total = limits.per_call
    if total is None or sum(counts) <= total:
        return found
    images = sum(count > 0 for count in counts)
    if total < images:
        raise InputError(
            f"max_visual_tokens_per_call must be at least one token per image, got {total} for {images} images. Raise it, or "
            "ask about fewer images at once."
        )
    shares = shared(total, counts)
    return [
        ratio if share == count else limited_ratio(share, layout)
        for ratio, share, count, layout in zip(found, shares, counts, layouts, strict=True)
    ]


def shared(total: int, counts: Sequence[int]) -> list[int]:
    """Share tokens out in proportion to `counts`, at least one to each that has any, never more than it has.

    Returns:
        Integers that sum to min(total, sum(counts)) exactly.
    """
    most = torch.tensor(counts)
    goal = torch.tensor(min(total, sum(counts)))
    return [int(share) for share in apportion(goal, most, most.clamp(max=1), most)]


def _most(layout: Layout) -> int:
    """Tokens and newlines that a shortened image of this layout may keep."""
    return layout.thumbnail_tokens + int(layout.valid.sum()) + layout.line_count
