"""Mistral 3: native resolution, a Pixtral tower that reads all images as one sequence, plain positions.

A break, which is no placeholder, ends each row of an image in the prompt. Breaks stay and are not counted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.layers import deepest_layer
from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.patches import shrunk
from globalcom2.adapters.tagged import Size
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError


class Mistral3Adapter(NativeAdapter):
    """Adapter of `mistral3`: padded pictures, and `image_sizes` in px."""

    row_by_row = True
    grid_name = "image_sizes"

    def merge(self, base: Any) -> int:  # noqa: D102
        return int(base.config.spatial_merge_size)

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.attention for layer in base.vision_tower.transformer.layers]

    def default_layer(self, base: Any) -> int:  # noqa: D102
        return deepest_layer(base.config.vision_feature_layer, len(self.attentions(base)))

    def grids(self, base: Any, call: dict[str, Any]) -> list[Size]:  # noqa: D102
        pixels, given, patch = call[self.pixels], call.get(self.grid_name), self.side(base)
        side, sizes, most = patch * self.merge(base), sizes_in_px(given), pixels.shape[-2:]
        fits = [0 < n <= limit and n % side == 0 for size in sizes for n, limit in zip(size, most, strict=True)]
        if pixels.ndim != 4 or len(sizes) != len(pixels) or not all(fits):
            raise InputError(
                f"image_sizes must hold heights and widths in px of the {len(pixels)} pictures of {self.pixels}, multiples of "
                f"{side} within {tuple(most)}, got {sizes or given!r:.120}. Pass everything the processor returned."
            )
        return [(height // patch, width // patch) for height, width in sizes]

    def segments(self, base: Any, layouts: list[Layout]) -> list[int]:
        """Patches of each view in the tower's one sequence."""
        block = self.merge(base) ** 2
        return [height * width * block for height, width in self.view_sizes(layouts)]

    def with_guides(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> dict[str, Any]:  # noqa: D102
        pixels: Tensor = arguments[self.pixels]
        side, sizes = self.side(base) * self.merge(base), sizes_in_px(arguments[self.grid_name])
        small = torch.zeros_like(pixels)
        guides = [(height * side, width * side) for height, width in (layout.guide_grid for layout in layouts)]  # type: ignore[misc]
        for n, ((height, width), (rows, cols)) in enumerate(zip(sizes, guides, strict=True)):
            small[n, :, :rows, :cols] = shrunk(pixels[n : n + 1, :, :height, :width], (rows, cols))[0]
        more = torch.as_tensor([*sizes, *guides], device=pixels.device)
        return {**arguments, self.pixels: torch.cat([pixels, small]), self.grid_name: more}

    def videos(self) -> Adapter | None:
        """The family takes no videos."""
        return None


def sizes_in_px(given: Any) -> list[Size]:
    """Height and width in px of each picture, from numbers (pictures, 2) that come to the host at once; else none."""
    try:
        sizes = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError):  # None, or no numbers
        return []
    return [(int(h), int(w)) for h, w in sizes.tolist()] if sizes.ndim == 2 and sizes.shape[1] == 2 else []
