"""A cache filled by a shortened prompt remembers it, so that a conversation can go on.

Callers continue with the prompt that they know: full ids, full mask, full positions. These are mapped to the short
prompt that the cache really holds; what cannot be mapped raises.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from globalcom2.errors import InputError
from globalcom2.hf.prompt import PIXELS, ShortPrompt, original_positions

ATTRIBUTE = "_globalcom2_memory"
CACHE = "cache" if tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24) else "past_key_values"
"""What transformers calls a cache among arguments and in outputs; the older name still works in 5.24."""


def with_cache_named(call: dict[str, Any]) -> dict[str, Any]:
    """A call whose cache, if it has one, has the name of this version of transformers."""
    if CACHE == "past_key_values" or "past_key_values" not in call:
        return call
    call = dict(call)
    cache = call.pop("past_key_values")
    return call if call.get(CACHE) is not None else {**call, CACHE: cache}


@dataclass(frozen=True)
class Memory:
    """A shortened prompt."""

    length: int
    """Length of the caller's prompt."""
    prompt: ShortPrompt
    attention_mask: Tensor
    """(batch, short)."""
    position_ids: Tensor
    """(batch, short), as the language model reads them."""
    dropped: Tensor
    """(batch,): real tokens that each prompt lost."""
    original_positions: bool
    fingerprint: Tensor | None = None
    """Keys of the prompt's last token, (rows, heads, dim), to notice that a cache was filled again."""

    @property
    def short(self) -> int:
        """Length of the short prompt."""
        return self.attention_mask.shape[1]

    def to(self, device: torch.device) -> Memory:
        """The same on a device, without waiting for it."""
        names = ("attention_mask", "position_ids", "dropped")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, prompt=self.prompt.to(device), **moved)

    def continued_prompt(self, call: dict[str, Any]) -> dict[str, Any]:
        """A call of `generate` with the whole conversation in ids and mask, mapped to the short prompt."""
        _refuse_images(call)
        ids, given, places = call["input_ids"], call.get("attention_mask"), call.get("position_ids")
        if ids.shape[1] <= self.length or not self._begins(ids):
            raise InputError(
                f"input_ids must begin with the {self.length} tokens that filled past_key_values and go on, got "
                f"{ids.shape[1]} tokens. Pass the whole conversation, as transformers expects it with a cache."
            )
        tail = torch.ones_like(ids[:, self.length :]) if given is None else given[:, self.length :]
        call = {
            **call,
            "input_ids": torch.cat([self.prompt.input_ids, ids[:, self.length :]], 1),
            "attention_mask": torch.cat([self.attention_mask.to(tail), tail], 1),
        }
        if places is not None:
            call["position_ids"] = torch.cat([self.position_ids, self._shifted(places[:, self.length :])], 1)
        elif self.original_positions:
            call["position_ids"] = torch.cat([self.position_ids, self._last_position() + tail.cumsum(1)], 1)
        return call

    def continued_step(self, call: dict[str, Any], cached: int) -> dict[str, Any]:
        """A direct call with new tokens only, whose mask and positions may be those of the full prompt."""
        _refuse_images(call)
        call = dict(call)
        ids, mask, places = call["input_ids"], call.get("attention_mask"), call.get("position_ids")
        since = cached - self.short
        new = ids.shape[1]
        if mask is None:
            tail = torch.ones(len(ids), since + new, dtype=self.attention_mask.dtype, device=ids.device)
            call["attention_mask"] = torch.cat([self.attention_mask.to(tail), tail], 1)
        elif mask.ndim == 2 and mask.shape[1] != cached + new:
            if mask.shape[1] != self.length + since + new:
                raise InputError(
                    f"attention_mask must cover the {self.length + since + new} tokens so far, got {mask.shape[1]}. "
                    "Append a column of ones for each new token."
                )
            call["attention_mask"] = torch.cat([self.attention_mask.to(mask), mask[:, self.length :]], 1)
        if places is None:
            steps = torch.arange(1 + since, 1 + since + new, device=ids.device)
            call["position_ids"] = self._last_position().to(ids.device) + steps
        else:
            call["position_ids"] = self._shifted(places)
        return call

    def _begins(self, ids: Tensor) -> bool:
        """Whether a conversation begins with the prompt that was shortened."""
        kept = self.prompt.gather(ids[:, : self.length], 0)
        mine = self.prompt.input_ids.masked_fill(~self.prompt.real, 0).to(kept.device)
        return bool(torch.equal(kept, mine))

    def _shifted(self, places: Tensor) -> Tensor:
        """The caller's positions of tokens after the prompt, as the short prompt continues."""
        return places if self.original_positions else places - self.dropped.to(places)[:, None]

    def _last_position(self) -> Tensor:
        return self.position_ids.amax(1, keepdim=True)


def memory_of_call(
    prompt: ShortPrompt, given: Tensor | None, ids: Tensor, mask: Tensor | None, original: bool
) -> Memory:
    """What a cache should remember of a shortened call.

    Args:
        prompt: The shortened prompt.
        given: The caller's own positions, (batch or 1, long), or None.
        ids: The caller's ids, (batch, long).
        mask: The caller's mask, (batch, long), or None.
        original: Whether to keep the full prompt's positions instead of closing the gaps.
    """
    present = torch.ones_like(ids) if mask is None else mask.to(ids.device)
    usual = original_positions(present)
    positions = prompt.gather(usual if given is None else given.expand_as(ids), 0)
    if not original:
        # Closed positions are lower by the tokens lost before each kept one.
        positions = (positions - prompt.gather(usual, 0) + original_positions(prompt.real.long())).clamp(min=0)
    dropped = present.sum(1) - prompt.real.sum(1)
    return Memory(ids.shape[1], prompt, prompt.real.to(present.dtype), positions, dropped, original)


def remember(cache: Any, memory: Memory) -> None:
    """Leave the memory on a cache that the short prompt has filled."""
    if cache is not None:
        setattr(cache, ATTRIBUTE, replace(memory, fingerprint=_fingerprint(cache, memory.short)))


def recall(cache: Any, input_ids: Tensor | None) -> Memory | None:
    """What a cache remembers; None for one that is empty or was filled uncompressed.

    Raises:
        InputError: The cache cannot be continued with these prompts.
    """
    memory: Memory | None = getattr(cache, ATTRIBUTE, None)
    if memory is None:
        return None
    if cache.get_seq_length() == 0:  # reset by its owner
        delattr(cache, ATTRIBUTE)
        return None
    if input_ids is None:
        raise InputError("input_ids must be given to continue a compressed cache, got inputs_embeds.")
    if cache.get_seq_length() < memory.short:
        raise InputError(
            f"past_key_values must hold its whole prompt ({memory.short} tokens) to be continued, got "
            f"{cache.get_seq_length()}: it was cropped, or its call was interrupted. Start with a new cache."
        )
    now = _fingerprint(cache, memory.short)
    rows = len(memory.prompt.input_ids)
    if (now is not None and len(now) != rows) or len(input_ids) != rows:
        raise InputError(
            f"past_key_values must hold one row per prompt ({rows}) to be continued, got {len(input_ids)} prompts and "
            f"{'?' if now is None else len(now)} rows; beams and several returns fill one for each. Start from the whole "
            "conversation with a new cache."
        )
    if now is not None and memory.fingerprint is not None and not torch.equal(now, memory.fingerprint):
        raise InputError(
            "past_key_values must be as the compressed call left it, got one that was reordered or filled again outside. "
            "Start with a new cache."
        )
    return memory


def _fingerprint(cache: Any, short: int) -> Tensor | None:
    keys = getattr(cache.layers[-1], "keys", None)
    # Quantised and sliding-window layers do not keep the prompt's keys in place.
    if (
        not isinstance(keys, Tensor)
        or keys.ndim != 4
        or keys.shape[2] < short
        or getattr(cache.layers[-1], "is_sliding", False)
    ):
        return None
    return keys[:, :, short - 1].clone()


def _refuse_images(call: dict[str, Any]) -> None:
    for name in PIXELS:
        if call.get(name) is not None:
            raise InputError(
                f"{name} must not be given when a compressed cache is continued, got new images or videos. "
                "Start from the whole conversation without past_key_values."
            )
