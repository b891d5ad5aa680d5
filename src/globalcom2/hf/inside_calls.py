"""Calls in which visual tokens leave inside the language model. What cannot be is refused before work starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.hf.active import Short
from globalcom2.hf.cache import CACHE
from globalcom2.hf.inside import Drops, drops_of
from globalcom2.hf.inside_hooks import ON_OUTPUT, layers_of
from globalcom2.hf.inside_report import Inside, columns_of
from globalcom2.hf.inside_run import Run
from globalcom2.hf.packed import ENDS, FULL, layer_kinds
from globalcom2.hf.positions import begins_of_samples
from globalcom2.hf.report import ImageReport
from globalcom2.hf.shortening import Chosen, Rewriting
from globalcom2.hf.visuals import Visuals

LANGUAGE_MODELS = ("llama", "mistral", "qwen2", "qwen3")
"""`model_type` of the language models whose layers are known to take what the hooks hand them."""
KERNELS = ("sdpa", "eager")
ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "custom_generate")
"""Arguments of generate under which the prompt's last token is not the last of the first pass."""


def inside_model(model: Any, inside: str | None, layer: int | None, share: float | None) -> Drops | None:
    """The drops in a model's language model; None where nothing leaves.

    Raises:
        InputError: It has too few layers.
        UnsupportedModelError: Tokens cannot leave in it, with the reason.
    """
    if inside is None:
        return None
    text = model.config.get_text_config()
    kinds = layer_kinds(model) - FULL
    if getattr(text, "sliding_window", None) is not None and not getattr(text, "layer_types", None):
        kinds = {"sliding_attention"}
    why = ""
    if hasattr(model.config, "deepstack_layer_map"):
        why = "adds visual features in several layers, at the places of all visual tokens"
    elif kinds:
        why = f"has layers of another kind than full attention ({', '.join(sorted(kinds))}), which go by neighbours"
    elif text.model_type not in LANGUAGE_MODELS:
        why = f"has a language model ({text.model_type}) in which nobody has compared it with tokens removed by hand"
    if why:
        raise UnsupportedModelError(
            f"inside must be left out for this {model.config.model_type}, got {inside!r}: it {why}. Language models that "
            f"can lose tokens inside: {', '.join(LANGUAGE_MODELS)}, with full attention in all layers."
        )
    return drops_of(inside, layer, share, len(layers_of(model)))


def check_call(model: Any, call: dict[str, Any], *, direct: bool, cached: int) -> None:
    """Raise `InputError` for a call in which visual tokens cannot leave inside the language model.

    Args:
        model: The model that is called.
        call: Keyword arguments of `generate` or `forward`.
        direct: Whether they are those of `forward`.
        cached: Tokens that the call's cache holds.
    """
    kernel = model.config.get_text_config()._attn_implementation
    if kernel not in KERNELS:
        raise InputError(
            f"attn_implementation must be {' or '.join(KERNELS)} with inside, got {kernel!r}. Set it when the model is loaded."
        )
    if cached:
        raise InputError(
            f"{CACHE} must be empty for a prompt with images and inside, got one of {cached} tokens. Pass the whole "
            "conversation with a new cache."
        )
    for name in ("labels", "shift_labels", *ENDS, "seq_idx"):
        if call.get(name) is not None:
            raise InputError(
                f"{name} must be left out with inside, got some: a loss is about all tokens of a prompt, and some leave on "
                "the way. Train without inside."
            )
    cache = call.get(CACHE)
    if cache is not None and not isinstance(cache, DynamicCache):
        raise InputError(
            f"{CACHE} must be a DynamicCache with inside, got {type(cache).__name__}: its layers are of several lengths."
        )
    _check_packed(call)
    if direct:
        _check_checkpointing(model)
    else:
        _check_generate(model, call)


def _check_packed(call: dict[str, Any]) -> None:
    positions = call.get("position_ids")
    if not isinstance(positions, Tensor) or call.get("attention_mask") is not None:
        return
    real = torch.ones_like(positions, dtype=torch.bool)
    if bool(begins_of_samples(positions, real, by_gaps=True)[:, 1:].any()):
        raise InputError(
            "position_ids must be those of one sample per row with inside, got several samples in a row. Pad them into rows "
            "of their own."
        )


def _check_checkpointing(model: Any) -> None:
    layers = layers_of(model)
    if torch.is_grad_enabled() and any(
        getattr(own, "gradient_checkpointing", False) and own.training for own in layers
    ):
        raise InputError(
            "gradient checkpointing must be off with inside, got it on: what it computes again would have other lengths. Call "
            "model.gradient_checkpointing_disable()."
        )


def _check_generate(model: Any, call: dict[str, Any]) -> None:
    given = [call, vars(call["generation_config"]) if call.get("generation_config") is not None else {}]
    given.append(vars(model.generation_config))
    for name in (*ASSISTED, "prefill_chunk_size"):
        value = next((own[name] for own in given if own.get(name) is not None), None)
        if value is not None:
            shown = value if isinstance(value, int | str) else type(value).__name__
            raise InputError(
                f"{name} must be left out with inside, got {shown!r}: the prompt must be read in one pass, with its last "
                "token at the end."
            )
    kind = next((own["cache_implementation"] for own in given if own.get("cache_implementation") is not None), None)
    if kind not in (None, "dynamic", "dynamic_full"):
        raise InputError(
            f"cache_implementation must be 'dynamic' with inside, got {kind!r}: the cache's layers are of several lengths."
        )


class Leaving:
    """One shortened call whose visual tokens leave inside the language model.

    Args:
        model: The model that is called.
        drops: When and how many.
        found: The call's images and videos.
        chosen: Which of their tokens the prompt keeps.
    """

    def __init__(self, model: Any, drops: Drops, found: list[Visuals], chosen: Chosen):
        placeholder = torch.stack([visuals.placeholder for visuals in found]).any(0)
        visual = chosen.prompt.gather(placeholder.long(), 0).bool()
        self.run = Run(drops, visual, chosen.prompt.real)
        self.found, self.chosen, self.depth = found, chosen, len(layers_of(model))

    def entries(self) -> list[list[ImageReport]]:
        """The report's entries of each modality, which tell of tokens that left."""
        chosen, found = self.chosen, []
        for entries, visuals, places in zip(chosen.entries, self.found, chosen.places, strict=True):
            columns = columns_of(chosen.prompt, visuals.placeholder, visuals.lengths)
            insides = [
                Inside(self.run, entry.row, own, order, self.depth)
                for entry, own, order in zip(entries, columns, places, strict=True)
            ]
            found.append([replace(entry, inside=own) for entry, own in zip(entries, insides, strict=True)])
        return found

    def mark(self, short: Short, outputs: dict[str, Any], how: Rewriting) -> Short:
        """The call, with the run where the forward finds it."""
        for output in outputs.values():
            setattr(output, ON_OUTPUT, self.run)
        restored = how.direct and (how.full_logits or bool(short.call.get("logits_to_keep")))
        return replace(short, run=self.run, restored=restored)
