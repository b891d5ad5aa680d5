"""LLaVA-NeXT-Video: images as in LLaVA-NeXT; frames of a video are pooled before the projector, without newlines."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoModel

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.adapters.videos import VideosAdapter
from globalcom2.core.layout import Layout


class LlavaNextVideoAdapter(LlavaNextAdapter):
    """Adapter of `llava_next_video`'s images."""

    model = LlavaNextVideoModel

    def videos(self) -> Adapter:  # noqa: D102
        return LlavaNextVideoVideosAdapter()


class LlavaNextVideoVideosAdapter(VideosAdapter, LlavaNextAdapter):
    """Adapter of `llava_next_video`'s videos."""

    model = LlavaNextVideoModel

    def side(self, config: Any) -> int:  # noqa: D102
        return int(config.vision_config.image_size // config.vision_config.patch_size // config.spatial_pool_stride)

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """The tower's pooled features of all frames, (frames, tokens, dim), not projected."""
        frames = arguments[self.pixels].flatten(0, 1)
        return base.vision_resampler(self.tower_output(base, frames, arguments.get("vision_feature_layer")))

    def scores(self, base: Any, rows: Tensor) -> Tensor:
        """The mean of a token's patches, whichever way the resampler pools their features."""
        patches = super().scores(base, rows)
        side = base.config.vision_config.image_size // base.config.vision_config.patch_size
        pooled = F.avg_pool2d(patches.unflatten(1, (1, side, side)), base.config.spatial_pool_stride)
        return pooled.flatten(1)
