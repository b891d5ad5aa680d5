"""Stands in for a model's `generate`: everything that counts or shows prompt tokens is corrected for the shorter prompt."""

from __future__ import annotations

import copy
import functools
import inspect
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from globalcom2.errors import InputError
from globalcom2.hf.cache import CACHE, Memory, recall, remember, with_cache_named

if TYPE_CHECKING:
    from globalcom2.hf.compression import Short
    from globalcom2.hf.patching import State

# Models whose generate is running here: their prompt is short already, so the forward hooks have nothing to do.
running: ContextVar[frozenset[int]] = ContextVar("globalcom2_running", default=frozenset())


class Generate:
    """Stands in for a model's `generate`."""

    def __init__(self, model: Any, state: State):
        self.model = model
        self.state = state
        self.before = model.__dict__.get("generate")
        functools.update_wrapper(self, model.generate)

    def __deepcopy__(self, memo: dict[int, Any]) -> Generate:
        clone = copy.copy(self)
        clone.model = memo.get(id(self.model), self.model)
        clone.state = copy.deepcopy(self.state, memo)
        clone.before = None
        return clone

    def original(self, **call: Any) -> Any:
        """The model's own generate."""
        generate = self.before if self.before is not None else type(self.model).generate.__get__(self.model)
        token = running.set(running.get() | {id(self.model)})
        try:
            return generate(**call)
        finally:
            running.reset(token)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = list(inspect.signature(type(self.model).generate).parameters)[1:]
        call = with_cache_named({**dict(zip(names, args, strict=False)), **kwargs})
        compression = self.state.active
        if compression is None:
            return self.original(**call)
        if call.get("inputs") is not None and "input_ids" not in call and not call["inputs"].is_floating_point():
            call["input_ids"] = call.pop("inputs")
        ids, cache = call.get("input_ids"), call.get(CACHE)
        memory = recall(cache, ids)
        if memory is not None:
            return self._continue(call, memory)
        if cache is not None and cache.get_seq_length() > 0:
            return self.original(**call)
        given = call
        if ids is not None and call.get("attention_mask") is None:
            call = {**call, "attention_mask": _inferred_mask(self.model, call)}
        short = compression.shorten_call(self.model, call)
        if short is None:
            return self.original(**given)
        return self._run(call, short)

    def _run(self, call: dict[str, Any], short: Short) -> Any:
        if short.memory.original_positions and _setting(self.model, call, "use_cache") is False:
            raise InputError(
                "use_cache must not be False with positions='original', got False: without a cache, transformers takes "
                "gaps in positions for packed sequences. Use positions='closed'."
            )
        try:
            with short.clock.phase("generation"):
                out = self.original(**_adapted(self.model, short.call, call["input_ids"], short.prompt.input_ids))
        finally:  # a streamer may have stopped the call after its cache was filled
            remember(call.get(CACHE), short.memory)
        out = _restored(out, call["input_ids"], short.prompt.input_ids)
        remember(getattr(out, CACHE, None), short.memory)
        return out

    def _continue(self, call: dict[str, Any], memory: Memory) -> Any:
        """Go on from a cache that remembers its short prompt."""
        ids = call["input_ids"]
        call = memory.continued_prompt(call)
        return _restored(self.original(**_adapted(self.model, call, ids, call["input_ids"])), ids, call["input_ids"])


def _setting(model: Any, call: dict[str, Any], name: str) -> Any:
    """A generation setting, looked up in the order in which generate itself does."""
    for value in (
        call.get(name),
        getattr(call.get("generation_config"), name, None),
        getattr(model.generation_config, name, None),
    ):
        if value is not None:
            return value
    return None


def _adapted(model: Any, call: dict[str, Any], ids: Tensor, short_ids: Tensor) -> dict[str, Any]:
    """`call` with everything that counts or shows prompt tokens corrected for the shorter prompt."""
    call = dict(call)
    long, short = ids.shape[1], short_ids.shape[1]
    lengths = {}
    for name, new_name in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        value = _setting(model, call, name)
        if value and _setting(model, call, new_name) is None:
            lengths[name] = max(0, value - (long - short))
    if "max_length" in lengths and lengths["max_length"] <= short:
        raise InputError(
            f"max_length must be more than the prompt's {long} tokens, got {_setting(model, call, 'max_length')}. "
            "Use max_new_tokens to count new tokens only."
        )
    if call.get("generation_config") is not None:
        call["generation_config"] = copy.deepcopy(call["generation_config"])
        for name in [name for name in lengths if call.get(name) is None]:
            setattr(call["generation_config"], name, lengths.pop(name))
    call |= lengths
    if call.get("streamer") is not None:
        call["streamer"] = Streamer(call["streamer"], ids)
    for name in ("logits_processor", "stopping_criteria"):
        if call.get(name) is not None:
            call[name] = type(call[name])([_full_prompt(f, ids, short) for f in call[name]])
    if call.get("prefix_allowed_tokens_fn") is not None:
        allowed = call["prefix_allowed_tokens_fn"]
        call["prefix_allowed_tokens_fn"] = lambda row, sequence: allowed(
            row, torch.cat([ids[row].to(sequence.device), sequence[short:]])
        )
    return call


def _full_prompt(function: Any, ids: Tensor, short: int) -> Any:
    """A caller's own logits processor or stopping criterion, shown the prompt that the caller knows."""

    @functools.wraps(function, updated=())
    def shown(sequences: Tensor, *args: Any, **kwargs: Any) -> Any:
        return function(_with_prompt(ids, sequences, short), *args, **kwargs)

    return shown


def _with_prompt(ids: Tensor, sequences: Tensor, short: int) -> Tensor:
    prompt = ids.to(sequences.device).repeat_interleave(sequences.shape[0] // ids.shape[0], 0)
    return torch.cat([prompt, sequences[:, short:]], 1)


def _restored(out: Any, ids: Tensor, short_ids: Tensor) -> Any:
    """The result of a short call, with the caller's own prompt in front."""
    if isinstance(out, Tensor):
        return _with_prompt(ids, out, short_ids.shape[1])
    out.sequences = _with_prompt(ids, out.sequences, short_ids.shape[1])
    return out


def _inferred_mask(model: Any, call: dict[str, Any]) -> Tensor | None:
    """The mask that generate infers from pad tokens when the caller gives none."""
    ids = call["input_ids"]
    pad, eos = _setting(model, call, "pad_token_id"), _setting(model, call, "eos_token_id")
    if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
        return None
    padded = ids == pad
    return (~padded).long() if bool(padded.any()) else None


class Streamer:
    """Shows a streamer the caller's own prompt first, then passes everything through."""

    def __init__(self, inner: Any, ids: Tensor):
        self.inner, self.prompt = inner, ids.cpu()
        self.first = True

    def put(self, value: Tensor) -> None:
        self.inner.put(self.prompt if self.first else value)
        self.first = False

    def end(self) -> None:
        self.inner.end()


class Expand:
    """Repeats features for beams and several returns by the placeholders of each prompt.

    The stock method splits by the length of each item; one item for the whole batch makes it repeat the batch in the
    wrong order without an error.
    """

    def __init__(self, config: Any):
        self.token_ids = {name: getattr(config, f"{name}_token_id", None) for name in ("image", "video")}

    def __call__(
        self,
        input_ids: Tensor,
        mm_encoder_output: dict[str, Any],
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, Any]:
        expanded = dict(mm_encoder_output)
        for name, token in self.token_ids.items():
            if token is not None and expanded.get(name) is not None:
                expanded[name] = _repeated(expanded[name], (input_ids == token).sum(1).tolist(), expand_size)
        return expanded


def _repeated(output: Any, counts: list[int], times: int) -> Any:
    """A copy of an encoder's output for prompts that hold so many of its features each, each prompt `times` times."""

    def repeated(items: Any) -> Any:
        parts = torch.cat([item.flatten(0, -2) for item in items]).split(counts)
        rows = torch.cat([part for part in parts for _ in range(times)])
        return rows[None] if isinstance(items, Tensor) else [rows]

    expanded = copy.copy(output)
    levels = getattr(output, "deepstack_features", None)
    if output.pooler_output is not None:
        expanded.pooler_output = repeated(output.pooler_output)
    elif levels is not None:  # Granite 4 Vision: pairs of a layer and its features
        expanded.deepstack_features = [(layer, repeated(items)) for layer, items in levels]
    else:  # Llama 4 has its features there, and its model projects them.
        expanded.last_hidden_state = repeated(output.last_hidden_state)
    return expanded
