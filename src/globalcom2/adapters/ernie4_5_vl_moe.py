"""ERNIE 4.5 VL: native resolution, blocks of patches, M-RoPE, experts of their own for visual tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from globalcom2.adapters.rotary import RotaryAdapter


class Ernie45VLMoeAdapter(RotaryAdapter):
    """Adapter of `ernie4_5_vl_moe`."""

    def tower(self, base: Any) -> nn.Module:  # noqa: D102
        return base.vision_tower  # type: ignore[no-any-return]
