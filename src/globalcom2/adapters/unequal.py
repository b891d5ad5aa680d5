"""What families share whose views differ in size: every view has its own token grid and its own run of placeholders."""

from __future__ import annotations

from math import isqrt
from typing import Any

import torch
from torch import Tensor

from globalcom2.adapters.tagged import Size, TaggedAdapter, block_means
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError


class UnequalAdapter(TaggedAdapter):
    """Towers without [CLS] that take views of any size. `pooler_output` is a list with one (tokens, dim) per view."""

    cls_index = None
    default_score = "similarity"

    def block(self, base: Any, patches: int, tokens: int) -> int:
        """Patches along a token's side.

        Args:
            base: The model that has `get_image_features`.
            patches: What the tapped layer reads of a view.
            tokens: What the language model reads of that view.
        """
        return isqrt(patches // tokens)

    def all_scores(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:
        """Scores (tokens,) of all views end to end: the mean over a token's patches."""
        sizes = [size for layout in layouts for size in self.sizes(layout)]
        scores = []
        for row, (height, width) in zip((row for several in rows for row in several), sizes, strict=True):
            block = self.block(base, len(row), height * width)
            patches = row[: height * width * block**2]  # what follows is padding
            scores.append(block_means(patches[None], block, (height, width))[0])
        return torch.cat(scores)

    def sizes(self, layout: Layout) -> list[Size]:
        """Height and width in tokens of each of an image's views, in prompt order."""
        crops = [layout.token_grid] * (layout.views - 1)
        return [*crops, layout.thumbnail_grid] if self.thumbnail_last else [layout.thumbnail_grid, *crops]

    def tower_features(self, base: Any, encoded: Any) -> list[Tensor]:
        """The features as the language model would read them, one (tokens, dim) per view."""
        return list(encoded.pooler_output)


def tokens_of(name: str, sizes: Tensor | None, factor: int) -> list[Size]:
    """Height and width in tokens of each view.

    Args:
        name: The argument that the sizes came as.
        sizes: Heights and widths in patches, (views, 2).
        factor: Patches along the side of a token.

    Raises:
        InputError: No such tensor, or a side that is no multiple of `factor`.
    """
    if sizes is None or sizes.ndim != 2 or sizes.shape[1] != 2 or bool((sizes % factor).any()):
        got = None if sizes is None else sizes.tolist()
        raise InputError(
            f"{name} must be (views, 2) heights and widths in patches, multiples of {factor}, got {got!r:.120}. Pass "
            "everything the processor returned."
        )
    return [(height, width) for height, width in (sizes // factor).tolist()]
