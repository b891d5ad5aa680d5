"""LLaVA-NeXT (1.6): CLIP tower with [CLS], packing of `anyres`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel

from globalcom2.adapters.anyres import AnyresLayout, check_views, image_sizes, layout_of, packing_of
from globalcom2.adapters.base import Adapter, layer_of
from globalcom2.core.layout import Layout
from globalcom2.errors import UnsupportedModelError


class LlavaNextAdapter(Adapter):
    """Adapter of `llava_next`."""

    projects_kept_only = True
    model: type = LlavaNextModel
    tower = "clip_vision_model"
    strategy = "default"

    def check(self, base: Any) -> None:  # noqa: D102
        config = base.config
        if config.vision_feature_select_strategy != self.strategy:
            why = (
                "keeps [CLS] among the tokens"
                if self.strategy == "default"
                else "drops a token of a tower without [CLS]"
            )
            raise UnsupportedModelError(
                f"vision_feature_select_strategy must be {self.strategy!r} for {config.model_type}, got "
                f"{config.vision_feature_select_strategy!r}: {config.vision_feature_select_strategy!r} {why}. "
                f"Set model.config.vision_feature_select_strategy = {self.strategy!r}."
            )
        if config.vision_config.model_type != self.tower:
            raise UnsupportedModelError(
                f"the vision tower of {config.model_type} must be a {self.tower}, got "
                f"{config.vision_config.model_type!r}."
            )

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        tower = getattr(base.vision_tower, "vision_model", base.vision_tower)
        return layer_of([block.self_attn for block in tower.encoder.layers], layer)

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        layouts = self.layouts_of_sizes(base.config, call, image_sizes(call, self.strategy))
        check_views(call["pixel_values"], layouts)
        return list(layouts)

    def layouts_of_sizes(self, config: Any, call: dict[str, Any], sizes: list[tuple[int, int]]) -> list[AnyresLayout]:
        """One layout per height and width in px."""
        packing = packing_of(self.model, config, vision_feature_select_strategy=self.strategy)
        return [layout_of(packing, *size) for size in sizes]

    def layout(self, config: Any, height: int, width: int) -> Layout:  # noqa: D102
        return self.layouts_of_sizes(config, {}, [(height, width)])[0]

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """The tower's features of all views, (views, tokens, dim): projection waits until it is known what stays."""
        pixels = arguments["pixel_values"]
        if pixels.ndim == 5:
            pixels = torch.cat([image[: layout.views] for image, layout in zip(pixels, layouts, strict=True)])
        return self.tower_output(base, pixels, arguments.get("vision_feature_layer"))

    def tower_output(self, base: Any, pixels: Tensor, layer: int | list[int] | None) -> Tensor:
        """The layers that the projector reads, without [CLS], (views, tokens, dim)."""
        hidden = base.vision_tower(pixels, output_hidden_states=True, return_dict=True).hidden_states
        layer = base.config.vision_feature_layer if layer is None else layer
        return torch.cat([hidden[i][:, 1:] for i in ([layer] if isinstance(layer, int) else layer)], -1)

    def tower_features(self, base: Any, encoded: Any) -> Tensor:  # noqa: D102
        features: Tensor = encoded
        return features

    def kept(self, base: Any, encoded: Tensor, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """The projector works on the tokens that stay and on no others."""
        first, slots = 0, []
        for layout, kept in zip(layouts, places, strict=True):
            own = layout.slots[kept]
            count = layout.views * layout.tokens
            slots.append(torch.where(own < count, own + first, -1))
            first += count
        index = torch.cat(slots)
        token = index >= 0
        kept = index[token].to(encoded.device, non_blocking=True)
        projected = base.multi_modal_projector(encoded.flatten(0, 1)[kept])
        newlines = base.image_newline.to(projected).expand(len(index), -1)
        features: Tensor = newlines.masked_scatter(token.to(projected.device, non_blocking=True)[:, None], projected)
        return features
