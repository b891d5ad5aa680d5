"""Put a compression between a model and its callers, and take it away again without a trace.

Only the instance is touched: an attribute `generate`, an attribute `_expand_multimodal_outputs`, a forward pre-hook and
the taps. Everything inside `generate` then works on a prompt that is simply shorter.
"""

from __future__ import annotations

import copy
import functools
import inspect
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from globalcom2.adapters import tap
from globalcom2.errors import InputError, UnsupportedModelError

if TYPE_CHECKING:
    from globalcom2.compression import Compression, Short

STATE = "_globalcom2"


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
                f"model must be a transformers model (or one inside PEFT, torch.compile or DDP), got {type(model).__name__}."
            )
    return seen


class State:
    """What is active on one model. A deep copy of the model shares it: the copy compresses while the block lasts."""

    def __init__(self, owner: Any) -> None:
        self.owner = weakref.ref(owner)
        self.stack: list[Compression] = []
        self.permanent: Compression | None = None
        self.undo: list[Callable[[], None]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> State:
        return self

    @property
    def active(self) -> Compression | None:
        return self.stack[-1] if self.stack else self.permanent


def active(model: Any) -> Compression | None:
    """The compression that calls of this (unwrapped) model go through now."""
    state: State | None = model.__dict__.get(STATE)
    return None if state is None else state.active


def push(model: Any, compression: Compression, *, permanent: bool = False) -> None:
    """Make `compression` the active one of its model, patching the model if it is the first."""
    state = _own_state(model)
    if state is None:
        state = model.__dict__[STATE] = State(model)
        _patch(model, state)
    state.undo.append(tap.install(compression.attention))
    if permanent:
        state.permanent = compression
    else:
        state.stack.append(compression)


def pop(model: Any, compression: Compression) -> None:
    """Deactivate a compression; the last one to go leaves the model as it was."""
    state = _own_state(model)
    if state is None:
        return
    for i in reversed(range(len(state.stack))):
        if state.stack[i] is compression:
            del state.stack[i]
            break
    _unpatch_if_idle(model, state)


def pop_permanent(model: Any) -> None:
    """Deactivate what `apply` activated, if anything."""
    state = _own_state(model)
    if state is not None:
        state.permanent = None
        _unpatch_if_idle(model, state)


def _own_state(model: Any) -> State | None:
    """The model's state; what a deep copy carries over from its original is cleared away first."""
    state: State | None = model.__dict__.get(STATE)
    if state is None or state.owner() is model:
        return state
    for name in (STATE, "generate", "_expand_multimodal_outputs"):
        model.__dict__.pop(name, None)
    for key, hook in list(model._forward_pre_hooks.items()):
        if isinstance(hook, ForwardHook):
            del model._forward_pre_hooks[key]
            model._forward_pre_hooks_with_kwargs.pop(key, None)
    for module in model.modules():
        tap.strip(module)
    return None


def _unpatch_if_idle(model: Any, state: State) -> None:
    if state.active is None:
        for undo in reversed(state.undo):
            undo()
        del model.__dict__[STATE]


def _patch(model: Any, state: State) -> None:
    before = model.__dict__.get("generate")
    model.generate = Generate(model, state)
    hook = model.register_forward_pre_hook(ForwardHook(state), with_kwargs=True)
    model._expand_multimodal_outputs = _Expand(model.config.image_token_id)

    def undo() -> None:
        hook.remove()
        del model.__dict__["_expand_multimodal_outputs"]
        if before is None:
            del model.__dict__["generate"]
        else:
            model.generate = before

    state.undo.append(undo)


class ForwardHook:
    """Shortens direct calls, `model(**inputs)`. Inside `generate` there are no pixels left, so it does nothing there."""

    def __init__(self, state: State):
        self.state = state

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        compression = self.state.active
        if compression is None:
            return None
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        short = compression.shorten_call(model, {**dict(zip(names, args, strict=False)), **kwargs})
        return None if short is None else ((), short.call)


class Generate:
    """Stands in for a model's `generate`."""

    def __init__(self, model: Any, state: State):
        self.model = model
        self.state = state
        self.original: Callable[..., Any] = model.generate
        functools.update_wrapper(self, self.original)

    def __deepcopy__(self, memo: dict[int, Any]) -> Generate:
        clone = copy.copy(self)
        clone.model = memo.get(id(self.model), self.model)
        clone.original = type(clone.model).generate.__get__(clone.model)
        return clone

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compression = self.state.active
        if compression is None:
            return self.original(*args, **kwargs)
        names = inspect.signature(type(self.model).generate).parameters
        call = {**dict(zip(list(names)[1:], args, strict=False)), **kwargs}
        if (
            call.get("inputs") is not None
            and "input_ids" not in call
            and call["inputs"].dtype in (torch.int64, torch.int32)
        ):
            call["input_ids"] = call.pop("inputs")
        cache = call.get("past_key_values")
        if cache is not None and cache.get_seq_length() > 0:
            return self._continue(call)
        if call.get("attention_mask") is None and call.get("input_ids") is not None:
            call["attention_mask"] = _inferred_mask(self.model, call)
        short = compression.shorten_call(self.model, call)
        if short is None:
            return self.original(*args, **kwargs)
        return self._run(call["input_ids"], short)

    def _run(self, ids: Tensor, short: Short) -> Any:
        prompt = short.prompt
        with short.clock.phase("generation"):
            out = self.original(**_adapted(self.model, short.call, ids, prompt.input_ids))
        mask = prompt.attention_mask
        return _restored(out, ids, prompt.input_ids, torch.ones_like(prompt.input_ids) if mask is None else mask)

    def _continue(self, call: dict[str, Any]) -> Any:
        """Go on from a cache: one that we made remembers its short prompt, any other passes through."""
        ids, memory = call.get("input_ids"), getattr(call["past_key_values"], STATE, None)
        if memory is None or ids is None:
            return self.original(**call)
        if call.get("pixel_values") is not None:
            raise InputError(
                "pixel_values must not be given when a compressed cache is continued, got new images. "
                "Start from the whole conversation without past_key_values."
            )
        length, short_ids, short_mask = memory
        call = {**call, "input_ids": torch.cat([short_ids, ids[:, length:]], 1)}
        if call.get("attention_mask") is not None:
            call["attention_mask"] = torch.cat([short_mask, call["attention_mask"][:, length:]], 1)
        out = self.original(**_adapted(self.model, call, ids, call["input_ids"]))
        return _restored(out, ids, call["input_ids"], None)


def _adapted(model: Any, call: dict[str, Any], ids: Tensor, short_ids: Tensor) -> dict[str, Any]:
    """`call` with everything that counts or shows prompt tokens corrected for the shorter prompt."""
    call = dict(call)
    dropped = ids.shape[1] - short_ids.shape[1]
    config = call.get("generation_config")
    config = None if config is None else copy.deepcopy(config)
    for name, new_name in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        # The order in which generate itself looks a length up.
        if call.get(name) is not None:
            call[name] = max(0, call[name] - dropped)
        elif call.get(new_name) is None and config is not None and getattr(config, name, None) is not None:
            setattr(config, name, max(0, getattr(config, name) - dropped))
        elif call.get(new_name) is None and (config is None or getattr(config, new_name, None) is None):
            default = getattr(model.generation_config, name, None)
            if default and getattr(model.generation_config, new_name, None) is None:
                if config is None:
                    call[name] = max(0, default - dropped)
                else:
                    setattr(config, name, max(0, default - dropped))
    if config is not None:
        call["generation_config"] = config
    if call.get("streamer") is not None:
        call["streamer"] = _Streamer(call["streamer"], ids)
    for name in ("logits_processor", "stopping_criteria"):
        if call.get(name) is not None:
            call[name] = type(call[name])([_full_prompt(f, ids, short_ids.shape[1]) for f in call[name]])
    if call.get("prefix_allowed_tokens_fn") is not None:
        allowed = call["prefix_allowed_tokens_fn"]
        call["prefix_allowed_tokens_fn"] = lambda row, sequence: allowed(
            row, torch.cat([ids[row].to(sequence.device), sequence[short_ids.shape[1] :]])
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


def _restored(out: Any, ids: Tensor, short_ids: Tensor, short_mask: Tensor | None) -> Any:
    """The result of a short call, with the caller's own prompt in front; its cache remembers the short one."""
    if isinstance(out, Tensor):
        return _with_prompt(ids, out, short_ids.shape[1])
    out.sequences = _with_prompt(ids, out.sequences, short_ids.shape[1])
    cache = getattr(out, "past_key_values", None)
    beams = cache is not None and cache.layers[0].keys.shape[0] != ids.shape[0]
    if cache is not None and short_mask is not None and not beams:
        setattr(cache, STATE, (ids.shape[1], short_ids, short_mask))
    return out


def _inferred_mask(model: Any, call: dict[str, Any]) -> Tensor | None:
    """The mask that generate infers from pad tokens when the caller gives none."""
    ids = call["input_ids"]
    pad, eos = model.generation_config.pad_token_id, model.generation_config.eos_token_id
    if pad is None or pad in (eos if isinstance(eos, list) else [eos]):
        return None
    padded = ids == pad
    return (~padded).long() if bool(padded.any()) else None


class _Streamer:
    """Shows a streamer the caller's own prompt first, then passes everything through."""

    def __init__(self, inner: Any, ids: Tensor):
        self.inner, self.prompt = inner, ids.cpu()
        self.first = True

    def put(self, value: Tensor) -> None:
        self.inner.put(self.prompt if self.first else value)
        self.first = False

    def end(self) -> None:
        self.inner.end()


class _Expand:
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
