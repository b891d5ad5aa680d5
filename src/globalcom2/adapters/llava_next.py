"""LLaVA-NeXT (1.6): CLIP tower with [CLS], thumbnail first, crops stitched, unpadded and ended by a newline per line."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import (
    LlavaNextModel,
    get_anyres_image_grid_shape,
    image_size_to_num_patches,
)

from globalcom2.adapters import Adapter, Layout
from globalcom2.errors import InputError, UnsupportedModelError


class LlavaNextAdapter(Adapter):
    """Adapter of `llava_next`."""

    projects_kept_only = True

    def check(self, base: Any) -> None:  # noqa: D102
        if base.config.vision_feature_select_strategy != "default":
            raise UnsupportedModelError(
                "vision_feature_select_strategy must be 'default' for llava_next, got "
                f"{base.config.vision_feature_select_strategy!r}: 'full' keeps [CLS] among the tokens. "
                "Set model.config.vision_feature_select_strategy = 'default'."
            )
        if base.config.vision_config.model_type != "clip_vision_model":
            raise UnsupportedModelError(
                "the vision tower of llava_next must be a CLIP tower with [CLS], got "
                f"{base.config.vision_config.model_type!r}."
            )

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        tower = getattr(base.vision_tower, "vision_model", base.vision_tower)
        layers = tower.encoder.layers
        if not -len(layers) <= layer < len(layers):
            raise InputError(
                f"layer must be in [{-len(layers)}, {len(layers) - 1}] for this vision tower, got {layer}."
            )
        return layers[layer].self_attn  # type: ignore[no-any-return]

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        sizes = call.get("image_sizes")
        if sizes is None:
            raise InputError(
                "image_sizes must be given with pixel_values, got None. Pass everything the processor returned."
            )
        sizes = sizes.tolist() if hasattr(sizes, "tolist") else list(sizes)
        if not all(isinstance(size, (list, tuple)) and len(size) == 2 for size in sizes):
            raise InputError(f"image_sizes must be (images, 2) heights and widths, got {call['image_sizes']!r:.80}.")
        strategy = call.get("vision_feature_select_strategy")
        if strategy not in (None, "default"):
            raise InputError(
                f"vision_feature_select_strategy must be 'default' in a compressed call, got {strategy!r}."
            )
        layouts = [self.layout(base.config, int(height), int(width)) for height, width in sizes]
        _check_views(call["pixel_values"], layouts)
        return layouts

    def layout(self, config: Any, height: int, width: int) -> Layout:  # noqa: D102
        vision = config.vision_config
        pinpoints = tuple(tuple(p) for p in config.image_grid_pinpoints)
        return _layout(height, width, pinpoints, vision.image_size, vision.patch_size)

    def encode(self, base: Any, arguments: dict[str, Any]) -> Tensor:
        """The tower's features of all views, (views, tokens, dim): projection waits until it is known what stays."""
        pixels = arguments["pixel_values"]
        if pixels.ndim == 5:
            layouts = self.layouts(base, arguments)
            pixels = torch.cat([image[: layout.views] for image, layout in zip(pixels, layouts, strict=True)])
        hidden = base.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        layer = arguments.get("vision_feature_layer")
        layer = base.config.vision_feature_layer if layer is None else layer
        return torch.cat([hidden[i][:, 1:] for i in ([layer] if isinstance(layer, int) else layer)], -1)

    def tower_features(self, base: Any, encoded: Tensor) -> Tensor:  # noqa: D102
        return encoded

    def kept(self, base: Any, encoded: Tensor, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """The projector works on the tokens that stay and on no others."""
        first, slots = 0, []
        for layout, kept in zip(layouts, places, strict=True):
            own = layout.slots.to(kept.device)[kept]
            count = layout.views * layout.tokens
            slots.append(torch.where(own < count, own + first, -1))
            first += count
        index = torch.cat(slots).to(encoded.device)
        token = index >= 0
        projected = base.multi_modal_projector(encoded.flatten(0, 1)[index[token]])
        newlines = base.image_newline.to(projected).expand(len(index), -1)
        features: Tensor = newlines.masked_scatter(token.to(projected.device)[:, None], projected)
        return features


def _check_views(pixels: Tensor, layouts: list[Layout]) -> None:
    wanted = [layout.views for layout in layouts]
    if pixels.ndim == 5 and len(pixels) != len(layouts):
        raise InputError(
            f"pixel_values and image_sizes must describe the same images, got {len(pixels)} and {len(layouts)}. "
            "Pass both as the processor returned them."
        )
    if (pixels.ndim == 5 and pixels.shape[1] < max(wanted)) or (pixels.ndim == 4 and len(pixels) != sum(wanted)):
        raise InputError(
            f"pixel_values must hold {wanted} views for these image_sizes, got shape {tuple(pixels.shape)}. "
            "Pass both as the processor returned them."
        )


@lru_cache(maxsize=4096)
def _layout(height: int, width: int, pinpoints: tuple[tuple[int, ...], ...], view: int, patch: int) -> Layout:
    side = view // patch
    tokens = side * side
    config = SimpleNamespace(
        image_grid_pinpoints=[list(p) for p in pinpoints],
        vision_config=SimpleNamespace(image_size=view, patch_size=patch),
    )
    views = image_size_to_num_patches([height, width], config.image_grid_pinpoints, view)
    rows, cols = get_anyres_image_grid_shape([height, width], config.image_grid_pinpoints, view)
    # Trace the model's own packing: send numbered tokens through it and see where they come out. Newlines are 0.
    numbers = torch.arange(1, views * tokens + 1, dtype=torch.float64).view(views, tokens, 1)
    packed, _ = LlavaNextModel.pack_image_features(
        SimpleNamespace(config=config),
        [numbers],
        [[height, width]],
        vision_feature_select_strategy="default",
        image_newline=torch.zeros(1, dtype=torch.float64),
    )
    slots = packed[0][:, 0].long() - 1
    newline = slots < 0
    valid = torch.zeros(views * tokens, dtype=torch.bool)
    valid[slots[~newline]] = True
    line_of_slot = newline.long().cumsum(0) - newline.long()
    lines = torch.full((views * tokens,), -1)
    lines[slots[~newline]] = line_of_slot[~newline]
    # A strip can be under one token wide: then nothing is left of its lines but newlines.
    slots[newline] = views * tokens + torch.arange(int(newline.sum())) if valid[tokens:].any() else -1
    return Layout(
        grid=(rows, cols),
        token_grid=(side, side),
        valid=valid[tokens:].view(views - 1, tokens),
        lines=lines[tokens:].view(views - 1, tokens),
        slots=slots,
    )
