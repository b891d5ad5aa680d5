"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: native resolution, blocks of patches, M-RoPE; deepstack in Qwen3-VL."""

from __future__ import annotations

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.native_videos import NativeVideosAdapter
from globalcom2.adapters.rotary import RotaryAdapter
from globalcom2.adapters.windowed import WindowedTower


class QwenVLAdapter(RotaryAdapter):
    """Adapter of `qwen2_vl`, `qwen3_vl`, `qwen3_vl_moe`, `qwen3_5` and `qwen3_5_moe`, whose towers see whole images."""

    def videos(self) -> Adapter:  # noqa: D102
        return QwenVLVideosAdapter()


class QwenVLVideosAdapter(NativeVideosAdapter, QwenVLAdapter):
    """Adapter of their videos. From Qwen3-VL on, each frame is a run of its own, with its time before it."""


class Qwen25VLAdapter(WindowedTower, RotaryAdapter):
    """Adapter of `qwen2_5_vl`."""

    def videos(self) -> Adapter:  # noqa: D102
        return Qwen25VLVideosAdapter()


class Qwen25VLVideosAdapter(NativeVideosAdapter, Qwen25VLAdapter):
    """Adapter of `qwen2_5_vl`'s videos."""
