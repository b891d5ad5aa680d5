"""Calls of random pixels and words: the time of a call does not depend on what an image shows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.native import NativeAdapter
from globalcom2.core.layout import Layout
from globalcom2.lab.cutting import Native, cut

FLAT = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe",
        "glm4v", "glm4v_moe", "glm46v", "glm_ocr", "ernie4_5_vl_moe")  # fmt: skip
"""Families whose processors lay out all values of a patch in a row."""


def layout_of(config: Any, image: tuple[int, int]) -> Layout:
    """The layout of an image of (width, height) px.

    Raises:
        InputError, UnsupportedModelError: What of a size cannot be told without a processor.
    """
    if load_adapter(config.model_type).native:
        return cut(config, image).layout
    return load_adapter(config.model_type).layout(config, image[1], image[0])


def random_inputs(model: Any, image: tuple[int, int], text_tokens: int, batch: int) -> dict[str, Tensor]:
    """A batch of prompts, each with one image of (width, height) px and random words around it.

    Args:
        model: A supported model.
        image: (width, height) in px. Where images keep their resolution, the size that the processor makes of it.
        text_tokens: Length of a prompt without its image.
        batch: Prompts.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    adapter = load_adapter(config.model_type)
    if isinstance(adapter, NativeAdapter):
        native: Any = cut(config, image).native  # of every native family
        ids = _prompts(config, native.grid[0] * native.grid[1], text_tokens + native.tags, batch, generator)
        call = _native_pixels(adapter, model.base_model, native, batch, generator)
        call |= _kinds(adapter, config, ids)
    else:
        layout = layout_of(config, image)
        ids = _prompts(config, len(layout.slots), text_tokens, batch, generator)
        side = config.vision_config.image_size
        pixels = torch.randn(batch, layout.views, 3, side, side, generator=generator)
        call = {"pixel_values": pixels, "image_sizes": torch.tensor([[image[1], image[0]]] * batch)}
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **call}
    call = {name: x if name == "image_sizes" else x.to(model.device) for name, x in call.items()}
    return {**call, "pixel_values": call["pixel_values"].to(model.dtype)}


def _prompts(config: Any, visual: int, words: int, batch: int, generator: torch.Generator) -> Tensor:
    """Ids (batch, length): half of the words, the image's placeholders, the other words."""
    # Ids of ordinary words: away from special ones, which stand at the ends of most vocabularies.
    vocabulary = config.get_text_config().vocab_size
    text = torch.randint(vocabulary // 4, vocabulary // 2, (batch, words), generator=generator)
    text[text == config.image_token_id] = vocabulary // 4 - 1
    places = torch.full((batch, visual), config.image_token_id)
    half = words // 2
    return torch.cat([text[:, :half], places, text[:, half:]], 1)


def _native_pixels(
    adapter: NativeAdapter, base: Any, native: Native, batch: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Pixels of images that keep their resolution, and their sizes."""
    if adapter.grid_name == "image_sizes":
        pixels = torch.randn(batch, 3, *native.size, generator=generator)
        return {"pixel_values": pixels, "image_sizes": torch.tensor([native.size] * batch)}
    merge, side, vision = adapter.merge(base), adapter.side(base), base.config.vision_config
    height, width = (tokens * merge for tokens in native.grid)
    frames = getattr(vision, "temporal_patch_size", 1)
    pixels = torch.randn(batch * height * width, 3 * frames, side, side, generator=generator)
    if base.config.model_type in FLAT:
        pixels = pixels.flatten(1)
    return {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, height, width]] * batch)}


def _kinds(adapter: NativeAdapter, config: Any, ids: Tensor) -> dict[str, Tensor]:
    """What tells the kinds of tokens, for families whose positions or experts follow from it."""
    if not adapter.three_dimensional:
        return {}
    kinds = (ids == config.image_token_id).to(ids.dtype)
    names = ["mm_token_type_ids"] + ["moe_mm_token_type_ids"] * (config.model_type == "ernie4_5_vl_moe")
    return dict.fromkeys(names, kinds)
