"""Step-3.7: its own tower without [CLS]; crops parted by tags, then a thumbnail of more tokens than a crop.

A prompt has `<patch_start> crop <patch_end> <patch_start> crop <patch_end> <patch_newline> ... <im_start> thumbnail
<im_end>`, with a newline between rows of crops. The tower reads all thumbnails first, then all crops, and the encoder
returns features in the prompt's order. Source: transformers' processing_step3p7.py and modeling_step3p7.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters.tagged import Gaps, Grid, Size, by_image, grid_of_lines
from globalcom2.adapters.unequal import UnequalAdapter
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError


class Step3p7Adapter(UnequalAdapter):
    """Adapter of `step3p7`."""

    def check(self, base: Any) -> None:
        """Refuse nothing: sizes come with each call and are checked there."""

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_model.layers]

    def factor(self, base: Any) -> int:
        """Two convolutions of stride 2 make a token of 4 x 4 patches."""
        return 4

    def views(self, base: Any, call: dict[str, Any]) -> tuple[int, list[Size]]:  # noqa: D102
        thumbnails, crops = call["pixel_values"], call.get("pixel_values_local")
        counts = call.get("num_local_patches")
        counts = [0] * len(thumbnails) if counts is None else [int(n) for n in counts]
        crops = thumbnails[:0] if crops is None else crops
        if len(counts) != len(thumbnails) or sum(counts) != len(crops):
            raise InputError(
                f"num_local_patches must count the crops in pixel_values_local for each of {len(thumbnails)} images, got "
                f"{counts}. Pass everything the processor returned."
            )
        last = self._size(base, "pixel_values", thumbnails)
        own = self._size(base, "pixel_values_local", crops) if len(crops) else last
        sizes = [size for count in counts for size in (*[own] * count, last)]
        return len(sizes), sizes

    def _size(self, base: Any, name: str, pixels: Tensor) -> Size:
        """Height and width in tokens of views (views, channels, height, width) that came as the argument `name`."""
        token = base.config.vision_config.patch_size * self.factor(base)
        height, width = pixels.shape[-2:]
        if pixels.ndim != 4 or height % token or width % token:
            raise InputError(
                f"{name} must be (views, channels, height, width) with sides that are multiples of {token} px, got "
                f"{tuple(pixels.shape)}. Pass what the processor returned."
            )
        return height // token, width // token

    def grids(self, base: Any, gaps: Gaps) -> list[Grid]:
        """Grids of a prompt's images. The id after the prompt's last view closes a thumbnail wherever it stands."""
        end = gaps[-1][:1]
        images = by_image(gaps, lambda gap: gap[:1] == end)
        if not end or any(len(gap) < 2 for image in images for gap in image):
            raise InputError(
                "input_ids must hold tags around every view, got placeholders without them. Build prompts with the "
                "processor."
            )
        return [grid_of_lines(image[:-1]) if image else (0, 0, True) for image in images]

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """Run the model's encoder, which joins an image's views, and part its features into views again."""
        encoded = super().encode(base, arguments, layouts)
        lengths = [height * width for layout in layouts for height, width in self.sizes(layout)]
        encoded.pooler_output = torch.cat(encoded.pooler_output).split(lengths)
        return encoded

    def all_scores(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:
        """Scores (tokens,) of all views end to end, with rows put from the tower's order into the prompt's."""
        thumbnails, crops = rows[0].unbind(), iter([row for several in rows[1:] for row in several])
        images = zip(layouts, thumbnails, strict=True)
        ordered = [[*(next(crops) for _ in range(layout.views - 1)), last] for layout, last in images]
        return super().all_scores(base, [row[None] for image in ordered for row in image], layouts)
