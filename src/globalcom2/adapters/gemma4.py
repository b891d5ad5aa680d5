"""Gemma 4: native resolution, padded patches row by row with a place for each, plain positions.

The language model shows all tokens of an image to one another; `mm_token_type_ids` tells it which belong together.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.channels import channels_first, channels_last
from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.patches import image_of, patches_of, shrunk
from globalcom2.adapters.tagged import Size
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError, UnsupportedModelError


class Gemma4Adapter(NativeAdapter):
    """Adapter of `gemma4`, whose tower averages 3 x 3 patches."""

    row_by_row = True
    channels_last = True
    grid_name = "image_position_ids"

    def merge(self, base: Any) -> int:  # noqa: D102
        return int(base.config.vision_config.pooling_kernel_size)

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_tower.encoder.layers]

    def grids(self, base: Any, call: dict[str, Any]) -> list[Size]:
        """Height and width in patches of each image, from the places of its patches.

        Raises:
            InputError: No places, or such as are no rows of patches with padding behind.
        """
        places, pixels, m = call.get(self.grid_name), call[self.pixels], self.merge(base)
        if not isinstance(places, Tensor) or places.ndim != 3 or places.shape != (*pixels.shape[:2], 2):
            got = f"shape {tuple(places.shape)}" if isinstance(places, Tensor) else repr(places)
            raise InputError(
                f"{self.grid_name} must be (images, patches, 2) as {self.pixels} is {tuple(pixels.shape)}, got {got:.120}. Pass "
                "everything the processor returned."
            )
        sizes = []
        for own in places.cpu():
            width, height = (int(n) + 1 for n in own.amax(0))
            whole = height > 0 and height % m == width % m == 0
            if not whole or not torch.equal(own, _raster(height, width, len(own))):
                raise InputError(
                    f"{self.grid_name} must list an image's patches row by row, sides multiples of {m}, and then -1 for padding, "
                    f"got others for {height} x {width} patches. Pass everything the processor returned."
                )
            sizes.append((height, width))
        return sizes

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """Guides have a pass of their own, in which they are not padded to the size of an image."""
        encoded = Adapter.encode(self, base, arguments, layouts)
        if self.guide == "thumbnail":
            small = Adapter.encode(self, base, self.with_guides(base, arguments, layouts), layouts)
            encoded.pooler_output = [*encoded.pooler_output, *small.pooler_output]
        return encoded

    def with_guides(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> dict[str, Any]:
        """A call of the encoder with the guides alone."""
        pixels, m, side = arguments[self.pixels], self.merge(base), self.side(base)
        guides = [(height * m, width * m) for height, width in (layout.guide_grid for layout in layouts)]  # type: ignore[misc]
        longest, patches, places = max(height * width for height, width in guides), [], []
        for own, layout, (height, width) in zip(pixels, layouts, guides, strict=True):
            size = layout.size[0] * m, layout.size[1] * m
            image = image_of(channels_first(own[: size[0] * size[1]], side), size, side)
            small = patches_of(shrunk(image, (height * side, width * side)), (height, width), side)
            patches.append(F.pad(channels_last(small, side), (0, 0, 0, longest - len(small))))
            places.append(_raster(height, width, longest))
        more = torch.stack(places).to(arguments[self.grid_name])
        return {**arguments, self.pixels: torch.stack(patches), self.grid_name: more}

    def all_scores(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:  # noqa: D102
        return self._of_tokens(base, self._unpadded(base, rows, layouts)[:, None], layouts)[:, 0]

    def keys(self, base: Any, keys: list[Tensor], layouts: list[Layout]) -> Tensor:  # noqa: D102
        return self._of_tokens(base, self._unpadded(base, keys, layouts), layouts)

    def _unpadded(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:
        """Values (patches, ...) of all views end to end, from one tensor (views, padded patches, ...) per pass."""
        m = self.merge(base)
        sizes, views = self.view_sizes(layouts), [view for batch in rows for view in batch]
        return torch.cat([view[: h * w * m * m] for view, (h, w) in zip(views, sizes, strict=True)])


class Gemma4UnifiedAdapter(Gemma4Adapter):
    """Adapter of `gemma4_unified`, which has no tower: a token is one large patch."""

    def merge(self, base: Any) -> int:
        """A token is one patch."""
        return 1

    def side(self, base: Any) -> int:  # noqa: D102
        return int(base.config.vision_config.model_patch_size)

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        raise UnsupportedModelError(
            "score must be 'similarity' for gemma4_unified, got one that is read in attention: it has no vision tower."
        )


def _raster(height: int, width: int, length: int) -> Tensor:
    """Column and row of each patch, row by row, and then -1: int (length, 2)."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return F.pad(torch.stack([columns, rows], -1).flatten(0, 1), (0, 0, 0, length - height * width), value=-1)
