"""What the LLaVA-NeXT line shares: thumbnail first, crops stitched, unpadded, perhaps shrunk, a newline per line.

The packing is traced, not computed again: numbered tokens go through the model's own packing code, and where they come
out is the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.layers import layer_of
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError, UnsupportedModelError

THUMBNAIL, CROP, NEWLINE = 0.0, 1.0, 2.0  # the kinds of numbered tokens


@dataclass(frozen=True)
class Packing:
    """A layout follows from this and the image's size."""

    model: type
    """The class whose `pack_image_features` is traced."""
    pinpoints: tuple[tuple[int, ...], ...]
    """The resolutions, (height, width) in px, that an image is scaled to."""
    view: int
    """Side of a view in px."""
    patch: int
    """Side of a patch in px."""
    downsample: str | None = None
    """Tokens per patch along a side, as a fraction."""
    arguments: tuple[tuple[str, Any], ...] = ()
    """Further keyword arguments of the packing."""

    @property
    def side(self) -> int:
        """Tokens along a view's side."""
        return int(self.view // self.patch * Fraction(self.downsample or 1))


def packing_of(model: type, config: Any, downsample: str | None = None, **arguments: Any) -> Packing:
    """The packing of a model.

    Args:
        model: The class whose `pack_image_features` is traced.
        config: The model's configuration.
        downsample: Tokens per patch along a side, as a fraction such as "4/8"; None for one.
        arguments: Further keyword arguments of the packing.
    """
    pinpoints = tuple(tuple(p) for p in config.image_grid_pinpoints)
    vision = config.vision_config
    return Packing(model, pinpoints, vision.image_size, vision.patch_size, downsample, tuple(arguments.items()))


@dataclass(frozen=True, eq=False)
class AnyresLayout(Layout):
    """A layout whose places may hold mixtures of tokens.

    Where the stitched crops are shrunk, the token nearest to a place stands for it, and only these tokens are valid.
    """

    mixture: tuple[Tensor, Tensor, Tensor] | None = None
    """Three tensors with one row per place of the shrunk crops, or None where nothing is shrunk: the token that stands
    for the place, int (places,); the four tokens that are mixed there, int (places, 4); their weights, (places, 4).
    Tokens are numbered in [thumbnail | crops]."""


@lru_cache(maxsize=256)  # a megabyte each where 36 crops are shrunk
def layout_of(packing: Packing, height: int, width: int, crops: bool = True) -> AnyresLayout:
    """The layout of one image.

    Args:
        packing: The model's packing.
        height: Of the image, in px.
        width: Of the image, in px.
        crops: False for an image that enters as its thumbnail alone.
    """
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
    """Kind, y and x of every token, (1 + crops, tokens, 3).

    For tokens of crops, y and x count on the stitched crops; for those of the thumbnail, within it.
    """
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64)] * 2, indexing="ij")
    views = [torch.stack([torch.full_like(y, THUMBNAIL), y, x], -1)]
    views += [
        torch.stack([torch.full_like(y, CROP), y + r * side, x + c * side], -1)
        for r in range(rows)
        for c in range(cols)
    ]
    return torch.stack(views).flatten(1, 2)


def _read(kind: Tensor, y: Tensor, x: Tensor, grid: tuple[int, int], side: int) -> AnyresLayout:
    """The layout, from the numbered tokens as the packing put them out: kind, y and x of each place, (places,)."""
    tokens, views = side * side, 1 + grid[0] * grid[1]
    kind = kind.round()  # shrinking interpolates the kind like any other channel
    newline, crop = kind == NEWLINE, kind == CROP

    def number(y: Tensor, x: Tensor) -> Tensor:
        """The number in [thumbnail | crops] of the crop token at y and x of the stitched crops."""
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
    """Height and width in px of each image of a call, in prompt order.

    Args:
        call: The keyword arguments of the model's call.
        strategy: The `vision_feature_select_strategy` that the adapter handles.

    Raises:
        InputError: `image_sizes` are missing or malformed, or the call asks for another strategy.
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
    """Raise `InputError` if a call asks for another `vision_feature_select_strategy` than this one."""
    given = call.get("vision_feature_select_strategy")
    if given not in (None, strategy):
        raise InputError(f"vision_feature_select_strategy must be {strategy!r} in a compressed call, got {given!r}.")


def check_views(pixels: Tensor, layouts: list[AnyresLayout]) -> None:
    """Raise `InputError` if there are not as many views in `pixel_values` as the images' sizes say."""
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


class AnyresAdapter(Adapter):
    """What the adapters of these families share. The model's own `get_image_features` projects and packs all tokens."""

    model: type
    """The class whose `pack_image_features` is traced."""
    tower: str
    """Model type of the vision tower."""
    strategy: str
    """The `vision_feature_select_strategy` under which tokens fill a square."""

    def check(self, base: Any) -> None:  # noqa: D102
        config = base.config
        if config.vision_feature_select_strategy != self.strategy:
            why = (
                "keeps [CLS] among the tokens"
                if self.strategy == "default"
                else "drops a token of a tower without [CLS]"
            )
            raise UnsupportedModelError(
                f"vision_feature_select_strategy must be {self.strategy!r} for {config.model_type}, got "
                f"{config.vision_feature_select_strategy!r}: {config.vision_feature_select_strategy!r} {why}. "
                f"Set model.config.vision_feature_select_strategy = {self.strategy!r}."
            )
        if config.vision_config.model_type != self.tower:
            raise UnsupportedModelError(
                f"the vision tower of {config.model_type} must be a {self.tower}, got "
                f"{config.vision_config.model_type!r}."
            )

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        tower = getattr(base.vision_tower, "vision_model", base.vision_tower)
        return layer_of([block.self_attn for block in tower.encoder.layers], layer)

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        layouts = self.layouts_of_sizes(base.config, call, image_sizes(call, self.strategy))
        check_views(call["pixel_values"], layouts)
        return list(layouts)

    def layouts_of_sizes(self, config: Any, call: dict[str, Any], sizes: list[tuple[int, int]]) -> list[AnyresLayout]:
        """One layout per image.

        Args:
            config: The model's configuration.
            call: The keyword arguments of the model's call; empty where there is none.
            sizes: Height and width in px of each image.
        """
        packing = packing_of(self.model, config, vision_feature_select_strategy=self.strategy)
        return [layout_of(packing, *size) for size in sizes]

    def layout(self, config: Any, height: int, width: int) -> Layout:  # noqa: D102
        return self.layouts_of_sizes(config, {}, [(height, width)])[0]
