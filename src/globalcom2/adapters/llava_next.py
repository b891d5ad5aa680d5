"""LLaVA-NeXT (1.6): CLIP tower with [CLS], packing of `anyres`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from globalcom2.adapters.anyres import AnyresAdapter
from globalcom2.core.layout import Layout


class LlavaNextAdapter(AnyresAdapter):
    """Adapter of `llava_next`. The projector waits until it is known which tokens stay, and works on no others."""

    projects_kept_only = True
    model: type = LlavaNextModel
    tower = "clip_vision_model"
    strategy = "default"

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """The tower's features of all views, (views, tokens, dim), not projected."""
        pixels = arguments["pixel_values"]
        if pixels.ndim == 5:
            pixels = torch.cat([image[: layout.views] for image, layout in zip(pixels, layouts, strict=True)])
        return self.tower_output(base, pixels, arguments.get("vision_feature_layer"))

    def tower_output(self, base: Any, pixels: Tensor, layer: int | list[int] | None) -> Tensor:
        """The tower's features without [CLS], (views, tokens, dim): those of the layers that the projector reads.

        Args:
            base: The model that has `get_image_features`.
            pixels: (views, channels, height, width).
            layer: Index or indices of `hidden_states`; None for those of the configuration.
        """
        hidden = base.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        layer = base.config.vision_feature_layer if layer is None else layer
        return torch.cat([hidden[i][:, 1:] for i in ([layer] if isinstance(layer, int) else layer)], -1)

    def tower_features(self, base: Any, encoded: Any) -> Tensor:  # noqa: D102
        features: Tensor = encoded
        return features

    def kept_features(self, base: Any, encoded: Tensor, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """Features (kept, dim): the projector's of the tokens that stay, and the newline's."""
        first, slots = 0, []
        for layout, kept in zip(layouts, places, strict=True):
            own = layout.slots[kept]
            count = layout.views * layout.tokens
            slots.append(torch.where((own >= 0) & (own < count), own + first, -1))
            first += count
        index = torch.cat(slots)
        token = index >= 0
        kept = index[token].to(encoded.device, non_blocking=True)
        projected = base.multi_modal_projector(encoded.flatten(0, 1)[kept])
        newlines = base.image_newline.to(projected).expand(len(index), -1)
        features: Tensor = newlines.masked_scatter(token.to(projected.device, non_blocking=True)[:, None], projected)
        return features
