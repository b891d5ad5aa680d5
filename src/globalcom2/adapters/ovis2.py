"""Ovis2: the thumbnail, then crops parted by indicator ids, whose embeddings the vision side provides.

A prompt has `<IMG_START> thumbnail <IMG_GRID> view <IMG_COL> view ... <IMG_ROW> view ... <IMG_END>`.
`config.visual_indicator_token_ids` lists the ids in the order start, grid, col, row, end. Source: transformers'
processing_ovis2.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from globalcom2.adapters.tagged import Gaps, Grid, TaggedAdapter, by_image, flat_views, grid_of
from globalcom2.errors import InputError, UnsupportedModelError


class Ovis2Adapter(TaggedAdapter):
    """Adapter of `ovis2`."""

    cls_index = None
    default_score = "similarity"
    thumbnail_last = False

    def check(self, base: Any) -> None:  # noqa: D102
        super().check(base)
        if len(base.config.visual_indicator_token_ids) != 5:
            raise UnsupportedModelError(
                "visual_indicator_token_ids must be the ids of image start, grid, column, row and end, got "
                f"{base.config.visual_indicator_token_ids!r}."
            )

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.attention for layer in base.vision_tower.transformer.encoder.layers]

    def factor(self, base: Any) -> int:  # noqa: D102
        return int(base.config.vision_config.hidden_stride)

    def views(self, base: Any, call: dict[str, Any]) -> tuple[int, tuple[int, int]]:  # noqa: D102
        return flat_views(call["pixel_values"], base.config.vision_config, self.factor(base))

    def grids(self, base: Any, gaps: Gaps) -> list[Grid]:  # noqa: D102
        start, grid, col, row, end = base.config.visual_indicator_token_ids
        if start not in gaps[0] or end not in gaps[-1]:
            raise InputError(
                f"input_ids must hold the image start id {start} before and the image end id {end} after every image "
                "(config.visual_indicator_token_ids), got placeholders without them. Build prompts with the processor."
            )
        images = by_image(gaps, lambda gap: start in gap)
        return [_grid(image, grid, col, row) for image in images]

    def tower_features(self, base: Any, encoded: Any) -> Tensor:  # noqa: D102
        features: Tensor = encoded.pooler_output
        return features

    def output(self, features: Tensor, encoded: Any) -> Any:
        """The model's output class, with the embeddings of the indicator ids, which the forward reads too."""
        return type(encoded)(pooler_output=features[None], visual_indicator_features=encoded.visual_indicator_features)


def _grid(parts: Gaps, grid_id: int, col: int, row: int) -> Grid:
    """The grid of one image, from the ids between its views: the grid's after the thumbnail, then col's and row's."""
    if not parts:
        return 0, 0, True
    begin, *between = parts
    grid = grid_of([True, *(gap == [row] for gap in between)])
    if grid is None or begin != [grid_id] or any(gap not in ([col], [row]) for gap in between):
        return 1, len(parts), False
    return *grid, True
