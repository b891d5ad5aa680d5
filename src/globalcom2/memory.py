"""A cache filled by a shortened prompt remembers it, so that a conversation can go on.

Callers continue with the prompt that they know: full ids, full mask, full positions. These are mapped to the short
prompt that the cache really holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globalcom2.errors import InputError

ATTRIBUTE = "_globalcom2_memory"


@dataclass(frozen=True)
class Memory:
    """A shortened prompt."""

    length: int
    """Length of the caller's prompt."""
    input_ids: Tensor
    """(batch, short)."""
    attention_mask: Tensor
    """(batch, short)."""
    position_ids: Tensor
    """(batch, short), as the language model read them."""
    dropped: Tensor
    """(batch,): real tokens that each prompt lost."""
    original_positions: bool

    def continued_prompt(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call of `generate` with the whole conversation in ids and mask, mapped to the short prompt."""
        if call.get("pixel_values") is not None:
            raise InputError(
                "pixel_values must not be given when a compressed cache is continued, got new images. "
                "Start from the whole conversation without past_key_values."
            )
        rest = call["input_ids"][:, self.length :]
        given = call.get("attention_mask")
        tail = torch.ones_like(rest) if given is None else given[:, self.length :]
        mask = torch.cat([self.attention_mask.to(tail), tail], 1)
        call = {**call, "input_ids": torch.cat([self.input_ids, rest], 1), "attention_mask": mask}
        if self.original_positions:
            after = self.position_ids.amax(1, keepdim=True) + tail.cumsum(1)
            call["position_ids"] = torch.cat([self.position_ids, after], 1)
        return call

    def continued_step(self, call: dict[str, Any], cached: int) -> dict[str, Any]:
        """A direct call with new tokens only, whose mask and positions may be those of the full prompt."""
        call = dict(call)
        new = call["input_ids"].shape[1]
        mask, short = call.get("attention_mask"), self.input_ids.shape[1]
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] != cached + new:
            if mask.shape[1] != self.length + cached - short + new:
                raise InputError(
                    f"attention_mask must cover the {self.length + cached - short + new} tokens so far, got "
                    f"{mask.shape[1]}. Append a column of ones for each new token."
                )
            call["attention_mask"] = torch.cat([self.attention_mask.to(mask), mask[:, self.length :]], 1)
        if call.get("position_ids") is not None and not self.original_positions:
            call["position_ids"] = call["position_ids"] - self.dropped.to(call["position_ids"])[:, None]
        elif self.original_positions and call.get("position_ids") is None:
            steps = torch.arange(cached - short, cached - short + new, device=self.position_ids.device)
            call["position_ids"] = self.position_ids.amax(1, keepdim=True) + 1 + steps
        return call


def remember(cache: Any, memory: Memory) -> None:
    """Leave the memory on a cache."""
    if cache is not None:
        setattr(cache, ATTRIBUTE, memory)


def memory_of(cache: Any, input_ids: Tensor | None) -> Memory | None:
    """What a cache remembers; None for one that was filled uncompressed. Raises if it cannot be continued."""
    memory: Memory | None = getattr(cache, ATTRIBUTE, None)
    if memory is None:
        return None
    if input_ids is None:
        raise InputError("input_ids must be given to continue a compressed cache, got inputs_embeds.")
    rows = cache.layers[0].keys.shape[0]
    if not rows == len(memory.input_ids) == len(input_ids):
        raise InputError(
            f"past_key_values must hold one row per prompt ({len(memory.input_ids)}) to be continued, got {rows} rows and "
            f"{len(input_ids)} prompts: it was filled by beams or several returns. Start from the whole conversation."
        )
    return memory
