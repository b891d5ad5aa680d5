"""Two orders of the values of a patch: by channel first, or with the channels of each pixel together."""

from __future__ import annotations

from torch import Tensor


def channels_first(patches: Tensor, side: int) -> Tensor:
    """(..., side * side * 3) in the order (row, column, channel) -> (channel, row, column)."""
    first: Tensor = patches.unflatten(-1, (side, side, 3)).movedim(-1, -3).flatten(-3)
    return first


def channels_last(patches: Tensor, side: int) -> Tensor:
    """The inverse of `channels_first`."""
    last: Tensor = patches.unflatten(-1, (3, side, side)).movedim(-3, -1).flatten(-3)
    return last
