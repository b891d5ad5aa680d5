"""Remembers a shortened prompt on the cache that it filled, so that a conversation can go on.

Callers continue a conversation with the full prompt: its ids, mask and positions. They are mapped to the short prompt
that the cache holds. A call that cannot be mapped raises `InputError`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from globalcom2.errors import InputError
from globalcom2.hf.positions import begins_of_samples, closed_positions, original_positions
from globalcom2.hf.prompt import PIXELS, ShortPrompt

ATTRIBUTE = "_globalcom2_memory"
INSIDE = "_globalcom2_inside"
"""Attribute of a cache whose later layers are shorter, since tokens left inside the language model: its `Run`."""
CACHE = "cache" if tuple(map(int, version("transformers").split(".")[:2])) >= (5, 24) else "past_key_values"
"""Name of the cache among arguments and in outputs. transformers 5.24 still takes the older name."""


def with_cache_named(call: dict[str, Any]) -> dict[str, Any]:
    """Rename a call's cache, if it has one, to the name in this version of transformers."""
    if CACHE == "past_key_values" or "past_key_values" not in call:
        return call
    call = dict(call)
    cache = call.pop("past_key_values")
    return call if call.get(CACHE) is not None else {**call, CACHE: cache}


def cached_length(cache: Any) -> int:
    """Number of tokens that a cache holds. 0 for None, and for the paged cache of continuous batching."""
    count = getattr(cache, "get_seq_length", None)
    return 0 if count is None else int(count())


def cache_of(output: Any) -> Any:
    """The cache in a model's output, which is an object or a tuple. None if there is none."""
    if isinstance(output, tuple):
        return next((item for item in output if isinstance(item, Cache)), None)
    return getattr(output, CACHE, None)


@dataclass(frozen=True)
class Memory:
    """A shortened prompt that a cache holds."""

    length: int
    """Tokens of the caller's prompt, including those that its cache held before."""
    prompt: ShortPrompt
    """The short prompt, also including those tokens."""
    attention_mask: Tensor
    """int (batch, short)."""
    position_ids: Tensor
    """int (batch, short) or (axes, batch, short): positions that the language model reads."""
    dropped: Tensor
    """int (batch,): real tokens dropped from each prompt."""
    original_positions: bool
    """Whether kept tokens have the positions of the full prompt."""
    last: Tensor
    """(batch, 1) or (axes, batch, 1): the position after which new tokens are numbered."""
    ends: Tensor
    """bool (batch,), on the host: whether the prompt's last token stayed."""
    unknown: int = 0
    """How many ids at the start are not known. They were in the cache of a direct call."""
    samples: Tensor | None = None
    """int (batch, short), on the host: sample of each token. None if rows are not packed, or a mask came."""
    fingerprint: Tensor | None = None
    """Keys of the prompt's last token, (rows, heads, dim). They change when a cache is filled again."""

    @property
    def short(self) -> int:
        """Length of the short prompt."""
        return self.attention_mask.shape[1]

    def to(self, device: torch.device) -> Memory:
        """Copy to a device, without waiting for it."""
        names = ("attention_mask", "position_ids", "dropped", "last")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        return replace(self, prompt=self.prompt.to(device), **moved)

    def continued_prompt(self, call: dict[str, Any]) -> dict[str, Any]:
        """Map a call of `generate` that has the whole conversation in its ids and mask to the short prompt."""
        _refuse_images(call)
        ids, given, places = call["input_ids"], call.get("attention_mask"), call.get("position_ids")
        if ids.shape[1] <= self.length or not self._begins(ids):
            raise InputError(
                f"input_ids must begin with the {self.length} tokens that filled past_key_values and go on, got "
                f"{ids.shape[1]} tokens. Pass the whole conversation, as transformers expects it with a cache."
            )
        tail = torch.ones_like(ids[:, self.length :]) if given is None else given[:, self.length :]
        begin = [ids[:, : self.unknown], self.prompt.input_ids[:, self.unknown :]]
        call = {
            **self.prompt.continued(call, self.length),
            "input_ids": torch.cat([*begin, ids[:, self.length :]], 1),
            "attention_mask": torch.cat([self.attention_mask.to(tail), tail], 1),
        }
        if places is not None:
            call["position_ids"] = torch.cat([self.position_ids, self._shifted(places[..., self.length :])], -1)
        elif self.original_positions:
            call["position_ids"] = torch.cat([self.position_ids, self.last + tail.cumsum(1)], -1)
        return call

    def continued_step(self, call: dict[str, Any], cached: int) -> dict[str, Any]:
        """Map a direct call with new tokens only. Its mask and positions may be those of the full prompt."""
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
            call["position_ids"] = self.last.to(ids.device) + steps
        else:
            call["position_ids"] = self._shifted(places)
        return call

    def _begins(self, ids: Tensor) -> bool:
        """Whether the ids of a conversation begin with the prompt that was shortened."""
        kept = self.prompt.gather(ids[:, : self.length], 0)
        mine = self.prompt.input_ids.masked_fill(~self.prompt.real, 0).to(kept.device)
        return bool(torch.equal(kept[:, self.unknown :], mine[:, self.unknown :]))

    def _shifted(self, places: Tensor) -> Tensor:
        """Map the caller's positions of tokens after the prompt to positions after the short prompt."""
        if self.position_ids.ndim == 3:  # transformers puts a row that numbers text before them, for masks alone
            axes = len(self.position_ids)
            return places[-axes:] if places.ndim == 3 else places.expand(axes, *self.last.shape[1:-1], -1)
        return places if self.original_positions else places - self.dropped.to(places)[:, None]


def memory_of_call(
    prompt: ShortPrompt, given: Tensor | None, mask: Tensor | None, length: int, original: bool, unknown: int = 0
) -> Memory:
    """Make the memory of a shortened call.

    Args:
        prompt: The shortened prompt.
        given: The caller's own positions, (batch or 1, length), or None.
        mask: The caller's mask, (batch, length), or None.
        length: Length of the caller's prompt.
        original: Whether to keep the full prompt's positions instead of closing the gaps.
        unknown: See `Memory`.
    """
    present = torch.ones(len(prompt.index), length, dtype=torch.int64) if mask is None else mask
    usual = original_positions(present)
    places = usual if given is None else given.expand_as(usual)
    order = torch.argsort(~present.bool(), dim=1, stable=True)  # real tokens first, padding of any side last
    begins = begins_of_samples(places.gather(1, order), present.bool().gather(1, order), by_gaps=mask is None)
    if original:
        positions = places
    else:
        kept = torch.zeros_like(places).scatter_reduce(1, prompt.index, prompt.real.to(places.dtype), "amax")
        closed = closed_positions(places.gather(1, order), kept.gather(1, order), begins)
        positions = torch.zeros_like(places).scatter(1, order, closed)
    samples = None
    if mask is None and bool(begins.any()):
        samples = prompt.gather(torch.zeros_like(places).scatter(1, order, begins.long().cumsum(1)), -1)
    dropped = present.bool().sum(1) - prompt.real.sum(1)
    short_positions = prompt.gather(positions, 0)
    # Padding that stayed after a prompt goes on counting, as the caller's does: generate numbers new tokens from it.
    lost = 0 if original else dropped[:, None]
    after = (places.gather(1, prompt.index) - lost).clamp(min=0)
    short_positions = torch.where(prompt.placed & ~prompt.real, after, short_positions)
    shown = present.bool()
    end = torch.where(shown, torch.arange(length), -1).amax(1, keepdim=True)
    stayed = torch.where(prompt.real, prompt.index, -1).amax(1, keepdim=True)
    last = (
        places.masked_fill(~shown, 0).amax(1, keepdim=True)
        if original
        else prompt.gather(positions, 0).amax(1, keepdim=True)
    )
    return Memory(
        length=length,
        prompt=prompt,
        attention_mask=prompt.gather(present, 0),
        position_ids=short_positions,
        dropped=dropped,
        original_positions=original,
        last=last,
        ends=(end == stayed)[:, 0],
        unknown=unknown,
        samples=samples,
    )


def memory_with_axes(
    prompt: ShortPrompt, positions: Tensor, mask: Tensor | None, length: int, unknown: int = 0
) -> Memory:
    """Make the memory of a shortened call whose tokens keep three-dimensional positions.

    New tokens are numbered from the prompt's last real token, as `generate` does. In some videos, others lie later in time.

    Args:
        prompt: The shortened prompt.
        positions: Of the full prompt, (axes, batch, length).
        mask: The caller's mask, (batch, length), or None.
        length: Length of the caller's prompt.
        unknown: See `Memory`.
    """
    present = torch.ones(len(prompt.index), length, dtype=torch.int64) if mask is None else mask
    end = torch.where(present.bool(), torch.arange(length), -1).amax(1, keepdim=True)
    stayed = torch.where(prompt.real, prompt.index, -1).amax(1, keepdim=True)
    short = prompt.gather(positions, 0)
    trailing = prompt.placed & ~prompt.real  # numbered as the caller's is
    short = torch.where(trailing, positions.gather(-1, prompt.index.expand_as(short)), short)
    return Memory(
        length=length,
        prompt=prompt,
        attention_mask=prompt.gather(present, 0),
        position_ids=short,
        dropped=present.bool().sum(1) - prompt.real.sum(1),
        original_positions=True,
        last=positions.gather(-1, end.clamp(min=0).expand(len(positions), -1, -1)),
        ends=(end == stayed)[:, 0],
        unknown=unknown,
    )


def remember(cache: Any, memory: Memory) -> None:
    """Put the memory on a cache that the short prompt has filled."""
    if cache is not None:
        setattr(cache, ATTRIBUTE, replace(memory, fingerprint=_fingerprint(cache, memory.short)))


def recall(cache: Any, input_ids: Tensor | None) -> Memory | None:
    """The memory on a cache. None for a cache that is empty or was filled uncompressed.

    Raises:
        InputError: The cache cannot be continued with these prompts.
    """
    memory: Memory | None = getattr(cache, ATTRIBUTE, None)
    if memory is None:
        return None
    if cached_length(cache) == 0:  # reset by its owner
        cache.__dict__.pop(ATTRIBUTE)
        cache.__dict__.pop(INSIDE, None)
        return None
    if input_ids is None:
        raise InputError("input_ids must be given to continue a compressed cache, got inputs_embeds.")
    if cached_length(cache) < memory.short:
        raise InputError(
            f"past_key_values must hold its whole prompt ({memory.short} tokens) to be continued, got "
            f"{cached_length(cache)}: it was cropped, or its call was interrupted. Start with a new cache."
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
    run = getattr(cache, INSIDE, None)
    length = short if run is None else run.shortest
    # Quantised and sliding-window layers do not keep the prompt's keys in place.
    if (
        not isinstance(keys, Tensor)
        or keys.ndim != 4
        or keys.shape[2] < length
        or getattr(cache.layers[-1], "is_sliding", False)
    ):
        return None
    return keys[:, :, length - 1].clone()


def _refuse_images(call: dict[str, Any]) -> None:
    for name in PIXELS:
        if call.get(name) is not None:
            raise InputError(
                f"{name} must not be given when a compressed cache is continued, got new images or videos. "
                "Start from the whole conversation without past_key_values."
            )
