"""Put a compression between a model and its callers, and take it away again without a trace.

Only the instance is touched: an attribute `generate`, an attribute `_expand_multimodal_outputs`, two forward hooks and
the taps. Everything inside `generate` then works on a prompt that is simply shorter.
"""

from __future__ import annotations

import inspect
import threading
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel

from globalcom2.adapters import tap
from globalcom2.errors import UnsupportedModelError
from globalcom2.hf.cache import CACHE, recall, remember, with_cache_named
from globalcom2.hf.generating import Expand, Generate, running
from globalcom2.hf.prompt import PIXELS

if TYPE_CHECKING:
    from globalcom2.hf.compression import Compression

STATE = "_globalcom2"

# Blocks may be entered and left by several threads at once.
_lock = threading.RLock()


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
        if compression.attention is not None:
            tap.install(compression.attention)
        state = model.__dict__.get(STATE)
        if state is None:
            state = model.__dict__[STATE] = State()
            model.__dict__["generate"] = Generate(model, state)
            model.__dict__["_expand_multimodal_outputs"] = Expand(model.config)
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
        if compression is None or (id(model) in running.get() and all(kwargs.get(name) is None for name in PIXELS)):
            return None
        names = list(inspect.signature(type(model).forward).parameters)[1:]
        call = with_cache_named({**dict(zip(names, args, strict=False)), **kwargs})
        cache = call.get(CACHE)
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
        for encoded in (kwargs.get("mm_encoder_outputs") or {}).values():
            memory = getattr(encoded, "globalcom2_memory", None)
            if memory is not None:
                remember(getattr(output, CACHE, None), memory)
                return
