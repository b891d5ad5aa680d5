"""Shorten a batch of prompts: drop placeholders, pad again, and cut every aligned tensor in step. Pure tensors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

# Keyword arguments with one value per prompt token, and what stands on padding.
ALIGNED = {
    "labels": -100,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "moe_mm_token_type_ids": 0,
    "seq_idx": -1,
}

# Keyword arguments with what a vision tower reads.
PIXELS = ("pixel_values", "pixel_values_videos")


@dataclass(frozen=True)
class ShortPrompt:
    """A shortened batch."""

    input_ids: Tensor
    """(batch, short)."""
    attention_mask: Tensor | None
    """(batch, short), with the caller's own values; None where the caller gave none and no row needs padding."""
    index: Tensor
    """(batch, short): the place in the caller's prompt of every token."""
    real: Tensor
    """bool (batch, short): False on padding."""
    placed: Tensor
    """bool (batch, short): False on padding that the caller's prompt does not have."""

    def to(self, device: torch.device) -> ShortPrompt:
        """A copy on a device, made without waiting for it."""
        names = ("input_ids", "attention_mask", "index", "real", "placed")
        tensors = {name: getattr(self, name) for name in names}
        moved: Any = {n: None if x is None else x.to(device, non_blocking=True) for n, x in tensors.items()}
        return replace(self, **moved)

    def after(self, count: int) -> ShortPrompt:
        """The prompt without its first `count` columns, which must be the caller's own ("fixed" in `shorten`)."""
        if count == 0:
            return self
        mask = self.attention_mask
        return ShortPrompt(
            self.input_ids[:, count:],
            None if mask is None else mask[:, count:],
            self.index[:, count:] - count,
            self.real[:, count:],
            self.placed[:, count:],
        )

    def gather(self, tensor: Tensor, fill: int) -> Tensor:
        """Cut a tensor (..., batch, long) aligned with the caller's prompt."""
        index = self.index.to(tensor.device).expand(*tensor.shape[:-1], -1)
        return tensor.gather(-1, index).masked_fill(~self.real.to(tensor.device), fill)

    def continued(self, call: dict[str, Any], length: int) -> dict[str, Any]:
        """A call that goes on after the caller's prompt, this one's first `length` tokens, with aligned tensors cut in step."""
        call, shape = dict(call), call["input_ids"].shape
        for name, fill in ALIGNED.items():
            given = call.get(name)
            if given is not None and given.shape == shape:
                call[name] = torch.cat([self.gather(given[:, :length], fill), given[:, length:]], 1)
        return call

    def gather_shifted(self, tensor: Tensor, fill: int) -> Tensor:
        """Cut a tensor (batch, long) whose value at a place belongs to the token after it.

        A place gets the value that belongs to the next kept token.
        """
        index, real = self.index.to(tensor.device), self.real.to(tensor.device)
        before_next = torch.cat([index[:, 1:] - 1, index[:, -1:]], 1)
        next_is_real = torch.nn.functional.pad(real[:, 1:], (0, 1))
        place = torch.where(next_is_real, before_next, torch.where(real, index, -1))
        return tensor.gather(-1, place.clamp(min=0)).masked_fill(place < 0, fill)


def shorten(
    input_ids: Tensor, attention_mask: Tensor | None, wanted: Tensor, pad_token_id: int, fixed: int = 0
) -> ShortPrompt:
    """Drop the tokens that are not wanted, and padding before and between tokens.

    Masked places after a row's last token stay, as padding: whatever is counted from the end of a prompt, such as the
    log-probabilities of a completion, stays where it was.

    Args:
        input_ids: (batch, long).
        attention_mask: (batch, long), nonzero where a token is; None for no padding.
        wanted: bool (batch, long).
        pad_token_id: What to fill padding with.
        fixed: The first columns stay as they are, padding included: a cache holds them.

    Returns:
        The batch, padded on the left (after the fixed columns) to one length.
    """
    batch, long = input_ids.shape
    present = torch.ones_like(wanted) if attention_mask is None else attention_mask.to(wanted.device).bool()
    column = torch.arange(long, device=wanted.device)
    last = torch.where(present, column, -1).amax(1, keepdim=True)
    trailing = (column > last) & (last >= 0)
    stays = ((wanted & present) | trailing)[:, fixed:]
    lengths = stays.sum(1)
    length = int(lengths.max())
    order = torch.argsort(~stays, dim=1, stable=True)[:, :length]
    shift = torch.arange(length, device=wanted.device) - (length - lengths)[:, None]
    index = torch.cat([column[:fixed].expand(batch, -1), fixed + order.gather(1, shift.clamp(min=0))], 1)
    placed = torch.cat([torch.ones_like(present[:, :fixed]), shift >= 0], 1)
    real = placed & present.gather(1, index)
    ids = input_ids.gather(1, index)
    ids[:, fixed:] = ids[:, fixed:].masked_fill(~real[:, fixed:], pad_token_id)
    mask = None
    if attention_mask is not None:
        mask = attention_mask.gather(1, index).masked_fill(~real, 0)
    elif not bool(real.all()):
        mask = real.long()
    return ShortPrompt(ids, mask, index, real, placed)
