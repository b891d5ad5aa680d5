"""Put a compression between a model and its callers, and take it away again without a trace.

Only the instance is touched: an attribute `generate`, an attribute `_expand_multimodal_outputs`, two forward hooks and
the taps. Everything inside `generate` then works on a prompt that is simply shorter.
"""

from __future__ import annotations

import copy
import functools
import inspect
import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from globalcom2.adapters import tap
from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.memory import Memory, recall, remember

if TYPE_CHECKING:
    from globalcom2.compression import Compression, Short

STATE = "_globalcom2"

# Blocks may be entered and left by several threads at once.
_lock = threading.RLock()
# Models whose generate is running here: their prompt is short already, so the forward hooks have nothing to do.
_generating: ContextVar[frozenset[int]] = ContextVar("globalcom2_generating", default=frozenset())


def unwrap(model: Any) -> Any:
    """The transformers model inside PEFT, torch.compile and DDP wrappers."""
    seen = model
    while not isinstance(seen, PreTrainedModel) or hasattr(seen, "_orig_mod"):
        if hasattr(seen, "get_base_model"):
            seen = seen.get_base_model()
        elif hasattr(seen, "_orig_mod"):
            seen = seen._orig_mod
        elif isinstance(seen, torch.nn.Module) and "module" in seen._modules:
            seen = seen.module
        else:
            raise UnsupportedModelError(
                "model must be a transformers model (or one inside PEFT, torch.compile or DDP), got "
                f"{type(model).__name__}."
            )
    return seen


class State:
    """What is active on one model."""

    def __init__(self) -> None:
        self.stack: list[Compression] = []
        self.permanent: Compression | None = None
        self.inherited: list[Compression] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        """A copy of the model keeps what was applied, and follows the blocks that it was made in until they end."""
        clone = State()
        clone.permanent = self.permanent
        clone.inherited = self.stack or self.inherited
        memo[id(self)] = clone
        return clone

    @property
    def active(self) -> Compression | None:
        for entered in (self.stack, self.inherited):
            if entered:
                return entered[-1]
        return self.permanent


def active(model: Any) -> Compression | None:
    """The compression that calls of this (unwrapped) model go through now."""
    state: State | None = model.__dict__.get(STATE)
    return None if state is None else state.active


def push(model: Any, compression: Compression, *, permanent: bool = False) -> None:
    """Make `compression` the active one of its model, patching the model if it is the first."""
    with _lock:
        tap.install(compression.attention)
        state = model.__dict__.get(STATE)
        if state is None:
            state = model.__dict__[STATE] = State()
            model.__dict__["generate"] = Generate(model, state)
            model.__dict__["_expand_multimodal_outputs"] = Expand(model.config.image_token_id)
            model.register_forward_pre_hook(Shorten(state), with_kwargs=True)
            model.register_forward_hook(Remember(), with_kwargs=True)
        if permanent:
            state.permanent = compression
        else:
            state.stack.append(compression)


def pop(model: Any, compression: Compression) -> None:
    """Deactivate a compression; the last one to go leaves the model as it was."""
    with _lock:
        state = model.__dict__.get(STATE)
        entered = [] if state is None else [i for i, other in enumerate(state.stack) if other is compression]
        if entered:
            del state.stack[entered[-1]]
            _unpatch_if_idle(model)


def pop_permanent(model: Any) -> None:
    """Deactivate what `apply` activated, if anything."""
    with _lock:
        state = model.__dict__.get(STATE)
        if state is not None:
            state.permanent = None
            _unpatch_if_idle(model)


def _unpatch_if_idle(model: Any) -> None:
    if model.__dict__[STATE].active is not None:
        return
    before = model.__dict__["generate"].before
    for name in (STATE, "generate", "_expand_multimodal_outputs"):
        del model.__dict__[name]
    if before is not None:
        model.__dict__["generate"] = before
    for hooks, flags in (
        (model._forward_pre_hooks, model._forward_pre_hooks_with_kwargs),
        (model._forward_hooks, model._forward_hooks_with_kwargs),
    ):
        for key in [key for key, hook in hooks.items() if isinstance(hook, (Shorten, Remember))]:
            del hooks[key]
            flags.pop(key, None)
    for module in model.modules():
        tap.uninstall(module)


class Shorten:
    """Forward pre-hook: shortens direct calls, `model(**inputs)`, and their continuation token by token."""

    def __init__(self, state: State):
        self.state = state

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        compression = self.state.active
        if compression is None or (id(model) in _generating.get() and kwargs.get("pixel_values") is None):
            return None
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        cache = call.get("past_key_values")
        memory = recall(cache, call.get("input_ids"))
        if memory is not None:
            return (), memory.continued_step(call, cache.get_seq_length())  # type: ignore[union-attr]
        if cache is not None and cache.get_seq_length() > 0:
            return None
        short = compression.shorten_call(model, call, direct=True)
        return None if short is None else ((), short.call)


class Remember:
    """Forward hook: the cache that a shortened direct call filled remembers the short prompt."""

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        image = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        memory = getattr(image, "globalcom2_memory", None)
        if memory is not None:
            remember(getattr(output, "past_key_values", None), memory)


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
        token = _generating.set(_generating.get() | {id(self.model)})
        try:
            return generate(**call)
        finally:
            _generating.reset(token)

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        names = list(inspect.signature(type(self.model).generate).parameters)[1:]
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        compression = self.state.active
        if compression is None:
            return self.original(**call)
        if call.get("inputs") is not None and "input_ids" not in call and not call["inputs"].is_floating_point():
            call["input_ids"] = call.pop("inputs")
        ids, cache = call.get("input_ids"), call.get("past_key_values")
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
            remember(call.get("past_key_values"), short.memory)
        out = _restored(out, call["input_ids"], short.prompt.input_ids)
        remember(getattr(out, "past_key_values", None), short.memory)
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

    def __init__(self, image_token_id: int):
        self.image_token_id = image_token_id

    def __call__(
        self,
        input_ids: Tensor,
        mm_encoder_output: dict[str, Any],
        expand_size: int = 1,
        inputs_embeds: Tensor | None = None,
    ) -> dict[str, Any]:
        output = mm_encoder_output.get("image")
        if output is None:
            return mm_encoder_output
        features = torch.cat([item.flatten(0, -2) for item in output.pooler_output])
        counts = (input_ids == self.image_token_id).sum(1).tolist()
        rows = [part for part in features.split(counts) for _ in range(expand_size)]
        expanded = copy.copy(output)
        expanded.pooler_output = [torch.cat(rows)]
        return {**mm_encoder_output, "image": expanded}
