"""PaddleOCR-VL: native resolution, a SigLIP tower that reads patches row by row, M-RoPE."""

from __future__ import annotations

from typing import Any

from torch import nn

from globalcom2.adapters.rotary import RotaryAdapter


class PaddleOCRVLAdapter(RotaryAdapter):
    """Adapter of `paddleocr_vl`."""

    row_by_row = True

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.visual.vision_model.encoder.layers]
