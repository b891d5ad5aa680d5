"""What families share that cut an image into a grid of crops, put the thumbnail last and do not tell the grid.

The grid is found by comparing pixels (`grids.py`). An image of one view has no crops: that view is its thumbnail. The
model's encoder returns one tensor (views, tokens, dim).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from globalcom2.adapters.base import Adapter, gather, stretches
from globalcom2.adapters.grids import match_grids
from globalcom2.adapters.layers import layer_of
from globalcom2.core.layout import Layout, unpacked
from globalcom2.errors import InputError, UnsupportedModelError

Run = tuple[int, list[int]]
"""Length of a run of placeholders, and the ids after it up to the next run."""


def shuffled_means(patches: Tensor, shuffle: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean of the patches that a token is made of: (views, patches) -> (views, tokens).

    Args:
        patches: Values of patches, row by row.
        shuffle: The model's own pixel shuffle, (1, patches, 1) -> (1, ..., patches of a token). Numbered patches go
            through it, and where they come out tells which token they belong to.
    """
    numbers = torch.arange(patches.shape[1], device=patches.device)
    return patches[:, shuffle(numbers[None, :, None]).flatten(0, -2)].mean(-1)


class TilesAdapter(Adapter):
    """Views are crops row by row, then the thumbnail, both in the tower's order and in the prompt."""

    tower: str
    """Model type of the vision tower."""
    nameless = False
    """Whether a tower without a model type is taken for that one."""
    strategy: str | None = None
    """The vision_feature_select_strategy that the family works with; None where it has no such setting."""
    any_size = False
    """Whether the tower takes views of other sizes than its configuration's."""

    @abstractmethod
    def factor(self, base: Any) -> int:
        """Patches along the side of a token, which stands for factor x factor of them."""

    @abstractmethod
    def attentions(self, base: Any) -> list[nn.Module]:
        """The attention modules of the tower, one per layer."""

    def shuffled(self, base: Any, patches: Tensor) -> Tensor:
        """Run the model's own pixel shuffle: (1, patches, 1), row by row -> (1, ..., patches of a token)."""
        shuffled: Tensor = base.multi_modal_projector.pixel_shuffle(patches)
        return shuffled

    def images(self, runs: list[Run]) -> list[int]:
        """How many placeholders each image of a prompt has. Here every run is one image, since tags stand around it."""
        return [length for length, _ in runs]

    def check(self, base: Any) -> None:  # noqa: D102
        config, vision = base.config, base.config.vision_config
        if vision.model_type != self.tower and not (self.nameless and vision.model_type == ""):
            raise UnsupportedModelError(
                f"the vision tower of {config.model_type} must be of type {self.tower!r}, got {vision.model_type!r}."
            )
        if self.strategy is not None and config.vision_feature_select_strategy != self.strategy:
            raise UnsupportedModelError(
                f"vision_feature_select_strategy must be {self.strategy!r} for {config.model_type}, got "
                f"{config.vision_feature_select_strategy!r}: tokens would not fill a square. "
                f"Set model.config.vision_feature_select_strategy = {self.strategy!r}."
            )
        image, patch = _square(vision.image_size), _square(vision.patch_size)
        if not image or not patch or image // patch % self.factor(base):
            raise UnsupportedModelError(
                f"views of {config.model_type} must be square, with a multiple of {self.factor(base)} patches on a side, "
                f"got image_size {vision.image_size!r} and patch_size {vision.patch_size!r}."
            )

    def attention(self, base: Any, layer: int) -> nn.Module:  # noqa: D102
        return layer_of(self.attentions(base), layer)

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        pixels, strategy = call["pixel_values"], call.get("vision_feature_select_strategy")
        if strategy not in (None, self.strategy):
            raise InputError(
                f"vision_feature_select_strategy must be {self.strategy!r} in a compressed call, got {strategy!r}."
            )
        side = self._tokens_on_a_side(base, pixels)
        runs = [_runs(prompt, base.config.image_token_id) for prompt in call["input_ids"]]
        counts = [count for prompt in runs if prompt for count in self.images(prompt)]
        if sum(counts) != len(pixels) * side * side or any(count % side**2 for count in counts):
            raise InputError(
                f"input_ids must hold {side * side} image placeholders for each of the {len(pixels)} views in "
                f"pixel_values, got {counts} per image. Build prompts and images with one call of the processor."
            )
        images = pixels.split([count // side**2 for count in counts])
        grids = iter(match_grids([(image[:-1], image[-1]) for image in images if len(image) > 1]))
        found = [next(grids) if len(image) > 1 else (0, 0) for image in images]
        return [
            unpacked(grid or (1, len(image) - 1), (side, side), thumbnail_last=True, known_grid=grid is not None)
            for grid, image in zip(found, images, strict=True)
        ]

    def _tokens_on_a_side(self, base: Any, pixels: Any) -> int:
        """Tokens along a view's side; raises `InputError` for pixels that are no square views."""
        shape = tuple(pixels.shape) if isinstance(pixels, Tensor) else ()
        size, patch = _square(base.config.vision_config.image_size), _square(base.config.vision_config.patch_size)
        if self.any_size and len(shape) == 4 and shape[3] // patch % self.factor(base) == 0:
            size = shape[3]
        if len(shape) != 4 or shape[2:] != (size, size):
            raise InputError(
                f"pixel_values must be a tensor (views, channels, {size}, {size}) for this vision tower, got "
                f"{shape or type(pixels).__name__}. Pass what the processor returned."
            )
        return int(size // patch // self.factor(base))

    def scores(self, base: Any, rows: Tensor) -> Tensor:
        """Scores (views, tokens): the mean over the patches that a token stands for."""
        return shuffled_means(super().scores(base, rows), partial(self.shuffled, base))

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:  # noqa: D102
        return views.roll(1, 0)

    def tower_features(self, base: Any, encoded: Any) -> Tensor:
        """The projected features (views, tokens, dim): only the projector makes tokens of patches."""
        features: Tensor = encoded.pooler_output
        return features

    def kept_features(self, base: Any, encoded: Any, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """Features (kept, dim): views are in prompt order, so places count through an image's features."""
        views = encoded.pooler_output.split([layout.views for layout in layouts])
        return gather((image.flatten(0, 1) for image in views), places)

    def output(self, features: Tensor, encoded: Any) -> Any:
        """The features in one tensor (1, kept, dim), since the model's own encoder returns a tensor too."""
        return BaseModelOutputWithPooling(pooler_output=features[None])


def _square(size: Any) -> int:
    """The side of a square given as one number or two; 0 for anything else."""
    height, width = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    return int(height) if height == width else 0


def _runs(prompt: Tensor, image_token_id: int) -> list[Run]:
    """The runs of placeholders of a prompt, ids (length,) on the host."""
    runs: list[Run] = []
    for is_image, ids in stretches(prompt, image_token_id):
        if is_image:
            runs.append((len(ids), []))
        elif runs:
            runs[-1] = (runs[-1][0], ids.tolist())
    return runs
