"""LLaVA-OneVision: SigLIP tower without [CLS], packing of `anyres_max_N`; several images in a prompt have no crops.

The packing shrinks large images after the projector. Frames of a video are shrunk to half their side after the
projector, and a newline ends the video.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from globalcom2.adapters.anyres import AnyresAdapter, AnyresLayout, layout_of, packing_of
from globalcom2.adapters.base import Adapter
from globalcom2.adapters.videos import VideosAdapter
from globalcom2.core.layout import Layout
from globalcom2.errors import GlobalCom2Error, InputError, UnsupportedModelError


class LlavaOnevisionAdapter(AnyresAdapter):
    """Adapter of `llava_onevision`."""

    cls_index = None
    default_score = "similarity"
    model = LlavaOnevisionModel
    tower = "siglip_vision_model"
    strategy = "full"

    def check(self, base: Any) -> None:  # noqa: D102
        super().check(base)
        _check_aspect(base.config.vision_aspect_ratio, UnsupportedModelError)

    def videos(self) -> Adapter:  # noqa: D102
        return LlavaOnevisionVideosAdapter()

    def layouts_of_sizes(self, config: Any, call: dict[str, Any], sizes: list[tuple[int, int]]) -> list[AnyresLayout]:  # noqa: D102
        aspect = call.get("vision_aspect_ratio")
        aspect = config.vision_aspect_ratio if aspect is None else aspect
        _check_aspect(aspect, InputError)
        packing = packing_of(self.model, config, vision_aspect_ratio=aspect)
        counts = call.get("batch_num_images")
        counts = [1] * len(sizes) if counts is None else [int(n) for n in counts]
        if sum(counts) != len(sizes):
            raise InputError(
                f"batch_num_images must count the {len(sizes)} images of image_sizes, got {counts}. Pass both as the "
                "processor returned them."
            )
        cropped = [n == 1 for n in counts for _ in range(n)]
        return [layout_of(packing, *size, crops=crops) for size, crops in zip(sizes, cropped, strict=True)]

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:
        """The values of an image's views, mixed as the packing mixes its tokens where it shrinks them."""
        mixture = layout.mixture if isinstance(layout, AnyresLayout) else None
        if mixture is None:
            return views
        token, corners, shares = (part.to(views.device, non_blocking=True) for part in mixture)
        flat = views.flatten(0, 1)
        shares = shares.to(views.dtype).unflatten(1, (4, *[1] * (flat.ndim - 1)))
        mixed = sum(flat[corners[:, i]] * shares[:, i] for i in range(4))
        return flat.index_copy(0, token, mixed).view_as(views)

    def tower_features(self, base: Any, encoded: Any) -> Tensor:
        """The tower's features that the projector reads, (views, tokens, dim)."""
        hidden = encoded.hidden_states
        if all(layer is not None for layer in hidden):  # transformers before 5.20 keeps every layer
            layers = base.config.vision_feature_layer
            hidden = [hidden[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        return torch.cat([layer for layer in hidden if layer is not None], -1)


class LlavaOnevisionVideosAdapter(VideosAdapter, LlavaOnevisionAdapter):
    """Adapter of `llava_onevision`'s videos: scores are shrunk by the code that shrinks the features."""

    newline = True

    def side(self, config: Any) -> int:  # noqa: D102
        return math.ceil(int(config.vision_config.image_size // config.vision_config.patch_size) / 2)

    def scores(self, base: Any, rows: Tensor) -> Tensor:  # noqa: D102
        shrunk: Tensor = base.apply_pooling(super().scores(base, rows)[..., None])[..., 0]
        return shrunk

    def tower_features(self, base: Any, encoded: Any) -> Tensor:  # noqa: D102
        shrunk: Tensor = base.apply_pooling(super().tower_features(base, encoded))
        return shrunk


def _check_aspect(aspect: object, error: type[GlobalCom2Error]) -> None:
    """Raise `error` unless `aspect` is "anyres_max_N" with a number N."""
    if not isinstance(aspect, str) or not re.fullmatch(r"anyres_max_[1-9]\d*", aspect):
        raise error(f"vision_aspect_ratio must be 'anyres_max_N' with a number N, got {aspect!r}. Set it as published.")
