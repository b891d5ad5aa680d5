"""Kimi K2.5: native resolution, a MoonViT tower that reads patches row by row, plain positions."""

from __future__ import annotations

from typing import Any

from torch import nn

from globalcom2.adapters.native import NativeAdapter


class KimiK25Adapter(NativeAdapter):
    """Adapter of `kimi_k25`."""

    row_by_row = True

    def merge(self, base: Any) -> int:  # noqa: D102
        return int(base.config.vision_config.merge_kernel_size[0])

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.attn for layer in base.vision_tower.layers]
