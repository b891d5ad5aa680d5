"""What native-resolution families share most of whose tower's layers see windows of their own (Qwen2.5-VL's tower)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.tagged import Size
from globalcom2.errors import UnsupportedModelError


class WindowedTower(NativeAdapter):
    """Towers most of whose layers see windows of their own, and that read blocks of patches window by window."""

    def full_layers(self, base: Any) -> list[int]:
        """Layers that see the whole image, from 0."""
        return [int(layer) for layer in base.config.vision_config.fullatt_block_indexes]

    def default_layer(self, base: Any) -> int:
        """The last layer that sees the whole image."""
        return max(self.full_layers(base)) - len(self.attentions(base))

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        module, full = super().attention(base, layer), self.full_layers(base)
        if layer % len(self.attentions(base)) not in full:
            raise UnsupportedModelError(
                f"layer must be one that sees the whole image ({', '.join(map(str, full))}) for this vision tower, got "
                f"{layer}: every window of the others has a softmax of its own."
            )
        return module

    def in_order(self, base: Any, patches: Tensor, sizes: list[Size]) -> Tensor:  # noqa: D102
        from transformers.vision_utils import get_vision_window_index  # noqa: PLC0415 - newer transformers alone

        vision, m = base.config.vision_config, self.merge(base)
        grid = torch.tensor([[1, h * m, w * m] for h, w in sizes])
        index, _ = get_vision_window_index(grid, m, vision.window_size, vision.patch_size)
        blocks = patches.unflatten(0, (-1, m * m))
        ordered: Tensor = blocks[index.argsort().to(patches.device, non_blocking=True)]
        return ordered.flatten(0, 1)
