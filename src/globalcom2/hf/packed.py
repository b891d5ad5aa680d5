"""Rows that hold several samples, one after another (padding-free training)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from globalcom2.errors import InputError
from globalcom2.hf.prompt import ShortPrompt

FULL = {"full_attention"}
ENDS = ("cu_seq_lens_q", "cu_seq_lens_k")
LONGEST = {"cu_seq_lens_q": "max_length_q", "cu_seq_lens_k": "max_length_k"}


def cut_lengths(call: dict[str, Any], prompt: ShortPrompt) -> None:
    """Rewrite what flash kernels are told of samples in one row: where they end, and the longest of them.

    Raises:
        InputError: Several rows, which flash kernels do not take with ends.
    """
    for name in ENDS:
        ends = call.get(name)
        if ends is None:
            continue
        if len(prompt.index) != 1:
            raise InputError(
                f"{name} must come with one row of input_ids, got {len(prompt.index)} rows. Put all samples into one row."
            )
        call[name] = torch.searchsorted(prompt.index[0].contiguous(), ends.cpu().long()).to(ends)
        if call.get(LONGEST[name]) is not None:
            longest = int(call[name].diff().max())
            given = call[LONGEST[name]]
            call[LONGEST[name]] = torch.full_like(given, longest) if isinstance(given, Tensor) else longest


def layer_kinds(model: Any) -> set[str]:
    """Kinds of the language model's layers, as transformers names them."""
    return set(getattr(model.config.get_text_config(), "layer_types", None) or FULL)


def caches(model: Any, call: dict[str, Any]) -> bool:
    """Whether a direct call fills a cache. Without one, transformers tells samples apart by their positions."""
    layers = model.modules() if torch.is_grad_enabled() else ()
    if any(getattr(layer, "gradient_checkpointing", False) and layer.training for layer in layers):
        return False
    places = (model.config, model.config.get_text_config())
    given = [call.get("use_cache"), *(getattr(config, "use_cache", None) for config in places)]
    return bool(next((value for value in given if value is not None), True))


def check_padding(model: Any, prompt: ShortPrompt) -> None:
    """Raise `InputError` for padding between a cached prefix and prompts that some layers would not skip."""
    if not bool(prompt.placed.all()) and layer_kinds(model) != FULL:
        raise InputError(
            "input_ids after a cached prefix must be of one length when shortened, since layers of this language model "
            f"({', '.join(sorted(layer_kinds(model) - FULL))}) do not skip padding, got {len(prompt.index)} prompts of "
            "several lengths. Ask one prompt at a time, or leave the cache out."
        )


def block_mask(model: Any, samples: Tensor, real: Tensor) -> Tensor:
    """The mask (batch, 1, short, short) under which a token sees those before it in its own sample, additive.

    Args:
        model: Says which attention it has, and its number format.
        samples: int (batch, short), the sample of each token.
        real: bool (batch, short).

    Raises:
        InputError: An attention that takes no such mask.
    """
    config, kinds = model.config.get_text_config(), layer_kinds(model)
    if config._attn_implementation not in ("sdpa", "eager") or kinds != FULL:
        raise InputError(
            "positions must be 'closed' for rows of several samples with this attention "
            f"({config._attn_implementation}, {', '.join(sorted(kinds))}), got 'original'."
        )
    seen = (samples[:, :, None] == samples[:, None, :]).tril() & real[:, None, :]
    seen = seen | torch.eye(samples.shape[1], dtype=torch.bool)  # padding sees itself: no row without a key
    return torch.zeros(seen.shape, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)[:, None]
