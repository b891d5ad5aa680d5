"""MiniCPM-V 4.6: SigLIP tower without [CLS] over views of any size, packed; the thumbnail first.

A prompt has `<image> thumbnail </image> <slice> crop </slice> <slice> crop </slice> newline <slice> ...`, a newline
between rows of crops. Source: transformers' processing_minicpmv4_6.py and modeling_minicpmv4_6.py.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from globalcom2.adapters.tagged import Gaps, Grid, Size, by_image, grid_of_lines
from globalcom2.adapters.unequal import UnequalAdapter, tokens_of
from globalcom2.errors import InputError, UnsupportedModelError


class MiniCPMV46Adapter(UnequalAdapter):
    """Adapter of `minicpmv4_6`.

    Half-way through, the tower merges windows of patches, so how many of them make a token depends on the layer.
    """

    thumbnail_last = False

    def check(self, base: Any) -> None:  # noqa: D102
        config = base.config
        windows = {*config.vision_config.window_kernel_size, *config.merge_kernel_size}
        if windows != {2}:
            raise UnsupportedModelError(
                "vision_config.window_kernel_size and merge_kernel_size must be (2, 2), got "
                f"{config.vision_config.window_kernel_size!r} and {config.merge_kernel_size!r}."
            )

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_tower.encoder.layers]

    def factor(self, base: Any) -> int:
        """Patches along the side of a token, without the merging of windows, which a call may switch off."""
        patches: int = 2 ** int(base.config.merger_times)
        return patches

    def views(self, base: Any, call: dict[str, Any]) -> tuple[int, list[Size]]:  # noqa: D102
        if call.get("pixel_values_videos") is not None:
            raise InputError(
                "pixel_values_videos must not come with images in a compressed call, got both. Ask about images and "
                "videos in two calls, or leave the block."
            )
        mode = call.get("downsample_mode") or base.config.downsample_mode
        sizes = tokens_of("target_sizes", call.get("target_sizes"), self.factor(base) * (1 if mode == "4x" else 2))
        return len(sizes), sizes

    def grids(self, base: Any, gaps: Gaps) -> list[Grid]:
        """Grids of a prompt's images. The id before the prompt's first view opens an image wherever it stands."""
        start = gaps[0][-1:]
        images = by_image(gaps, lambda gap: gap[-1:] == start)
        if not start or any(len(gap) < 2 for image in images for gap in image):
            raise InputError(
                "input_ids must hold tags around every view, got placeholders without them. Build prompts with the "
                "processor."
            )
        return [grid_of_lines(image[1:]) if image else (0, 0, True) for image in images]
