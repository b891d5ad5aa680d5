"""InternVL and Qianfan-OCR: InternViT tower with [CLS], pixel shuffle, one run of placeholders per image.

A prompt has `<img> crop ... crop thumbnail </img>`; a video frame is an image of one view.
Source: transformers' processing_internvl.py and modeling_internvl.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from globalcom2.adapters.tiles import TilesAdapter
from globalcom2.errors import UnsupportedModelError


class InternVLAdapter(TilesAdapter):
    """Adapter of `internvl`."""

    tower = "internvl_vision"
    strategy = "default"
    any_size = True

    def check(self, base: Any) -> None:  # noqa: D102
        ratio = base.config.downsample_ratio
        if not 0 < ratio <= 1 or (1 / ratio) % 1:
            raise UnsupportedModelError(f"downsample_ratio must be one over a whole number, got {ratio!r}.")
        super().check(base)

    def factor(self, base: Any) -> int:  # noqa: D102
        factor: int = round(1 / base.config.downsample_ratio)
        return factor

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.attention for layer in base.vision_tower.encoder.layer]

    def shuffled(self, base: Any, patches: Tensor) -> Tensor:  # noqa: D102
        side = round(patches.shape[1] ** 0.5)
        shuffled: Tensor = base.pixel_shuffle(patches.unflatten(1, (side, side)), base.config.downsample_ratio)
        return shuffled


class QianfanOCRAdapter(InternVLAdapter):
    """Adapter of `qianfan_ocr`."""

    tower = "qianfan_ocr_vision"

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.attention for layer in base.vision_tower.layers]
