"""Equal budgets where tokens leave inside the language model: the mean over its layers is the ratio that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from globalcom2.hf.inside import SHARE, Drops, drops_of


class Fitted(NamedTuple):
    """What to pass to `compress`."""

    prompt_ratio: float
    """Its `retention_ratio`: of the image's tokens, what the prompt keeps."""
    inside_share: float


def fit(options: Mapping[str, Any], ratio: float, depth: int, *, alone: bool) -> Fitted:
    """The prompt's ratio and the share of each drop, so that layers read `ratio` of the image's tokens on average.

    After a selection, the share is `inside_share` and the prompt keeps what that leaves to it. Alone, the prompt keeps
    everything and the share is fitted; where the layers before the first drop read too much already, the last layers read
    `ratio`, and the mean is larger.

    Args:
        options: `inside`, and perhaps `inside_layer` and `inside_share`, arguments of `compress`.
        ratio: In (0, 1).
        depth: Layers of the language model.
        alone: Whether the prompt keeps everything.
    """
    given = options.get("inside_share")
    # A share of 1 is no drop; any other one shows where the drops are.
    drops = drops_of(options["inside"], options.get("inside_layer"), None if alone else given, depth)
    if drops is None:
        return Fitted(ratio, 1.0)
    if not alone:
        share = SHARE if given is None else float(given)
        return Fitted(min(1.0, ratio / mean_share(drops, share, depth)), share)
    return Fitted(1.0, _share_of(drops, ratio, depth) if given is None else float(given))


def mean_share(drops: Drops, share: float, depth: int) -> float:
    """Of the prompt's visual tokens, how many a layer reads on average if `share` stay in each drop."""
    return sum(float(share ** drops.done(layer)) for layer in range(depth)) / depth


def _share_of(drops: Drops, ratio: float, depth: int) -> float:
    """The share with which layers read `ratio` on average, or the last ones do if there is none."""
    low, high = 0.0, 1.0
    if mean_share(drops, low, depth) >= ratio:
        return float(ratio ** (1 / len(drops.layers)))
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_share(drops, middle, depth) < ratio else (low, middle)
    return high
