"""What families share whose views have runs of placeholders of their own, with tags and separators between the runs.

Only the processor knows the tags' text. How views form images and crops form a grid is read from the ids between runs:
the same tag has the same ids wherever it stands.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable
from itertools import islice, repeat, tee
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters.base import Adapter, gather, stretches
from globalcom2.adapters.layers import layer_of
from globalcom2.core.layout import Layout, unpacked
from globalcom2.errors import InputError, UnsupportedModelError

Gaps = list[list[int]]
"""The ids before, between and after one prompt's runs of placeholders: one gap more than runs."""
Grid = tuple[int, int, bool]
"""Rows and columns of an image's crops, and whether they are known; (0, 0, True) without crops."""
Size = tuple[int, int]
"""Height and width of a view, in tokens."""


class TaggedAdapter(Adapter):
    """Every view has one run of placeholders. Views and runs are in the same order."""

    thumbnail_last = True
    """Whether the thumbnail is the last of an image's views; otherwise it is the first."""

    @abstractmethod
    def attentions(self, base: Any) -> list[nn.Module]:
        """The attention modules of the tower, one per layer."""

    @abstractmethod
    def views(self, base: Any, call: dict[str, Any]) -> tuple[list[int] | int, Size | list[Size]]:
        """How many views the pixels hold, and their size in tokens.

        Returns:
            The number of views per prompt, or of the whole call; the one size of all views, or a size for each view.
        """

    @abstractmethod
    def grids(self, base: Any, gaps: Gaps) -> list[Grid]:
        """The grids of one prompt's images, from the ids around their views."""

    @abstractmethod
    def factor(self, base: Any) -> int:
        """Patches along the side of a token, which stands for factor x factor of them."""

    def flat(self, base: Any, encoded: Any) -> Tensor:
        """All features (placeholders, dim) in prompt order."""
        return torch.cat([item.flatten(0, -2) for item in encoded.pooler_output])

    def check(self, base: Any) -> None:  # noqa: D102
        vision = base.config.vision_config
        if not isinstance(vision.image_size, int) or not isinstance(vision.patch_size, int):
            raise UnsupportedModelError(
                f"vision_config.image_size and patch_size must be one number each (square views), got "
                f"{vision.image_size!r} and {vision.patch_size!r}."
            )
        side, factor = vision.image_size // vision.patch_size, self.factor(base)
        if side % factor:
            raise UnsupportedModelError(f"a view's side must be a multiple of {factor} patches, got {side}.")

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        return layer_of(self.attentions(base), layer)

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        counts, size = self.views(base, call)
        sizes, left = tee(size if isinstance(size, list) else repeat(size))
        prompts = view_gaps(call["input_ids"], base.config.image_token_id, (height * width for height, width in sizes))
        runs = [len(gaps) - 1 for gaps in prompts]
        if counts not in (runs, sum(runs)):
            raise InputError(
                f"pixel_values must hold one view per run of image placeholders, got {counts} views for {runs} runs "
                "per prompt. Build prompts and images with one call of the processor."
            )
        grids = [grid for gaps in prompts if len(gaps) > 1 for grid in self.grids(base, gaps)]
        return [self._layout(grid, list(islice(left, 1 + grid[0] * grid[1]))) for grid in grids]

    def _layout(self, grid: Grid, sizes: list[Size]) -> Layout:
        """The layout of one image, from the sizes of its views in the tower's order."""
        rows, cols, known = grid
        thumbnail = sizes.pop(-1 if self.thumbnail_last else 0)
        if len(set(sizes)) > 1:
            raise InputError(
                f"pixel_values must hold crops of one size per image, got {sizes} (height, width in tokens)."
            )
        return unpacked(
            (rows, cols),
            sizes[0] if sizes else thumbnail,
            thumbnail_last=self.thumbnail_last,
            known_grid=known,
            thumbnail_grid=thumbnail,
        )

    def scores(self, base: Any, rows: Tensor) -> Tensor:
        """Scores (views, tokens): the mean over the block of patches that a token stands for."""
        return block_means(super().scores(base, rows), self.factor(base))

    def parts(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:  # noqa: D102
        first = tokens.roll(layout.thumbnail_tokens, 0) if self.thumbnail_last else tokens
        thumbnail, crops = first.tensor_split([layout.thumbnail_tokens])
        return thumbnail, crops.unflatten(0, (layout.views - 1, layout.tokens))

    def kept_features(self, base: Any, encoded: Any, layouts: list[Layout], places: list[Tensor]) -> Tensor:  # noqa: D102
        return gather(self.flat(base, encoded).split([len(layout.slots) for layout in layouts]), places)


def flat_views(pixels: Tensor, vision: Any, factor: int) -> tuple[int, tuple[int, int]]:
    """How many views `pixels` hold, and a view's token grid, for towers of one fixed size.

    Args:
        pixels: (views, channels, side, side).
        vision: The tower's configuration.
        factor: Patches along the side of a token.

    Raises:
        InputError: Pixels of another shape.
    """
    side = vision.image_size
    if pixels.ndim != 4 or tuple(pixels.shape[-2:]) != (side, side):
        raise InputError(
            f"pixel_values must be (views, channels, {side}, {side}) for this vision tower, got {tuple(pixels.shape)}. "
            "Pass what the processor returned."
        )
    tokens = side // vision.patch_size // factor
    return len(pixels), (tokens, tokens)


def view_gaps(ids: Tensor, image_token_id: int, lengths: Iterable[int]) -> list[Gaps]:
    """The ids around the runs of placeholders, per prompt.

    Args:
        ids: (batch, length), on the host.
        image_token_id: The placeholder.
        lengths: Of the runs of all prompts, in order.

    Raises:
        InputError: A run of another length.
    """
    prompts, left = [], iter(lengths)
    for prompt in ids:
        gaps: Gaps = [[]]
        for is_view, found in stretches(prompt, image_token_id):
            if not is_view:
                gaps[-1] = found.tolist()
            elif len(found) == (tokens := next(left, len(found))):
                gaps.append([])
            else:
                raise InputError(
                    f"input_ids must hold {tokens} image placeholders per view for these pixel_values, got a run of "
                    f"{len(found)}. Build prompts and images with one call of the processor."
                )
        prompts.append(gaps)
    return prompts


def by_image(gaps: Gaps, ends: Callable[[list[int]], bool]) -> list[Gaps]:
    """The gaps between the views of each image of a prompt; `ends` tells whether a gap lies between two images."""
    images: list[Gaps] = [[]]
    for gap in gaps[1:-1]:
        if ends(gap):
            images.append([])
        else:
            images[-1].append(gap)
    return images


def grid_of(new_row: list[bool]) -> tuple[int, int] | None:
    """(rows, cols) of crops, or None if their rows differ in length.

    Args:
        new_row: Per crop, whether it begins a row. The first one does, whatever is said of it.
    """
    starts = [i for i, new in enumerate(new_row) if new or i == 0]
    cols = len(new_row) // len(starts)
    return (len(starts), cols) if starts == list(range(0, len(new_row), cols)) else None


def grid_of_lines(between: Gaps) -> Grid:
    """The grid of crops, from the ids between them: two tags, and at a row's end a newline between the two."""
    grid = grid_of([True, *(len(gap) > 2 for gap in between)])
    return (1, len(between) + 1, False) if grid is None else (*grid, True)


def block_means(values: Tensor, factor: int, size: Size | None = None) -> Tensor:
    """The mean of each factor x factor block of patches: (views, patches) -> (views, tokens), both row-major.

    Args:
        values: (views, patches).
        factor: Patches along the side of a token.
        size: Height and width of a view in tokens; None for square views.
    """
    side = isqrt(values.shape[1]) // factor
    height, width = size or (side, side)
    blocks = values.reshape(len(values), height, factor, width, factor)
    return blocks.mean((2, 4)).flatten(1)
