"""Read one attention row of one layer while the model's own kernel (sdpa, flash, eager) does the work.

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
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from globalcom2.errors import UnsupportedModelError

PREFIX = "globalcom2|"


Reader = Callable[[Tensor, Tensor, Any, "float | None"], Tensor]
"""Makes rows (views, sequence) of a kernel's query, key, mask and scaling."""


@dataclass
class Recording:
    """Rows of one encoder call: wanted from `module`'s tap, (views, sequence) per pass of the tower."""

    module: nn.Module | None
    read: Reader
    rows: list[Tensor]


# Per thread and task, so that concurrent calls on one model do not mix.
_recording: ContextVar[Recording | None] = ContextVar("globalcom2_tap", default=None)


@contextmanager
def record(module: nn.Module | None, read: Reader) -> Iterator[Recording]:
    """Collect what `read` makes of `module`'s attention in the block; a module inside torch.compile included."""
    recording = Recording(module, read, [])
    token = _recording.set(recording)
    try:
        yield recording
    finally:
        _recording.reset(token)


def install(module: nn.Module) -> None:
    """Put the tap on one attention module; does nothing if it is there already."""
    config = getattr(module, "config", None)
    implementation = getattr(config, "_attn_implementation", None)
    if config is None or not isinstance(implementation, str):
        raise UnsupportedModelError(
            f"the vision tower's attention must use transformers' attention interface, got {type(module).__name__}."
        )
    if implementation.startswith(PREFIX):
        return
    name = PREFIX + implementation
    # Stays registered: a deep copy made inside a block must work after it.
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _tapped(implementation))
    tapped = copy.copy(config)
    tapped._attn_implementation_internal = name
    tapped._globalcom2_untapped = config
    module.config = tapped


def uninstall(module: nn.Module) -> None:
    """Take the tap off a module, if it has one."""
    untapped = (
        getattr(module, "config", None).__dict__.get("_globalcom2_untapped") if hasattr(module, "config") else None
    )
    if untapped is not None:
        module.config = untapped


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
    recording = _recording.get()
    if recording is None or recording.module is not module:
        return
    # Flash kernels get views of several lengths end to end, and where they end.
    lengths = [query.shape[2]] if ends is None else ends.diff().tolist()
    with torch.no_grad():
        for own, keys in zip(query.split(lengths, 2), key.split(lengths, 2), strict=True):
            recording.rows.append(recording.read(own, keys, mask, scaling))


def reader(score: str, cls_index: int | None) -> Reader:
    """What to read for a score type (any but "similarity") in a tower with [CLS] at `cls_index`.

    Without [CLS], "logits" and "attention" are the row of the mean query, a stand-in for it.
    """
    if score == "received":
        return received_attention
    mean = cls_index is None or score == "mean_query"
    return partial(attention_row, cls_index=cls_index, softmax=score == "attention", mean=mean)


def attention_row(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    cls_index: int | None,
    softmax: bool,
    mean: bool = False,
) -> Tensor:
    """One row of an attention map, averaged over heads.

    Args:
        query: (views, heads, sequence, head_dim), as the kernel sees it.
        key: The same; may have fewer heads (grouped queries).
        mask: None, a 4-D mask (additive or bool), or 1 where a key is real, (views, sequence).
        scaling: Factor on the products; None means head_dim ** -0.5.
        cls_index: Where [CLS] stands, if anywhere: the row, unless `mean`.
        softmax: True for attention probabilities, False for the logits before the softmax.
        mean: Take the mean query of all tokens but [CLS] and padding. Its logits are the mean of theirs, for the price
            of one row.

    Returns:
        float32 (views, sequence).
    """
    line = _key_mask(mask)
    if mean or cls_index is None:
        counts = _shown(line, query)
        if cls_index is not None:
            counts[:, :, cls_index] = 0
        row = (query * counts).sum(2, keepdim=True) / counts.sum(2, keepdim=True)
    else:
        row = query[:, :, cls_index][:, :, None]
    logits = _logits(row, key, line, scaling)[:, :, 0]
    return (logits.softmax(-1) if softmax else logits).mean(1)


ROWS = 128  # queries at a time: a chunk of the map, never the whole


def received_attention(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """How much attention every token receives, averaged over heads and queries but padding; sums to one in each view.

    Args:
        query: (views, heads, sequence, head_dim), as the kernel sees it.
        key: The same; may have fewer heads (grouped queries).
        mask: None, a 4-D mask (additive or bool), or 1 where a key is real, (views, sequence).
        scaling: Factor on the products; None means head_dim ** -0.5.

    Returns:
        float32 (views, sequence).
    """
    received = torch.zeros(key.shape[0], key.shape[2], device=key.device)
    line = _key_mask(mask)
    counts = _shown(line, query)
    for first in range(0, query.shape[2], ROWS):
        rows = slice(first, first + ROWS)
        received += (_logits(query[:, :, rows], key, line, scaling).softmax(-1) * counts[:, :, rows]).sum(2).mean(1)
    return received / counts.sum((1, 2, 3))[:, None]


def _key_mask(mask: Any) -> Tensor | None:
    """Which keys are padding, (views, 1, 1, sequence), additive or bool: vision towers show all queries the same ones."""
    if not isinstance(mask, Tensor):
        return None
    return mask[:, :1, :1] if mask.ndim == 4 else mask.bool()[:, None, None]  # flash kernels get (views, sequence)


def _shown(line: Tensor | None, query: Tensor) -> Tensor:
    """1 for queries of real tokens and 0 for padding, float (views, 1, sequence, 1)."""
    if line is None:
        return query.new_ones(query.shape[0], 1, query.shape[2], 1, dtype=torch.float32)
    shown = line if line.dtype == torch.bool else line == 0
    return shown.mT.float().expand(query.shape[0], -1, -1, -1).clone()


def _logits(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """float32 (views, heads, queries, sequence)."""
    if key.shape[1] != query.shape[1]:
        key = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = (query.float() * scale) @ key.float().mT
    if mask is None:
        return logits
    return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
