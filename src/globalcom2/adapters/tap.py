"""Read one attention row of one layer, or of several, while the model's own kernel (sdpa, flash, eager) does the work.

The layer's attention module gets a shallow copy of its config whose implementation name points at a wrapper around the
very same kernel. The wrapper additionally multiplies the [CLS] query with all keys: one row instead of the tokens x tokens
matrix that `output_attentions` would keep for every layer. Nothing is recorded outside `record`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from globalcom2.core.attention import attention_row, received_attention
from globalcom2.errors import UnsupportedModelError

PREFIX = "globalcom2|"


Reader = Callable[[Tensor, Tensor, Any, "float | None"], Tensor]
"""Makes rows (views, sequence, ...) of a kernel's query, key, mask and scaling."""


@dataclass
class Recording:
    """What one tap reads during one encoder call."""

    module: nn.Module | None
    """The attention module; None records nothing."""
    read: Reader
    rows: list[Tensor] = field(default_factory=list)
    """What `read` returned, per pass of the tower."""


# Per thread and task, so that concurrent calls on one model do not mix.
_recordings: ContextVar[tuple[Recording, ...]] = ContextVar("globalcom2_tap", default=())
_seen: ContextVar[list[Any] | None] = ContextVar("globalcom2_outputs", default=None)


@contextmanager
def record(module: nn.Module | None, read: Reader, *more: Recording) -> Iterator[Recording]:
    """Collect what `read` makes of `module`'s attention in the block; a module inside torch.compile included.

    Args:
        module: An attention module with a tap on it; None records nothing.
        read: Makes rows of the kernel's arguments.
        *more: Further recordings to fill, of other modules or of the same one.

    Returns:
        The recording of `module`.
    """
    recording = Recording(module, read)
    token = _recordings.set((recording, *more))
    try:
        yield recording
    finally:
        _recordings.reset(token)


@contextmanager
def outputs_of(module: nn.Module | None) -> Iterator[list[Any]]:
    """Collect what a module returns in the block, in this thread or task; None collects nothing."""
    seen: list[Any] = []
    if module is None:
        yield seen
        return

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if _seen.get() is seen:
            seen.append(output)

    token, hook = _seen.set(seen), module.register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()
        _seen.reset(token)


def install(module: nn.Module) -> None:
    """Put the tap on one attention module; counted, since two models may share a tower and blocks may be nested."""
    config = getattr(module, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    if config is None or not isinstance(implementation, str):
        raise UnsupportedModelError(
            f"the vision tower's attention must use transformers' attention interface, got {type(module).__name__}."
        )
    if implementation.startswith(PREFIX):
        config._globalcom2_taps += 1
        return
    name = register(implementation)
    tapped = copy.copy(config)
    tapped._attn_implementation_internal = name
    tapped._globalcom2_untapped = config
    tapped._globalcom2_taps = 1
    module.config = tapped


def register(implementation: str) -> str:
    """Make the tapped kernel known to transformers under a name of its own, and return that name.

    It stays registered: a deep copy made inside a block must work after it.
    """
    name = PREFIX + implementation
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _tapped(implementation))
    return name


def untapped(module: nn.Module) -> str:
    """The attention implementation that the module has without its tap."""
    return str(module.config._attn_implementation).removeprefix(PREFIX)  # type: ignore[union-attr]


def uninstall(module: nn.Module) -> None:
    """Take back one `install`; the last one restores the module's own configuration."""
    config = getattr(module, "config", None)
    if getattr(config, "_globalcom2_untapped", None) is None:
        return
    config._globalcom2_taps -= 1  # type: ignore[union-attr]
    if config._globalcom2_taps == 0:  # type: ignore[union-attr]
        module.config = config._globalcom2_untapped  # type: ignore[union-attr]


def _tapped(implementation: str) -> Callable[..., Any]:
    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
    ) -> Any:
        home = sys.modules[type(module).__module__]
        # A file with two eager kernels keeps the plain name for the language model.
        eager = getattr(home, "vision_eager_attention_forward", getattr(home, "eager_attention_forward", None))
        kernel = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager)
        _tap(module, query, key, attention_mask, kwargs.get("scaling"), kwargs.get("cu_seq_lens_q"))
        return kernel(module, query, key, value, attention_mask, *args, **kwargs)

    return attention


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _tap(
    module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None, ends: Tensor | None = None
) -> None:
    wanted = [recording for recording in _recordings.get() if recording.module is module]
    if not wanted:
        return
    # Flash kernels get views of several lengths end to end, and where they end.
    lengths = [query.shape[2]] if ends is None else ends.diff().tolist()
    with torch.no_grad():
        for own, keys in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
            for recording in wanted:
                recording.rows.append(recording.read(own, keys, mask, scaling))


def mean_keys(query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> Tensor:
    """A `Reader` of the keys as the kernel sees them, mean over heads, float32 (views, sequence, head_dim)."""
    return key.float().mean(1)


def in_segments(read: Reader, lengths: list[int] | None) -> Reader:
    """`read` in a tower whose one sequence has views of these lengths end to end, told apart by its mask; None: as it is."""

    def rows(query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> Tensor:
        if lengths is None or query.shape[2] != sum(lengths):  # a flash kernel's views come one by one
            return read(query, key, mask, scaling)
        views = zip(query.split(lengths, 2), key.split(lengths, 2), strict=True)
        return torch.cat([read(*view, None, scaling) for view in views], 1)

    return rows


def reader(score: str, cls_index: int | None) -> Reader:
    """What to read for a score type (any but "similarity") in a tower with [CLS] at `cls_index`.

    Without [CLS], "logits" and "attention" are the row of the mean query, a stand-in for it.
    """
    if score == "received":
        return received_attention
    mean = cls_index is None or score == "mean_query"
    return partial(attention_row, cls_index=cls_index, softmax=score == "attention", mean=mean)
