"""Runs the vision tower once and makes `Views` of it: scores, and whatever else a method reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from globalcom2.adapters import tap
from globalcom2.adapters.base import Adapter
from globalcom2.adapters.unequal import UnequalAdapter
from globalcom2.core.layout import Layout
from globalcom2.core.method import Method
from globalcom2.core.scores import SCORE_TYPES, similarity
from globalcom2.core.views import Views
from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.hf.visuals import Visuals


@dataclass
class Encoded:
    """What one pass of the vision tower over a call's images, or videos, gave."""

    visuals: Visuals
    output: Any
    """Return value of the adapter's `encode`."""
    rows: list[Tensor]
    """Rows read in the score layer, float (views, sequence), one tensor per run of the tower."""
    layer_rows: list[list[Tensor]] = field(default_factory=list)
    """Rows read in each of the method's further layers, as in `rows`."""
    keys: list[Tensor] = field(default_factory=list)
    """Keys of the score layer, float (views, sequence, dim), one tensor per run of the tower."""
    cls: Tensor | None = None
    """[CLS] in the tower's output, float (views, dim)."""


class Saliency:
    """Reads scores of tokens, and whatever else a method wants, in a model's vision tower.

    Args:
        base: The model that has `get_image_features`.
        adapter: The adapter of its images.
        score: See `compress`. None: the score type that `method` names, else the family's default.
        layer: See `compress`. None: the layer of the features.
        method: The selector that gets the views. None: one that reads scores alone.

    Raises:
        InputError: A layer that the tower does not have, or a score type that the method cannot read.
        UnsupportedModelError: The family cannot give what the method reads.
    """

    def __init__(self, base: Any, adapter: Adapter, score: str | None, layer: int | None, method: Method | None = None):
        self.adapter = adapter
        self.method = method
        self.score = score or (None if method is None else method.score) or adapter.default_score
        self.layer = adapter.default_layer(base) if layer is None else layer
        self.layers: tuple[int, ...] = () if method is None else method.layers
        self.wanted: frozenset[str] = frozenset() if method is None else method.wanted
        self._check(base)

    def _check(self, base: Any) -> None:
        """Raise, before any call, if the family cannot give what the method reads."""
        kind = base.config.model_type
        name = "" if self.method is None else self.method.name
        if self.score not in SCORE_TYPES:
            raise InputError(f"score of method {name!r} must be one of {', '.join(SCORE_TYPES)}, got {self.score!r}.")
        if self.layers and self.score == "similarity":
            raise InputError(
                f"score must be one that is read in attention for method {name!r}, which compares layers, got 'similarity'. "
                "Pass score='mean_query'."
            )
        if "keys" in self.wanted and isinstance(self.adapter, UnequalAdapter):
            raise UnsupportedModelError(
                f"method must be one that reads no keys for {kind}, whose views differ in size, got {name!r}."
            )
        if "cls" in self.wanted and self._tower(base) is None:
            why = "which has no [CLS]" if self.adapter.cls_index is None else "whose tower does not return [CLS]"
            raise UnsupportedModelError(
                f"method must be one that reads no [CLS] feature for {kind}, {why}, got {name!r}."
            )
        self.taps(base)

    def attention(self, base: Any) -> nn.Module | None:
        """Attention module that scores are read in. None for scores that do not come from attention."""
        if self.score == "similarity":
            return None
        chosen = self.method is not None and self.method.score == self.score != self.adapter.default_score
        return self._attention(base, self.layer, f"is defined on score {self.score!r}" if chosen else "")

    def taps(self, base: Any) -> list[nn.Module]:
        """All attention modules that are read, each once."""
        modules = [self.attention(base), *self._further(base), self._keyed(base)]
        return list({id(module): module for module in modules if module is not None}.values())

    def _further(self, base: Any) -> list[nn.Module]:
        return [self._attention(base, layer, f"reads layer {layer}") for layer in self.layers]

    def _keyed(self, base: Any) -> nn.Module | None:
        return self._attention(base, self.layer, "reads keys") if "keys" in self.wanted else None

    def _attention(self, base: Any, layer: int, why: str) -> nn.Module:
        """Attention module of a layer. With a `why`, an error names the method and gives it as the reason."""
        try:
            return self.adapter.attention(base, layer)
        except (InputError, UnsupportedModelError) as error:
            if not why or self.method is None:
                raise
            raise type(error)(
                f"method must be one that this model has the layers for, got {self.method.name!r}, which {why}: {error}"
            ) from None

    def _tower(self, base: Any) -> nn.Module | None:
        """Module whose output has [CLS]. None if the method does not read it, or the tower has none."""
        if "cls" not in self.wanted or self.adapter.cls_index is None:
            return None
        return getattr(base, "vision_tower", None)

    def example(self) -> Views:
        """Views of a thumbnail and four crops of four tokens, all zero, with everything that the method reads."""
        zeros = torch.zeros(5, 4, 1)
        guided = self.adapter.native
        return Views(
            zeros[1:, :, 0],
            None,
            (2, 2),
            zeros if "features" in self.wanted else None,
            None if guided else zeros[0, :, 0],
            score_type=self.score,
            layer_scores=torch.zeros(len(self.layers), 5, 4) if self.layers else None,
            keys=zeros if "keys" in self.wanted else None,
            cls=zeros[:, 0] if "cls" in self.wanted else None,
            crop_features=zeros[1:] if "crop_features" in self.wanted else None,
            guide_scores=zeros[0, :, 0] if guided else None,
            guide_grid=(2, 2) if guided else None,
        )

    def encode(self, base: Any, visuals: Visuals) -> Encoded:
        """Run the tower once and read what is wanted."""
        adapter = visuals.adapter
        attention = self.attention(base)
        read = tap.in_segments(tap.reader(self.score, adapter.cls_index), adapter.segments(base, visuals.layouts))
        further = [tap.Recording(module, read) for module in self._further(base)]
        keys = tap.Recording(self._keyed(base), tap.mean_keys)
        with tap.record(attention, read, *further, keys) as recording, tap.outputs_of(self._tower(base)) as outputs:
            output = adapter.encode(base, visuals.arguments, visuals.layouts)
        layers = (self.layer, *self.layers, self.layer)
        for layer, own in zip(layers, (recording, *further, keys), strict=True):
            if own.module is not None and not own.rows:
                raise UnsupportedModelError(
                    f"layer {layer} of the vision tower must run when the tower does, got nothing from its tap."
                )
        cls = self._cls(base, outputs) if "cls" in self.wanted else None
        return Encoded(visuals, output, recording.rows, [own.rows for own in further], keys.rows, cls)

    def _cls(self, base: Any, outputs: list[Any]) -> Tensor:
        """[CLS] in the tower's output, float (views, dim)."""
        hidden = [getattr(output, "last_hidden_state", None) for output in outputs]
        found = [states[:, self.adapter.cls_index] for states in hidden if isinstance(states, Tensor)]
        if not found:
            raise UnsupportedModelError(
                f"the vision tower of {base.config.model_type} must return last_hidden_state for a method that reads [CLS], "
                f"got {[type(output).__name__ for output in outputs]}."
            )
        return torch.cat(found)

    def views(self, base: Any, encoded: Encoded) -> Iterator[tuple[Layout, list[int], Views, Tensor]]:
        """Group images, or videos, by layout.

        Returns:
            Per layout: the layout, the images' indices in the call, their views, and their thumbnails' scores, float
            (images, tokens).

        Raises:
            InputError: The method compares tokens of all views, but the thumbnail has a token grid of its own.
        """
        visuals = encoded.visuals
        self._check_grids(visuals.layouts)
        parts = _parts(self._scores(base, encoded), visuals)
        given = {"guidance": visuals.adapter.guidance(base, encoded.output, visuals.layouts)}
        if self.wanted & {"features", "crop_features"}:
            flat = torch.cat([view.flatten(0, -2) for view in _features(base, encoded)])
            if "features" in self.wanted:
                given["features"] = _by_view(flat, visuals)
            else:
                given["crop_features"] = [crops for _, crops in _parts(flat, visuals)]
        if self.layers:
            rows = [visuals.adapter.all_scores(base, own, visuals.layouts) for own in encoded.layer_rows]
            given["layer_scores"] = [image.movedim(-1, 0) for image in _by_view(torch.stack(rows, -1), visuals)]
        if "keys" in self.wanted:
            given["keys"] = _by_view(_keys_of_tokens(base, encoded), visuals)
        if encoded.cls is not None:
            given["cls_features"] = _cls_by_view(encoded.cls, visuals)
        for layout in dict.fromkeys(visuals.layouts):
            members = [i for i, other in enumerate(visuals.layouts) if other is layout]
            thumbnails, crops = (torch.stack(tensors) for tensors in zip(*(parts[i] for i in members), strict=True))
            more = {name: torch.stack([x[i] for i in members]) for name, x in given.items() if x is not None}
            yield layout, members, Views.of(layout, thumbnails, crops, self.score, **more), thumbnails

    def _check_grids(self, layouts: list[Layout]) -> None:
        reads = sorted(self.wanted - {"cls", "crop_features"}) + (["several layers"] if self.layers else [])
        if reads and any(layout.thumbnail_grid != layout.token_grid for layout in layouts):
            name = "" if self.method is None else self.method.name
            raise InputError(
                "method must be one that reads scores alone, since this model's thumbnail has a token grid of its own, got "
                f"{name!r}, which compares {' and '.join(reads)}."
            )

    def _scores(self, base: Any, encoded: Encoded) -> Tensor:
        """Scores, float (tokens,), of all views end to end, in the tower's order."""
        visuals = encoded.visuals
        if self.score != "similarity":
            return visuals.adapter.all_scores(base, encoded.rows, visuals.layouts)
        return torch.cat([similarity(view).flatten() for view in _features(base, encoded)])


def _features(base: Any, encoded: Encoded) -> list[Tensor]:
    """Features, float (..., tokens, dim), of all views, in the tower's order."""
    features = encoded.visuals.adapter.tower_features(base, encoded.output)
    return features if isinstance(features, list) else [features]


def _keys_of_tokens(base: Any, encoded: Encoded) -> Tensor:
    """Keys, float (tokens, dim), of all views end to end."""
    return encoded.visuals.adapter.keys(base, encoded.keys, encoded.visuals.layouts)


def _parts(tokens: Tensor, visuals: Visuals) -> list[tuple[Tensor, Tensor]]:
    """(thumbnail, crops) of each image, or (pooled clip, frames) of each video."""
    images = tokens.split([layout.tower_tokens for layout in visuals.layouts])
    return [visuals.adapter.parts(own, layout) for own, layout in zip(images, visuals.layouts, strict=True)]


def _by_view(tokens: Tensor, visuals: Visuals) -> list[Tensor]:
    """Split (tokens, dim) in the tower's order into (1 + crops, tokens, dim) per image, thumbnail first.

    Where a guide commands, which methods that compare views do not see, there are zeros.
    """
    return [
        torch.cat([(first if layout.guide_grid is None else torch.zeros_like(others[0]))[None], others])
        for (first, others), layout in zip(_parts(tokens, visuals), visuals.layouts, strict=True)
    ]


def _cls_by_view(cls: Tensor, visuals: Visuals) -> list[Tensor]:
    """[CLS] features per image, float (1 + crops, dim). First is the thumbnail's, or the mean over a video's frames."""
    images = cls.split([layout.views for layout in visuals.layouts])
    return [
        visuals.adapter.arrange(own[:, None], layout)[:, 0]
        if layout.thumbnail
        else torch.cat([own.mean(0, keepdim=True), own])
        for own, layout in zip(images, visuals.layouts, strict=True)
    ]
