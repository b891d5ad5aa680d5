"""Shorten a batch of prompts: drop placeholders, pad again, and cut every aligned tensor the same way. Pure tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Keyword arguments with one value per prompt token, and what stands on padding.
ALIGNED = {
    "labels": -100,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
}

# Keyword arguments with what a vision tower reads.
PIXELS = ("pixel_values", "pixel_values_videos")


@dataclass(frozen=True)
class ShortPrompt:
    """A shortened batch."""

    input_ids: Tensor
    """(batch, short)."""
    attention_mask: Tensor | None
    """(batch, short); None where the caller gave none and no row needs padding."""
    index: Tensor
    """(batch, short): the place in the caller's prompt of every token."""
    real: Tensor
    """bool (batch, short): False on padding."""

    def to(self, device: torch.device) -> ShortPrompt:
        """The same on a device, without waiting for it."""
        mask = self.attention_mask
        moved = (tensor.to(device, non_blocking=True) for tensor in (self.input_ids, self.index, self.real))
        ids, index, real = moved
        return ShortPrompt(ids, None if mask is None else mask.to(device, non_blocking=True), index, real)

    def gather(self, tensor: Tensor, fill: int) -> Tensor:
        """Cut a tensor (..., batch, long) aligned with the caller's prompt."""
        index = self.index.to(tensor.device).expand(*tensor.shape[:-1], -1)
        return tensor.gather(-1, index).masked_fill(~self.real.to(tensor.device), fill)


def shorten(input_ids: Tensor, attention_mask: Tensor | None, wanted: Tensor, pad_token_id: int) -> ShortPrompt:
    """Drop the tokens that are not wanted, and padding.

    Args:
        input_ids: (batch, long).
        attention_mask: (batch, long) or None for no padding.
        wanted: bool (batch, long).
        pad_token_id: What to fill padding with.

    Returns:
        The batch, padded on the side on which the caller's was (left if it had no padding).
    """
    right_padded = False
    if attention_mask is not None:
        present = attention_mask.to(wanted.device).bool()
        wanted = wanted & present
        right_padded = bool((present[:, 0].all() & ~present[:, -1].all()).item())
    lengths = wanted.sum(1)
    length = int(lengths.max())
    order = torch.argsort(~wanted, dim=1, stable=True)[:, :length]
    column = torch.arange(length, device=wanted.device)
    if right_padded:
        index, real = order, column < lengths[:, None]
    else:
        shift = column - (length - lengths)[:, None]
        index, real = order.gather(1, shift.clamp(min=0)), shift >= 0
    ids = input_ids.gather(1, index).masked_fill(~real, pad_token_id)
    mask = None
    if attention_mask is not None:
        mask = real.to(attention_mask.dtype)
    elif not bool(real.all()):
        mask = real.long()
    return ShortPrompt(ids, mask, index, real)


def original_positions(attention_mask: Tensor) -> Tensor:
    """Positions (batch, long) that an uncompressed call gives to a prompt."""
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
