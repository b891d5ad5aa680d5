"""Llama 4: crops parted by separators, then the thumbnail; [CLS] last in the tower's sequence.

A prompt has `<boi> view x view ... y view x view ... y <image> thumbnail <eoi>`: x parts crops, and y ends each row of
them. The processor pads at the right and below. Nothing in a call tells how much, and the tower does not mask it, so
padding counts as image here. Source: transformers' processing_llama4.py.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from globalcom2.adapters.base import repeat_rows
from globalcom2.adapters.tagged import Gaps, Grid, TaggedAdapter, by_image, flat_views, grid_of
from globalcom2.errors import InputError


class Llama4Adapter(TaggedAdapter):
    """Adapter of `llama4`."""

    cls_index = -1
    projects_kept_only = True  # in the model's forward

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_model.model.layers]

    def factor(self, base: Any) -> int:  # noqa: D102
        patches: int = round(1 / base.config.vision_config.pixel_shuffle_ratio)
        return patches

    def views(self, base: Any, call: dict[str, Any]) -> tuple[int, tuple[int, int]]:  # noqa: D102
        return flat_views(call["pixel_values"], base.config.vision_config, self.factor(base))

    def grids(self, base: Any, gaps: Gaps) -> list[Grid]:  # noqa: D102
        begin, end = base.config.boi_token_id, base.config.eoi_token_id
        if begin not in gaps[0] or end not in gaps[-1]:
            raise InputError(
                f"input_ids must hold boi_token_id={begin} before and eoi_token_id={end} after every image, got image "
                "placeholders without them. Build prompts with the processor."
            )
        return [_grid(image) for image in by_image(gaps, lambda gap: begin in gap)]

    def flat(self, base: Any, encoded: Any) -> Tensor:
        """All features (placeholders, dim) in prompt order, not projected: the model's forward does that."""
        features: Tensor = encoded.last_hidden_state.flatten(0, 1)
        return features

    def tower_features(self, base: Any, encoded: Any) -> Tensor:  # noqa: D102
        features: Tensor = encoded.last_hidden_state
        return features

    def output(self, features: Tensor, encoded: Any) -> Any:  # noqa: D102
        return BaseModelOutputWithPooling(last_hidden_state=features[None])

    def repeat(self, output: Any, counts: list[int], times: int) -> Any:
        """The forward reads `last_hidden_state`."""
        repeated = copy.copy(output)
        repeated.last_hidden_state = repeat_rows(output.last_hidden_state, counts, times)
        return repeated


def _grid(parts: Gaps) -> Grid:
    """The grid of one image, from the ids between its views: x or y between crops, y and a tag before the thumbnail."""
    if not parts:
        return 0, 0, True
    *between, end = parts
    row = end[:1]
    grid = grid_of([True, *(gap == row for gap in between)])
    columns = {tuple(gap) for gap in between if gap != row}
    if grid is None or len(end) != 2 or len(columns) > 1 or any(len(gap) != 1 for gap in between):
        return 1, len(parts), False
    return *grid, True
