"""A direct call's logits, put back to the places of the caller's own prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globalcom2.hf.prompt import ShortPrompt


@dataclass(frozen=True)
class Places:
    """Where the logits of the caller's places stand among those of the short prompt.

    A place that was dropped has the logits of the last kept token before it: they predict what follows the dropped
    tokens, so that a loss against the caller's own labels is that of the short prompt. A place before every kept token
    has zeros.
    """

    column: Tensor
    """int (batch, places): column of the computed logits; -1 where nothing was kept before."""
    wanted: int
    """`logits_to_keep` of the short call."""
    predicted: Tensor
    """int (batch, long - 1): column of the short prompt that predicts the token after a place; -1 for a dropped token."""
    short: int
    """Length of the short prompt."""

    def restored(self, logits: Tensor) -> Tensor:
        """(batch, columns, vocabulary) -> (batch, places, vocabulary)."""
        column = self.column.to(logits.device, non_blocking=True)
        index = column.clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])
        return logits.gather(1, index).masked_fill((column < 0)[..., None], 0.0)

    def restored_scores(self, scores: Tensor) -> Tensor:
        """(batch, short - 1) values about the next token -> (batch, long - 1); 0 where that token was dropped."""
        column = self.predicted.to(scores.device, non_blocking=True)
        return scores.gather(1, column.clamp(min=0)).masked_fill(column < 0, 0)


def places_of_logits(prompt: ShortPrompt, length: int, to_keep: int, full: bool) -> Places | None:
    """How to restore the logits of a direct call.

    Args:
        prompt: The short prompt.
        length: Length of the caller's prompt.
        to_keep: The caller's `logits_to_keep`: how many of the last places, 0 for all.
        full: Whether the caller wants all places as in an uncompressed call; otherwise logits of all places are left
            short, and only a number of last places is restored.

    Returns:
        None where the logits of the short call, with the same `logits_to_keep`, are the caller's.
    """
    if not full and not to_keep:
        return None
    batch, short = prompt.index.shape
    first = max(0, length - to_keep) if to_keep else 0
    own = torch.where(prompt.placed, torch.arange(short), -1)
    column = torch.full((batch, length), -1).scatter_reduce(1, prompt.index, own, "amax")
    predicted = column[:, 1:] - 1
    column = column.cummax(1).values[:, first:]
    if torch.equal(column, torch.arange(short - column.shape[1], short).expand_as(column)):
        return None
    least = int(column.clamp(min=0).min())
    wanted = 0 if least == 0 else short - least
    return Places(torch.where(column < 0, -1, column - least), wanted, predicted.clamp(min=-1), short)


def restore_logits(output: Any, places: Places) -> Any:
    """A model's output, object or tuple, with its logits in the caller's places."""
    if isinstance(output, tuple):  # with labels, the loss comes first
        first = next(i for i, item in enumerate(output) if isinstance(item, Tensor) and item.ndim == 3)
        return (*output[:first], places.restored(output[first]), *output[first + 1 :])
    if getattr(output, "logits", None) is not None:
        output.logits = places.restored(output.logits)
        return output
    # trl's fused head scores labels itself and keeps no logits: every score belongs to the token after its place.
    for name, value in output.items():
        if isinstance(value, Tensor) and value.shape == (len(places.predicted), places.short - 1):
            output[name] = places.restored_scores(value)
    return output
