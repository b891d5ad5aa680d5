"""How many tokens an image keeps: integers from sizes and the ratio alone, never from content.

Servers reserve places for an image before its vision tower runs, so everything that must know a length (the prompt, the
tensors, a serving engine) calls `keep_counts` and nothing else.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import NamedTuple

from globalcom2.errors import InputError

AUTO = "auto"
"""The `retention_ratio` that follows what an image shows."""
LIMITS = ("max_visual_tokens", "max_visual_tokens_per_call")
"""Arguments of `compress` that are limits in tokens."""


class Budget(NamedTuple):
    """Tokens that one image keeps: `total == thumbnail + crops`; newlines that count are part of `crops`."""

    total: int
    thumbnail: int
    crops: int


def check_ratio(retention_ratio: float) -> float:
    """Return `retention_ratio` as a float in (0, 1].

    Raises:
        InputError: Not a number, or out of range; a percentage is recognised and the message names the ratio meant.
    """
    if isinstance(retention_ratio, bool) or not isinstance(retention_ratio, numbers.Real):
        raise InputError(f"retention_ratio must be a number in (0, 1], got {retention_ratio!r}.")
    try:
        ratio = float(retention_ratio)
    except OverflowError:  # a whole number beyond all floats
        raise InputError("retention_ratio must be in (0, 1], got a whole number of hundreds of digits.") from None
    if 0.0 < ratio <= 1.0:
        return ratio
    cure = f"Did you mean {ratio / 100:g}?" if 1.0 < ratio <= 100.0 else "It is the fraction of visual tokens to keep."
    raise InputError(f"retention_ratio must be in (0, 1], got {retention_ratio!r}. {cure}")


def ratio_text(retention_ratio: float | str) -> str:
    """A ratio, or "auto", as people read it."""
    return retention_ratio if isinstance(retention_ratio, str) else f"{retention_ratio:g}"


def budget_text(retention_ratio: float | str, limits: Mapping[str, int | None]) -> str:
    """A ratio and limits in tokens as people read them: "0.1", "auto" or "max 128 tokens".

    Args:
        retention_ratio: A number, or "auto".
        limits: Those that are set, by their names in `LIMITS`; other keys are not looked at.
    """
    per_image, per_call = (limits.get(name) for name in LIMITS)
    found = [] if retention_ratio == 1.0 and (per_image or per_call) else [ratio_text(retention_ratio)]
    if per_image is not None:
        found.append(f"max {per_image} tokens")
    if per_call is not None:
        found.append(f"max {per_call} tokens a call")
    return ", ".join(found)


def keep_counts(
    retention_ratio: float, thumbnail: int, crops: int, newlines: int = 0, thumbnail_weight: float = 1.0
) -> Budget:
    """Split an image's budget between its thumbnail and its crops.

    Args:
        retention_ratio: Fraction to keep, in (0, 1].
        thumbnail: Tokens of the thumbnail (0 if the image has none).
        crops: Valid tokens of all crops together.
        newlines: Newlines that the crops' packing adds and that count.
        thumbnail_weight: The thumbnail's ratio over `retention_ratio`; the crops get what is left of the total.

    Returns:
        The exact numbers: `total` is floor(retention_ratio * everything + 0.5) in double precision, at least one (zero
        only where there is nothing).
    """
    ratio = check_ratio(retention_ratio)
    if thumbnail == crops == 0:
        return Budget(0, 0, 0)
    total = max(1, _round_half_up(ratio * (thumbnail + crops + newlines)))
    kept = min(total, thumbnail, max(1, _round_half_up(ratio * thumbnail_weight * thumbnail)))
    kept = max(kept, total - crops - newlines)  # what the crops cannot take
    if crops == 0:
        kept = total = max(1, _round_half_up(ratio * thumbnail))
    return Budget(total, kept, total - kept)


def _round_half_up(value: float) -> int:
    return math.floor(value + 0.5)
