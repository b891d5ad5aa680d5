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

    def gather(self, tensor: Tensor, fill: int) -> Tensor:
        """Cut a tensor (..., batch, long) aligned with the caller's prompt."""
        index = self.index.to(tensor.device).expand(*tensor.shape[:-1], -1)
        return tensor.gather(-1, index).masked_fill(~self.real.to(tensor.device), fill)


def shorten(
    input_ids: Tensor, attention_mask: Tensor | None, placeholder: Tensor, keep: Tensor, pad_token_id: int
) -> ShortPrompt:
    """Drop the placeholders that are not kept.

    Args:
        input_ids: (batch, long).
        attention_mask: (batch, long) or None for no padding.
        placeholder: bool (batch, long).
        keep: bool (placeholders,), in row-major order over the batch.
        pad_token_id: What to fill padding with.

    Returns:
        The batch, padded on the side on which the caller's was (left if it had no padding).
    """
    wanted = torch.ones_like(placeholder).masked_scatter(placeholder, keep.to(placeholder.device))
    right_padded = False
    if attention_mask is not None:
        present = attention_mask.to(wanted.device).bool()
        wanted &= present
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
