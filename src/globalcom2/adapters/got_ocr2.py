"""GOT-OCR 2.0: windowed tower without [CLS] and with attention code of its own, one run of placeholders per image.

The pages of one multi-page prompt are one run, so they count as one image whose grid is not known.
Source: transformers' processing_got_ocr2.py and modeling_got_ocr2.py.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from globalcom2.adapters.tiles import TilesAdapter
from globalcom2.core.layout import Layout
from globalcom2.errors import UnsupportedModelError


class GotOcr2Adapter(TilesAdapter):
    """Adapter of `got_ocr2`."""

    cls_index = None
    default_score = "similarity"
    tower = "got_ocr2_vision"
    nameless = True  # its configuration has no model type before transformers 5.20

    def factor(self, base: Any) -> int:
        """Two convolutions of stride 2 make a token of 4 x 4 patches."""
        return 4

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """Run the model's encoder on pixels in the model's dtype. The forward casts them, and the encoder does not."""
        own_dtype = arguments["pixel_values"].to(base.dtype)
        return super().encode(base, {**arguments, "pixel_values": own_dtype}, layouts)

    def attentions(self, base: Any) -> list[nn.Module]:
        """Always raises: this tower has no attention that can be tapped."""
        raise UnsupportedModelError(
            "score must be 'similarity' for got_ocr2, got one that reads attention, which this vision tower computes in "
            "windows and with code of its own. Pass score='similarity' or leave score out."
        )
