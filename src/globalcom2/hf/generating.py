"""Stands in for a model's `generate`: everything that counts or shows prompt tokens is corrected for the shorter prompt."""

from __future__ import annotations

import copy
import functools
import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from globalcom2.errors import InputError
from globalcom2.hf.active import Patch, Short, part_of_call
from globalcom2.hf.cache import CACHE, Memory, cache_of, cached_length, recall, remember, with_cache_named
from globalcom2.hf.direct import check_cache
from globalcom2.hf.inside_hooks import around, run_on
from globalcom2.hf.prompt import PIXELS


class Generate(Patch):
    """Stands in for a model's `generate`."""

    stands_for = "generate"

    def original(self, call: dict[str, Any], memory: Memory | None = None) -> Any:
        """The model's own generate; `memory` is that of a cache that is continued."""
        generate = self.before if self.before is not None else type(self.model).generate.__get__(self.model)
        # A shortened call has no pixels left.
        with part_of_call(self.state, through=any(call.get(name) is not None for name in PIXELS), memory=memory):
            return generate(**call)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = list(inspect.signature(type(self.model).generate).parameters)[1:]
        call = with_cache_named({**dict(zip(names, args, strict=False)), **kwargs})
        with self.state.call(self.model):
            compression = self.state.active
            if compression is None:
                return self.original(call)
            self.state.warn_of_others()
            if call.get("inputs") is not None and "input_ids" not in call and not call["inputs"].is_floating_point():
                call["input_ids"] = call.pop("inputs")
            ids, cache = call.get("input_ids"), call.get(CACHE)
            memory = recall(cache, ids)
            if memory is not None:
                return self._continue(call, memory)
            compression.forget()
            check_cache(call)
            given = call
            if ids is not None and call.get("attention_mask") is None:
                call = {**call, "attention_mask": _inferred_mask(self.model, call)}
            short = compression.shorten_call(self.model, call, cached=cached_length(cache))
            return self.original(given) if short is None else self._run(call, short)

    def _run(self, call: dict[str, Any], short: Short) -> Any:
        plain = short.memory.position_ids.ndim == 2
        if short.memory.original_positions and not bool(short.memory.ends.all()):
            cure = ", or use positions='closed'" if plain else ""
            raise InputError(
                "input_ids must not end with a visual token that is dropped, got such a prompt with positions='original': new "
                f"tokens would be numbered wrongly. End prompts with text, as chat templates do{cure}."
            )
        if plain and short.memory.original_positions and _setting(self.model, call, "use_cache") is False:
            raise InputError(
                "use_cache must not be False with positions='original', got False: without a cache, transformers takes "
                "gaps in positions for packed sequences. Use positions='closed'."
            )
        try:
            with short.clock.phase("generation"), around(self.model, short.run):
                out = self.original(_adapted(self.model, short.call, call["input_ids"], short.prompt.input_ids))
        finally:  # a streamer may have stopped the call after its cache was filled
            if cached_length(call.get(CACHE)) >= short.memory.short:
                remember(call.get(CACHE), short.memory)
        out = _restored(out, call["input_ids"], short.prompt.input_ids)
        remember(cache_of(out), short.memory)
        return out

    def _continue(self, call: dict[str, Any], memory: Memory) -> Any:
        """Go on from a cache that remembers its short prompt."""
        ids = call["input_ids"]
        call = memory.continued_prompt(call)
        with around(self.model, run_on(call.get(CACHE))):
            out = self.original(_adapted(self.model, call, ids, call["input_ids"]), memory)
        return _restored(out, ids, call["input_ids"])


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
    for name, kind in (("logits_processor", LogitsProcessorList), ("stopping_criteria", StoppingCriteriaList)):
        if call.get(name) is not None:
            call[name] = _shown_to(kind, call[name], ids, short)
    if call.get("prefix_allowed_tokens_fn") is not None:
        allowed = call["prefix_allowed_tokens_fn"]
        call["prefix_allowed_tokens_fn"] = lambda row, sequence: allowed(
            row, torch.cat([ids[row].to(sequence.device), sequence[short:]])
        )
    return call


class Shown:
    """A caller's own logits processor or stopping criterion, shown the prompt that the caller knows."""

    def __init__(self, function: Any, ids: Tensor, short: int):
        self.function, self.ids, self.short = function, ids, short
        # generate reads there which arguments a processor takes, and counts **kwargs as one.
        asked = inspect.signature(function.__call__)
        named = [p for p in asked.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        shown: Any = functools.partial(Shown.__call__, self)
        shown.__signature__ = asked.replace(parameters=named)
        self.__dict__["__call__"] = shown

    def __call__(self, sequences: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.function(_with_prompt(self.ids, sequences, self.short), *args, **kwargs)

    def __getattr__(self, name: str) -> Any:  # generate asks for a criterion's attributes
        if name == "function":
            raise AttributeError(name)
        return getattr(self.function, name)


def _shown_to(kind: type, functions: Any, ids: Tensor, short: int) -> Any:
    """A caller's list, with what `MergeCriteria` needs to show its items the caller's prompt."""
    made = (type(functions) if isinstance(functions, kind) else kind)(functions)
    made.globalcom2_prompt = (ids, short)
    return made


class MergeCriteria(Patch):
    """Stands in for a model's `_merge_criteria_processor_list`.

    transformers lets a caller's processor take the place of its own one of that type, so types must show until then.
    """

    stands_for = "_merge_criteria_processor_list"

    def __call__(self, default_list: Any, custom_list: Any) -> Any:
        own = type(self.model)._merge_criteria_processor_list(self.model, default_list, custom_list)
        prompt = getattr(custom_list, "globalcom2_prompt", None)
        if prompt is None:
            return own
        mine = {id(function) for function in custom_list}
        return type(own)([Shown(item, *prompt) if id(item) in mine else item for item in own])


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
