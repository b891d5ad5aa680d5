"""More families whose images keep their resolution, each a few lines away from one that is there.

Positions are plain where nothing else is said, and blocks of patches come one after another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters.channels import channels_first, channels_last
from globalcom2.adapters.layers import layer_of
from globalcom2.adapters.mistral3 import Mistral3Adapter, sizes_in_px
from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.rotary import RotaryAdapter
from globalcom2.adapters.tagged import Size
from globalcom2.adapters.windowed import WindowedTower
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError, UnsupportedModelError


class QwenKinAdapter(RotaryAdapter):
    """Adapter of `cohere_compass`, `cosmos3_omni` and `qwen4_exp`, which are built as Qwen3-VL and Qwen3.5 are: M-RoPE."""


class Glm5NextAdapter(NativeAdapter):
    """Adapter of `glm5_next`, whose language model has recurrent layers and numbers no tokens."""


class Exaone45Adapter(WindowedTower):
    """Adapter of `exaone4_5`."""

    closed_alone = "its generate throws positions away"


class HyperClovaXVisionAdapter(WindowedTower):
    """Adapter of `hyperclovax_vision_v2`: Qwen2.5-VL's tower before a language model with plain positions."""

    closed_alone = "its generate throws positions away"

    def tower(self, base: Any) -> nn.Module:  # noqa: D102
        return base.vision_model  # type: ignore[no-any-return]


class Dots3NoteAdapter(NativeAdapter):
    """Adapter of `dots3_note`."""

    def tower(self, base: Any) -> nn.Module:  # noqa: D102
        return base.vision_tower  # type: ignore[no-any-return]


class MiniMaxM3VLAdapter(NativeAdapter):
    """Adapter of `minimax_m3_vl`."""

    closed_alone = "its sparse layers take a token's position for its place among the keys"

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_tower.layers]


class Lfm3VLAdapter(NativeAdapter):
    """Adapter of `lfm3_vl`, most of whose tower's layers are convolutions."""

    def full_layers(self, base: Any) -> list[int]:
        """Layers with attention, from 0."""
        kinds = base.config.vision_config.layer_types
        return [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]

    def default_layer(self, base: Any) -> int:
        """The last layer with attention."""
        return max(self.full_layers(base)) - len(base.vision_tower.layers)

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        module, full = layer_of(base.vision_tower.layers, layer), self.full_layers(base)
        if layer % len(base.vision_tower.layers) not in full:
            raise UnsupportedModelError(
                f"layer must be one with attention ({', '.join(map(str, full))}) for this vision tower, got {layer}, a "
                "convolution."
            )
        return module.self_attn  # type: ignore[return-value]


class VideoLlama3Adapter(NativeAdapter):
    """Adapter of `video_llama_3`, whose calls tell how many patches make a token: one, in its images."""

    def merge(self, base: Any) -> int:
        """Patches on a side of a token of an image."""
        return 1

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_model.encoder.layers]

    def grids(self, base: Any, call: dict[str, Any]) -> list[Size]:  # noqa: D102
        sizes, merges = super().grids(base, call), call.get("image_merge_sizes")
        got = merges.tolist() if isinstance(merges, Tensor) else merges
        if got != [1] * len(sizes):
            raise InputError(
                f"image_merge_sizes must be 1 for each of the {len(sizes)} images, as the family's processor makes them, got "
                f"{got!r:.120}. Leave merge_size of the image processor at 1."
            )
        return sizes

    def with_guides(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> dict[str, Any]:  # noqa: D102
        merges = arguments["image_merge_sizes"]
        return {**super().with_guides(base, arguments, layouts), "image_merge_sizes": torch.cat([merges, merges])}


class MuseGlimmerAdapter(WindowedTower):
    """Adapter of `muse_glimmer`: patches row by row, and windows of patches in most of the tower's layers."""

    row_by_row = True
    frames_first = True

    def merge(self, base: Any) -> int:  # noqa: D102
        return int(base.config.vision_config.merge_size)

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.attn for layer in base.vision_tower.layers]

    def full_layers(self, base: Any) -> list[int]:  # noqa: D102
        kinds = base.config.vision_config.layer_types
        return [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]

    def in_order(self, base: Any, patches: Tensor, sizes: list[Size]) -> Tensor:  # noqa: D102
        from transformers.vision_utils import get_vision_window_index  # noqa: PLC0415 - newer transformers alone

        tower, m = base.vision_tower, self.merge(base)
        grid = torch.tensor([[1, h * m, w * m] for h, w in sizes])
        index, _ = get_vision_window_index(grid, 1, tower.window_size, tower.patch_size)
        ordered: Tensor = patches[index.argsort().to(patches.device)]
        return ordered


class Cosmos3EdgeAdapter(RotaryAdapter):
    """Adapter of `cosmos3_edge`: M-RoPE, a SigLIP 2 tower, and patches whose values end with the channel."""

    channels_last = True

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.visual.encoder.layers]

    def with_guides(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> dict[str, Any]:  # noqa: D102
        side = self.side(base)
        first = {**arguments, self.pixels: channels_first(arguments[self.pixels], side)}
        both = super().with_guides(base, first, layouts)
        return {**both, self.pixels: channels_last(both[self.pixels], side)}


class LightOnOcrAdapter(Mistral3Adapter):
    """Adapter of `lighton_ocr`, whose images may have a row or a column of patches that no token reads."""

    def grids(self, base: Any, call: dict[str, Any]) -> list[Size]:  # noqa: D102
        token = self.side(base) * self.merge(base)
        whole = [[side // token * token for side in size] for size in sizes_in_px(call.get(self.grid_name))]
        return super().grids(base, {**call, self.grid_name: whole or call.get(self.grid_name)})

    def default_layer(self, base: Any) -> int:  # noqa: D102
        return -1

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        raise UnsupportedModelError(
            "score must be 'similarity' for lighton_ocr, got one that is read in attention: patches at an image's edge may "
            "belong to no token, and nothing tells which."
        )
