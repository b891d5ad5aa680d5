"""What the tokens of a call are scored by: one pass of the vision tower, read in one layer, as `Views`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters import tap
from globalcom2.adapters.base import Adapter
from globalcom2.core.layout import Layout
from globalcom2.core.scores import similarity
from globalcom2.core.views import Views
from globalcom2.errors import UnsupportedModelError
from globalcom2.hf.visuals import Visuals


@dataclass
class Encoded:
    """One pass of the tower over a call's images, or videos."""

    visuals: Visuals
    output: Any
    """What the adapter's `encode` returned."""
    rows: list[Tensor]
    """What the tap read meanwhile."""


class Saliency:
    """How a model's tokens are scored.

    Args:
        base: The model that has `get_image_features`.
        adapter: That of its images.
        score: See `compress`; None is the family's own.
        layer: See `compress`; None is the layer of the features.
    """

    def __init__(self, base: Any, adapter: Adapter, score: str | None, layer: int | None):
        self.adapter = adapter
        self.score = score or adapter.default_score
        self.layer = adapter.default_layer(base) if layer is None else layer

    def attention(self, base: Any) -> nn.Module | None:
        """What to tap; nothing where scores do not come from attention."""
        return None if self.score == "similarity" else self.adapter.attention(base, self.layer)

    def encode(self, base: Any, visuals: Visuals) -> Encoded:
        """Run the tower, and read its rows meanwhile."""
        attention = self.attention(base)
        read = tap.reader(self.score, visuals.adapter.cls_index)
        with tap.record(attention, read) as recording:
            output = visuals.adapter.encode(base, visuals.arguments, visuals.layouts)
        if attention is not None and not recording.rows:
            raise UnsupportedModelError(
                f"layer {self.layer} of the vision tower must run when the tower does, got nothing from its tap."
            )
        return Encoded(visuals, output, recording.rows)

    def views(
        self, base: Any, encoded: Encoded, with_features: bool
    ) -> Iterator[tuple[Layout, list[int], Views, Tensor]]:
        """Images, or videos, of one layout at a time: it, their numbers in the call, views and thumbnails' scores."""
        visuals = encoded.visuals
        parts = _parts(self._scores(base, encoded), visuals)
        guidance = visuals.adapter.guidance(base, encoded.output, visuals.layouts)
        features = None
        if with_features:
            flat = torch.cat([view.flatten(0, -2) for view in _features(base, encoded)])
            features = [torch.cat([first[None], others]) for first, others in _parts(flat, visuals)]
        for layout in dict.fromkeys(visuals.layouts):
            members = [i for i, other in enumerate(visuals.layouts) if other is layout]
            thumbnails, crops = (torch.stack(tensors) for tensors in zip(*(parts[i] for i in members), strict=True))
            views = Views.of(
                layout,
                thumbnails,
                crops,
                self.score,
                features=None if features is None else torch.stack([features[i] for i in members]),
                guidance=None if guidance is None else torch.stack([guidance[i] for i in members]),
            )
            yield layout, members, views, thumbnails

    def _scores(self, base: Any, encoded: Encoded) -> Tensor:
        """Scores (tokens,) of all views end to end, in the tower's order."""
        visuals = encoded.visuals
        if self.score != "similarity":
            return visuals.adapter.all_scores(base, encoded.rows, visuals.layouts)
        return torch.cat([similarity(view).flatten() for view in _features(base, encoded)])


def _features(base: Any, encoded: Encoded) -> list[Tensor]:
    """Features (..., tokens, dim) of all views, in the tower's order."""
    features = encoded.visuals.adapter.tower_features(base, encoded.output)
    return features if isinstance(features, list) else [features]


def _parts(tokens: Tensor, visuals: Visuals) -> list[tuple[Tensor, Tensor]]:
    """Thumbnail and crops of each image, or pooled clip and frames of each video."""
    images = tokens.split([layout.tower_tokens for layout in visuals.layouts])
    return [visuals.adapter.parts(own, layout) for own, layout in zip(images, visuals.layouts, strict=True)]
