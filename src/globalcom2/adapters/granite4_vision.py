"""Granite 4 Vision: SigLIP tower without [CLS], Q-Former projectors that merge patches, features for several layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.granite4_vision.modeling_granite4_vision import (
    Granite4VisionImageFeaturesOutput,
    Granite4VisionModel,
)

from globalcom2.adapters.anyres import AnyresAdapter, AnyresLayout, layout_of, packing_of
from globalcom2.adapters.base import gather, repeat_rows
from globalcom2.adapters.layers import deepest_layer
from globalcom2.core.layout import Layout
from globalcom2.errors import UnsupportedModelError


class Granite4VisionAdapter(AnyresAdapter):
    """Adapter of `granite4_vision`.

    A token is a window query of the Q-Formers. It stands for a block of patches, and their mean score is its score. The
    language model adds another feature of the token in each of several layers; all of them stay or go together.
    """

    cls_index = None
    default_score = "similarity"
    model = Granite4VisionModel
    tower = "siglip_vision_model"
    strategy = "full"

    def layouts_of_sizes(self, config: Any, call: dict[str, Any], sizes: list[tuple[int, int]]) -> list[AnyresLayout]:  # noqa: D102
        if not config.downsample_rate:
            raise UnsupportedModelError(
                f"downsample_rate must be a fraction such as '4/8' for {config.model_type}, got {config.downsample_rate!r}. "
                "Set it in the configuration."
            )
        packing = packing_of(self.model, config, config.downsample_rate, vision_feature_select_strategy=self.strategy)
        return [layout_of(packing, *size) for size in sizes]

    def default_layer(self, base: Any) -> int:  # noqa: D102
        config = base.config
        states = [config.spatial_vision_layer, *(state for state, _ in config.deepstack_layer_map)]
        return deepest_layer(states, config.vision_config.num_hidden_layers)

    def scores(self, base: Any, rows: Tensor) -> Tensor:  # noqa: D102
        return _per_token(base.config, rows[..., None])[..., 0]

    def tower_features(self, base: Any, encoded: Any) -> Tensor:
        """The tower's features that the spatial projectors read, each token's mean over its patches."""
        return _per_token(base.config, encoded.hidden_states[base.config.spatial_vision_layer])

    def kept_features(self, base: Any, encoded: Any, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """Features (kept, levels, dim): one level per entry of `deepstack_features`."""
        return torch.stack([gather(packed, places) for _, packed in encoded.deepstack_features], 1)

    def output(self, features: Tensor, encoded: Any) -> Any:  # noqa: D102
        layers = [layer for layer, _ in encoded.deepstack_features]
        levels = zip(layers, features.unbind(1), strict=True)
        return Granite4VisionImageFeaturesOutput(deepstack_features=[(layer, [level]) for layer, level in levels])

    def repeat(self, output: Any, counts: list[int], times: int) -> Any:
        """The forward reads the features of each layer in `deepstack_features` and no others."""
        repeated = copy.copy(output)
        levels = [(layer, repeat_rows(packed, counts, times)) for layer, packed in output.deepstack_features]
        repeated.deepstack_features = levels
        return repeated


def _per_token(config: Any, patches: Tensor) -> Tensor:
    """The mean of each token's block of patches: (views, patches, dim) -> (views, tokens, dim)."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    tokens = packing_of(Granite4VisionModel, config, config.downsample_rate).side
    pooled = F.interpolate(patches.mT.unflatten(2, (side, side)), (tokens, tokens), mode="area")
    return pooled.flatten(2).mT
