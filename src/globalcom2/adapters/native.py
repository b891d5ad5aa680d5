"""What families share whose images keep their resolution: windows of the token grid play the crops, a guide commands them.

An image is one run of tokens, without tiles and without a thumbnail. Its grid of tokens is cut into windows of nearly equal
size, which play the crops. A guide plays the thumbnail: it commands and is never read. A pooled guide is a small map of the
image's own scores. A guide of kind "thumbnail" is the image at a third of its size, which rides in the same pass of the tower.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalcom2.adapters.base import Adapter, gather, repeat_rows
from globalcom2.adapters.layers import layer_of
from globalcom2.adapters.patches import image_of, patches_of, shrunk
from globalcom2.adapters.tagged import Size, block_means
from globalcom2.adapters.windows import windows
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError, UnsupportedModelError, unknown_name

GUIDES = ("pooled", "thumbnail")


class NativeAdapter(Adapter):
    """Images as grids of patches, told by `image_grid_thw`, of which blocks of `merge` x `merge` make a token."""

    cls_index = None
    default_score = "similarity"
    native = True
    guide = "pooled"
    """Whether a pooled map of the image's own scores commands, or a "thumbnail" of its own."""
    row_by_row = False
    """Whether patches come row by row. Else blocks that make a token come one after another."""
    channels_last = False
    """Whether the values of a patch have the channels of each pixel together. Else they come channel by channel."""
    frames_first = False
    """Whether a patch with several frames has all channels of one before the next. Else all frames of a channel."""
    grid_name = "image_grid_thw"

    def check(self, base: Any) -> None:
        """Sizes come with each call."""

    def guided(self, guide: str | None) -> Adapter:  # noqa: D102
        if guide is None:
            return self
        if guide not in GUIDES:
            raise unknown_name("guide", guide, GUIDES)
        other = copy.copy(self)
        other.guide = guide
        return other

    def merge(self, base: Any) -> int:
        """Patches on a side of a token."""
        return int(base.config.vision_config.spatial_merge_size)

    def side(self, base: Any) -> int:
        """px on a side of a patch."""
        return int(base.config.vision_config.patch_size)

    def tower(self, base: Any) -> nn.Module:
        """The vision tower."""
        return base.visual  # type: ignore[no-any-return]

    def attentions(self, base: Any) -> list[nn.Module]:
        """Attention modules of the tower's layers, in order."""
        return [block.attn for block in self.tower(base).blocks]  # type: ignore[union-attr]

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        return layer_of(self.attentions(base), layer)

    def default_layer(self, base: Any) -> int:  # noqa: D102
        return -1

    def videos(self) -> Adapter | None:  # noqa: D102
        return RefusedVideos()

    # -- sizes

    def grids(self, base: Any, call: dict[str, Any]) -> list[Size]:
        """Height and width in patches of each image, checked against the pixels.

        Raises:
            InputError: No grids, or such as do not fit pixels or tokens.
        """
        name, merge = self.grid_name, self.merge(base)
        grids, pixels = call.get(name), call[self.pixels]
        if not isinstance(grids, Tensor) or grids.ndim != 2 or grids.shape[1] != 3:
            got = f"shape {tuple(grids.shape)}" if isinstance(grids, Tensor) else repr(grids)
            raise InputError(f"{name} must be (images, 3), got {got:.120}. Pass everything the processor returned.")
        sizes = [tuple(int(n) for n in grid) for grid in grids.tolist()]
        for t, h, w in sizes:
            if t != 1:
                raise InputError(
                    f"{name} must have one frame per image, got {t} x {h} x {w}. Pass clips as videos, in a family whose "
                    "videos are compressed, or leave the block."
                )
            if h < merge or w < merge or h % merge or w % merge:
                raise InputError(
                    f"{name} must have sides in patches that are multiples of {merge}, got {h} x {w}. Pass everything the "
                    "processor returned."
                )
        patches = sum(h * w for _, h, w in sizes)
        if len(pixels) != patches:
            raise InputError(
                f"{self.pixels} must hold the {patches} patches of {name}, got {len(pixels)}. Pass everything the processor "
                "returned."
            )
        return [(h, w) for _, h, w in sizes]

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        m = self.merge(base)
        return [windows(h // m, w // m, self.guide) for h, w in self.grids(base, call)]

    # -- the pass of the tower

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:  # noqa: D102
        if self.guide == "thumbnail":
            arguments = self.with_guides(base, arguments, layouts)
        return super().encode(base, arguments, layouts)

    def with_guides(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> dict[str, Any]:
        """A call of the encoder with the guides of all images after the images themselves."""
        pixels, grids, m = arguments[self.pixels], arguments[self.grid_name], self.merge(base)
        side, block = self.side(base), 1 if self.row_by_row else m
        images = [(layout.size[0] * m, layout.size[1] * m) for layout in layouts]
        guides = [(height * m, width * m) for height, width in (layout.guide_grid for layout in layouts)]  # type: ignore[misc]
        own = pixels.split([h * w for h, w in images])
        small = [
            patches_of(shrunk(image_of(patches, size, side, block), (h * side, w * side)), (h, w), side, block)
            for patches, size, (h, w) in zip(own, images, guides, strict=True)
        ]
        more = torch.tensor([[1, h, w] for h, w in guides], dtype=grids.dtype, device=grids.device)
        flat = torch.cat(small).view(-1, *pixels.shape[1:])
        return {**arguments, self.pixels: torch.cat([pixels, flat]), self.grid_name: torch.cat([grids, more])}

    def in_pairs(self, views: list[Tensor]) -> list[Tensor]:
        """Each guide before its image, from values of all images and then of all guides; as they are without guides."""
        if self.guide != "thumbnail":
            return views
        count = len(views) // 2
        return [view for pair in zip(views[count:], views[:count], strict=True) for view in pair]

    def tower_features(self, base: Any, encoded: Any) -> list[Tensor]:
        """Per image (tokens, dim): of a guide with a pass of its own, then of the image, row by row."""
        return self.in_pairs(list(encoded.pooler_output))

    def all_scores(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:
        """Scores (tokens,) in the order of `tower_features`: the mean over a token's patches."""
        return self._of_tokens(base, torch.cat([row.flatten() for row in rows])[:, None], layouts)[:, 0]

    def keys(self, base: Any, keys: list[Tensor], layouts: list[Layout]) -> Tensor:  # noqa: D102
        return self._of_tokens(base, torch.cat([row.flatten(0, 1) for row in keys]), layouts)

    def _of_tokens(self, base: Any, patches: Tensor, layouts: list[Layout]) -> Tensor:
        """From values of patches (patches, dim), as the tower reads them, to those of tokens (tokens, dim)."""
        m, sizes = self.merge(base), self.view_sizes(layouts)
        views = self.in_order(base, patches, sizes).split([h * w * m * m for h, w in sizes])
        if self.row_by_row:
            tokens = [block_means(view.T, m, size).T for view, size in zip(views, sizes, strict=True)]
        else:
            tokens = [view.unflatten(0, (-1, m * m)).mean(1) for view in views]
        return torch.cat(self.in_pairs(tokens))

    def view_sizes(self, layouts: list[Layout]) -> list[Size]:
        """Height and width in tokens of what the tower reads: all images, then all guides that have a pass of their own."""
        sizes = [layout.size for layout in layouts]
        return sizes + [layout.guide_grid for layout in layouts if layout.guide_pass]  # type: ignore[misc]

    def in_order(self, base: Any, patches: Tensor, sizes: list[Size]) -> Tensor:
        """Values of patches in the order of the pixels, for towers that change it.

        Args:
            base: The model that has `get_image_features`.
            patches: (patches, dim), of all views end to end.
            sizes: Height and width in tokens of each view.
        """
        return patches

    def parts(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The guide's scores (guide tokens,) and the windows' (windows, tokens, ...), 0 on padding.

        Of values that are no scores, a guide without a pass of its own has none.
        """
        guide, own = tokens.tensor_split([layout.tower_tokens - len(layout.slots)])
        if not layout.guide_pass and tokens.ndim == 1:
            pooled = F.adaptive_avg_pool2d(own.view(1, *layout.size).float(), layout.guide_grid)
            guide = pooled.flatten().to(own.dtype)
        cells = own.new_zeros(layout.valid.numel(), *own.shape[1:])
        slots = layout.slots.to(own.device, non_blocking=True)
        return guide, cells.index_copy(0, slots, own).unflatten(0, layout.valid.shape)

    # -- what stays

    def kept_features(self, base: Any, encoded: Any, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """Features (kept, dim), and beside them those of deeper levels: (kept, (1 + levels) * dim)."""
        levels = [encoded.pooler_output, *(getattr(encoded, "deepstack_features", None) or [])]
        return torch.cat([gather(level[: len(layouts)], places) for level in levels], -1)

    def output(self, features: Tensor, encoded: Any) -> Any:  # noqa: D102
        deeper = getattr(encoded, "deepstack_features", None)
        if not deeper:
            return super().output(features, encoded)
        first, *levels = features.chunk(1 + len(deeper), -1)
        output = type(encoded)(pooler_output=[first])
        output.deepstack_features = [[level] for level in levels]
        return output

    def repeat(self, output: Any, counts: list[int], times: int) -> Any:  # noqa: D102
        repeated = super().repeat(output, counts, times)
        if getattr(output, "deepstack_features", None):
            repeated.deepstack_features = [repeat_rows(level, counts, times) for level in output.deepstack_features]
        return repeated


class RefusedVideos(Adapter):
    """Stands for the videos of a family that are not compressed: a compressed call with one is refused."""

    modality = "video"
    pixels = "pixel_values_videos"

    def check(self, base: Any) -> None:
        """Nothing to check."""

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        raise UnsupportedModelError(f"{self.pixels} must be left out, got videos: this family's are not compressed.")

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        raise InputError(
            f"{self.pixels} must not be given in a compressed call of {base.config.model_type}, got videos: those of this "
            "family are not compressed. Leave the block for them."
        )

    def tower_features(self, base: Any, encoded: Any) -> Tensor:  # noqa: D102
        raise NotImplementedError
