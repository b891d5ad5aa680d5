"""Put a compression between a model and its callers, and take it away again without a trace.

Only the instance is touched: attributes `generate`, `forward`, `_expand_multimodal_outputs` and
`_merge_criteria_processor_list`, three forward hooks and the taps. Everything inside `generate` then works on a prompt
that is simply shorter.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationMixin, PreTrainedModel

from globalcom2.adapters import tap
from globalcom2.errors import UnsupportedModelError
from globalcom2.hf.active import STATE, Compressor, State, lock, state_of, unpatch_if_idle
from globalcom2.hf.beams import Expand
from globalcom2.hf.direct import Bypassed, Finish, Forward, Heal
from globalcom2.hf.generating import Generate, MergeCriteria


def unwrap(model: Any) -> Any:
    """The transformers model inside PEFT, torch.compile and DDP wrappers.

    Raises:
        UnsupportedModelError: There is none, or one without a language model's head.
    """
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
    if not isinstance(seen, GenerationMixin):
        raise UnsupportedModelError(
            f"model must be one that generates, got {type(seen).__name__}, which has no head. Pass the whole model "
            "(...ForConditionalGeneration)."
        )
    return seen


def push(model: Any, compression: Compressor) -> None:
    """A block begins: make `compression` the active one of its model, patching the model if it is the first."""
    with lock:
        _patched(model, compression).enter(compression)


def pop(model: Any, compression: Compressor) -> None:
    """A block ends; the last one to go leaves the model as it was."""
    with lock:
        state = state_of(model)
        if state is not None and state.leave(compression):
            state.take_back(compression)
            unpatch_if_idle(model, state)


def set_permanent(model: Any, compression: Compressor) -> None:
    """Activate what `apply` was given, in place of what it was given before."""
    with lock:
        state = _patched(model, compression)
        before, state.permanent = state.permanent, compression
        state.take_back(before)


def pop_permanent(model: Any) -> None:
    """Deactivate what `apply` activated, if anything."""
    with lock:
        state = state_of(model)
        if state is not None:
            state.permanent = None
            unpatch_if_idle(model, state)


def _patched(model: Any, compression: Compressor) -> State:
    """The model's state, with the compression's taps on. Nothing is changed if a tap cannot be put on."""
    put_on: list[torch.nn.Module] = []
    try:
        for module in compression.taps:
            tap.install(module)
            put_on.append(module)
    except Exception:
        for module in put_on:
            tap.uninstall(module)
        raise
    state = state_of(model)
    if state is None:
        state = State()
        state.adapters = compression.adapters
        standing = {
            STATE: state,
            "generate": Generate(model, state),
            "forward": Forward(model, state),
            "_expand_multimodal_outputs": Expand(model, state),
            "_merge_criteria_processor_list": MergeCriteria(model, state),
        }
        model.__dict__.update(standing)
        model.register_forward_pre_hook(Heal(model, state), with_kwargs=True)
        model.register_forward_hook(Finish(model, state))
        if model.base_model is not model:
            model.base_model.register_forward_pre_hook(Bypassed(model, state))
    state.tapped += put_on
    return state
