"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: native resolution, blocks of patches, M-RoPE; deepstack in Qwen3-VL."""

from __future__ import annotations

from globalcom2.adapters.rotary import RotaryAdapter
from globalcom2.adapters.windowed import WindowedTower


class QwenVLAdapter(RotaryAdapter):
    """Adapter of `qwen2_vl`, `qwen3_vl`, `qwen3_vl_moe`, `qwen3_5` and `qwen3_5_moe`, whose towers see whole images."""


class Qwen25VLAdapter(WindowedTower, RotaryAdapter):
    """Adapter of `qwen2_5_vl`."""
