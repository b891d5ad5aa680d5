"""What the LLaVA-NeXT line shares: thumbnail first, crops stitched, unpadded, perhaps shrunk, a newline per line.

Nothing of that is computed again here. Numbered tokens go through the model's own packing, and where they come out is
the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from globalcom2.core.layout import Layout
from globalcom2.errors import InputError

THUMBNAIL, CROP, NEWLINE = 0.0, 1.0, 2.0


@dataclass(frozen=True)
class Packing:
    """Everything but the image's size that a layout follows from."""

    model: type
    """Has the `pack_image_features` that is traced."""
    pinpoints: tuple[tuple[int, ...], ...]
    view: int
    patch: int
    downsample: str | None = None
    """Tokens per patch along a side, as a fraction."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Further keyword arguments of the packing."""

    @property
    def side(self) -> int:
        """Tokens along a view's side."""
        return int(self.view // self.patch * Fraction(self.downsample or 1))


def packing_of(model: type, config: Any, downsample: str | None = None, **arguments: Any) -> Packing:
    """The packing of a model with that configuration."""
    pinpoints = tuple(tuple(p) for p in config.image_grid_pinpoints)
    vision = config.vision_config
    return Packing(model, pinpoints, vision.image_size, vision.patch_size, downsample, tuple(arguments.items()))


@dataclass(frozen=True, eq=False)
class AnyresLayout(Layout):
    """A layout whose packed places may be mixtures of tokens: where the stitched crops are shrunk, each place is
    represented by the token nearest to it, and only these tokens are valid."""

    mixture: tuple[Tensor, Tensor, Tensor] | None = None
    """Tokens int (places,), the four tokens that the shrinking mixes there int (places, 4), and their weights, all
    counted in [thumbnail | crops]; None where nothing is shrunk."""


@lru_cache(maxsize=256)  # a megabyte each where 36 crops are shrunk
def layout_of(packing: Packing, height: int, width: int, crops: bool = True) -> AnyresLayout:
    """The layout of an image of that size in px; without `crops`, that of its thumbnail alone."""
    pinpoints = [list(p) for p in packing.pinpoints]
    size, side = [height, width], packing.side
    rows, cols = get_anyres_image_grid_shape(size, pinpoints, packing.view) if crops else (0, 0)
    model = SimpleNamespace(
        config=SimpleNamespace(
            image_grid_pinpoints=pinpoints,
            vision_config=SimpleNamespace(image_size=packing.view, patch_size=packing.patch),
        ),
        downsample_rate=packing.downsample,
        layerwise_projectors=(),
    )
    packed = packing.model.pack_image_features(  # type: ignore[attr-defined]
        model,
        [_numbered(rows, cols, side)],
        [size],
        image_newline=torch.tensor([NEWLINE, 0, 0], dtype=torch.float64),
        **dict(packing.arguments),
    )
    kind, y, x = (packed[0] if isinstance(packed, tuple) else packed)[0].unbind(1)
    return _read(kind, y, x, (rows, cols), side)


def _numbered(rows: int, cols: int, side: int) -> Tensor:
    """Kind, y and x of every token, (1 + crops, tokens, 3): a crop's on the stitched crops."""
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    views = [torch.stack([torch.full_like(y, THUMBNAIL), y, x], -1)]
    views += [
        torch.stack([torch.full_like(y, CROP), y + r * side, x + c * side], -1)
        for r in range(rows)
        for c in range(cols)
    ]
    return torch.stack(views).flatten(1, 2)


def _read(kind: Tensor, y: Tensor, x: Tensor, grid: tuple[int, int], side: int) -> AnyresLayout:
    tokens, views = side * side, 1 + grid[0] * grid[1]
    kind = kind.round()  # interpolated too
    newline, crop = kind == NEWLINE, kind == CROP

    def number(y: Tensor, x: Tensor) -> Tensor:
        """Of the crop token at y and x of the stitched crops, in [thumbnail | crops]."""
        y, x = y.long().clamp(max=grid[0] * side - 1), x.long().clamp(max=grid[1] * side - 1)
        return tokens * (1 + y // side * grid[1] + x // side) + y % side * side + x % side

    slots = (y * side + x).long()
    # Shrinking spaces places by more than a token, so that no two of them have the same nearest one.
    slots[crop] = number((y[crop] + 0.5).floor(), (x[crop] + 0.5).floor())
    valid = torch.zeros(views * tokens, dtype=torch.bool)
    valid[slots[crop]] = True
    lines = torch.full((views * tokens,), -1)
    lines[slots[crop]] = (newline.long().cumsum(0) - newline.long())[crop]
    mixture = None
    top, left = y[crop].floor(), x[crop].floor()
    down, right = y[crop] - top, x[crop] - left
    if bool((down + right).any()):
        corners = [(top + i, left + j) for i in (0, 1) for j in (0, 1)]
        shares = [a * b for a in (1 - down, down) for b in (1 - right, right)]
        mixture = slots[crop], torch.stack([number(*at) for at in corners], 1), torch.stack(shares, 1)
    # Without crop tokens (no crops, or a strip under one token wide), newlines end no token.
    slots[newline] = views * tokens + torch.arange(int(newline.sum())) if bool(crop.any()) else -1
    return AnyresLayout(
        grid=grid,
        token_grid=(side, side),
        valid=valid[tokens:].view(views - 1, tokens),
        lines=lines[tokens:].view(views - 1, tokens),
        slots=slots,
        mixture=mixture,
    )


def image_sizes(call: dict[str, Any], strategy: str) -> list[tuple[int, int]]:
    """Heights and widths in px, in prompt order; raises for a call that cannot be compressed.

    Args:
        call: The keyword arguments of the model's call.
        strategy: The `vision_feature_select_strategy` that the adapter handles.
    """
    sizes = call.get("image_sizes")
    if sizes is None:
        raise InputError(
            "image_sizes must be given with pixel_values, got None. Pass everything the processor returned."
        )
    sizes = sizes.tolist() if hasattr(sizes, "tolist") else list(sizes)
    if not all(isinstance(size, (list, tuple)) and len(size) == 2 for size in sizes):
        raise InputError(f"image_sizes must be (images, 2) heights and widths, got {call['image_sizes']!r:.80}.")
    check_strategy(call, strategy)
    return [(int(height), int(width)) for height, width in sizes]


def check_strategy(call: dict[str, Any], strategy: str) -> None:
    """Raise if a call asks for another `vision_feature_select_strategy`."""
    given = call.get("vision_feature_select_strategy")
    if given not in (None, strategy):
        raise InputError(f"vision_feature_select_strategy must be {strategy!r} in a compressed call, got {given!r}.")


def check_views(pixels: Tensor, layouts: list[AnyresLayout]) -> None:
    """Raise if there are not as many views in `pixel_values` as the images' sizes say."""
    wanted = [layout.views for layout in layouts]
    if pixels.ndim == 5 and len(pixels) != len(layouts):
        raise InputError(
            f"pixel_values and image_sizes must describe the same images, got {len(pixels)} and {len(layouts)}. "
            "Pass both as the processor returned them."
        )
    if (pixels.ndim == 5 and pixels.shape[1] < max(wanted)) or (pixels.ndim == 4 and len(pixels) != sum(wanted)):
        raise InputError(
            f"pixel_values must hold {wanted} views for these image_sizes, got shape {tuple(pixels.shape)}. "
            "Pass both as the processor returned them."
        )
