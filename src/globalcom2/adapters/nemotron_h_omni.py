"""Nemotron H Omni: native resolution, a RADIO tower that reads patches row by row behind a few tokens of its own."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.tagged import Size
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError


class NemotronHOmniAdapter(NativeAdapter):
    """Adapter of `nemotron_h_omni`, whose language model has recurrent layers. Sound and videos are not compressed."""

    row_by_row = True
    grid_name = "image_grid_hw"

    def merge(self, base: Any) -> int:  # noqa: D102
        return round(1 / float(base.config.downsample_ratio))

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.attention for layer in base.vision_model.encoder.layer]

    def grids(self, base: Any, call: dict[str, Any]) -> list[Size]:  # noqa: D102
        given = call.get(self.grid_name)
        if not isinstance(given, Tensor) or given.ndim != 2 or given.shape[1] != 2:
            got = f"shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
            raise InputError(
                f"{self.grid_name} must be (images, 2), got {got:.120}. Pass everything the processor returned."
            )
        return super().grids(base, {**call, self.grid_name: F.pad(given, (1, 0), value=1)})

    def with_guides(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> dict[str, Any]:  # noqa: D102
        framed = {**arguments, self.grid_name: F.pad(arguments[self.grid_name], (1, 0), value=1)}
        both = super().with_guides(base, framed, layouts)
        return {**both, self.grid_name: both[self.grid_name][:, 1:]}

    def all_scores(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:  # noqa: D102
        return super().all_scores(base, self._patches(base, rows), layouts)

    def keys(self, base: Any, keys: list[Tensor], layouts: list[Layout]) -> Tensor:  # noqa: D102
        return super().keys(base, self._patches(base, keys), layouts)

    def _patches(self, base: Any, rows: list[Tensor]) -> list[Tensor]:
        """Values (views, sequence, ...) without those of the tower's own tokens, which come first."""
        own = int(base.config.vision_config.num_summary_tokens)
        return [row[:, own:] for row in rows]
