"""The base class of all adapters: what the rest of the package asks of a model family, and small tools for answers.

The module of a family, or of a group of families, has the subclass.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from globalcom2.adapters.layers import deepest_layer
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError, UnsupportedModelError


def stretches(prompt: Tensor, token: int) -> Iterator[tuple[bool, Tensor]]:
    """Cut a prompt into stretches of one token and stretches without it.

    Args:
        prompt: Ids (length,), on the host.
        token: The id to look for.

    Returns:
        Pairs, in order: whether the stretch consists of that token, and its ids.
    """
    kinds, lengths = torch.unique_consecutive(prompt == token, return_counts=True)
    return zip(kinds.tolist(), prompt.split(lengths.tolist()), strict=True)


def repeat_rows(features: Tensor | Sequence[Tensor], counts: list[int], times: int) -> Tensor | list[Tensor]:
    """The features of each prompt repeated, prompt by prompt, in a container of the same kind.

    Args:
        features: The features of all prompts in order: a tensor (blocks, tokens, dim), or tensors (tokens, dim).
        counts: How many features each prompt has.
        times: How often each prompt is repeated, next to itself.

    Returns:
        For a tensor of blocks of one token a tensor (sum(counts) * times, 1, dim), for any other tensor one (1, sum(counts)
        * times, dim), for a sequence a list of one (sum(counts) * times, dim).
    """
    if not len(features):  # nothing was kept of any image
        return features  # type: ignore[return-value]
    prompts = torch.cat([item.flatten(0, -2) for item in features]).split(counts)
    rows = torch.cat([prompt for prompt in prompts for _ in range(times)])
    if not isinstance(features, Tensor):
        return [rows]
    return rows[:, None] if features.shape[1] == 1 else rows[None]


def gather(features: Iterable[Tensor], places: Iterable[Tensor]) -> Tensor:
    """The features (kept, dim) that stay, image by image.

    Args:
        features: Per image, (places, dim) in the order of its run of placeholders.
        places: Per image, on the host, the places of its run that stay.
    """
    images = zip(features, places, strict=True)
    return torch.cat([own[kept.to(own.device, non_blocking=True)] for own, kept in images])


class Adapter(ABC):
    """What the package knows of one model family. An adapter has no state.

    `base` is everywhere the model that has `get_image_features`. "In the tower's order" means in the order in which the
    encoder returns views and tokens, which need not be that of the prompt.
    """

    modality: str = "image"
    """Part of the names of placeholder (`image_token_id`) and encoder (`get_image_features`), and the key of the
    encoder's output in `mm_encoder_outputs`."""
    pixels: str = "pixel_values"
    """The call's keyword argument that the encoder reads."""
    cls_index: int | None = 0
    """Index of the [CLS] token in the tower's sequence; None for a tower without one."""
    default_score: str = "logits"
    """The score type that is used where the caller names none."""
    projects_kept_only: bool = False
    """Whether the projector runs after selection, on the tokens that stay."""
    native: bool = False
    """Whether images keep their resolution: no thumbnail, no crops, and a guide that commands windows of their tokens."""
    three_dimensional: bool = False
    """Whether the language model numbers visual tokens by time, row and column (M-RoPE): `positions` gives these."""
    closed_alone: str = ""
    """Why kept tokens cannot have the positions of the full prompt, where that is so."""

    @abstractmethod
    def check(self, base: Any) -> None:
        """Raise `UnsupportedModelError` for a configuration that this adapter cannot handle."""

    @abstractmethod
    def attention(self, base: Any, layer: int) -> nn.Module:
        """The attention module of one layer of the tower; a negative `layer` counts from the end."""

    def default_layer(self, base: Any) -> int:
        """The layer that scores are read in where the caller names none.

        It is the deepest one whose output is among the features. Layers after it have no say in what the language model
        reads, and vLLM does not build them.
        """
        states = getattr(base.config, "vision_feature_layer", -1)
        return deepest_layer(states, base.config.vision_config.num_hidden_layers) if states != -1 else -1

    @abstractmethod
    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:
        """One layout per image, in prompt order.

        Args:
            base: The model that has `get_image_features`.
            call: The keyword arguments of the model's call, `input_ids` on the host.

        Raises:
            InputError: Pixels, sizes and placeholders do not belong together, or the call asks for what the adapter
                cannot handle.
        """

    def layout(self, config: Any, height: int, width: int) -> Layout:
        """The layout of an image of that size in px, for families where it follows from the configuration alone.

        Raises:
            UnsupportedModelError: It takes a processor to tell.
        """
        raise UnsupportedModelError(
            f"model must be of a family whose configuration tells how an image is cut, got {config.model_type} for "
            f"{width}x{height} px, whose processor decides that. Use one of the LLaVA line."
        )

    def scores(self, base: Any, rows: Tensor) -> Tensor:
        """Scores (views, tokens) of the tokens that the language model reads, from tapped rows (views, sequence)."""
        cls = self.cls_index
        return rows if cls is None else torch.cat([rows[:, :cls], rows[:, cls:][:, 1:]], 1)

    def all_scores(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:
        """Scores (tokens,) of all views end to end, in the order of `tower_features`.

        Args:
            base: The model that has `get_image_features`.
            rows: Tapped rows (views, sequence), one tensor per pass of the tower.
            layouts: One per image.
        """
        return self.scores(base, torch.cat(rows)).flatten()

    def keys(self, base: Any, keys: list[Tensor], layouts: list[Layout]) -> Tensor:
        """Keys (tokens, dim) of all views end to end, from tapped ones (views, sequence, dim), as `all_scores` of scores.

        Each channel is mapped from patches to tokens as scores are.
        """
        channels = torch.cat(keys).movedim(-1, 0)
        tokens: Tensor = self.scores(base, channels.flatten(0, 1)).unflatten(0, channels.shape[:2])
        return tokens.movedim(0, -1).flatten(0, 1)

    def parts(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Cut values of one image's tokens, (tokens, ...) in the tower's order, into thumbnail and crops.

        Returns:
            The thumbnail's (tokens, ...) and the crops' (crops, tokens, ...).
        """
        views = self.arrange(tokens.unflatten(0, (layout.views, layout.tokens)), layout)
        return views[0], views[1:]

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:
        """Put the thumbnail first in values of one image's views, (views, tokens, ...) in the tower's order."""
        return views

    def segments(self, base: Any, layouts: list[Layout]) -> list[int] | None:
        """Lengths of the views in a tower that reads all of them as one sequence, told apart by a mask; None in all others."""
        return None

    def guidance(self, base: Any, encoded: Any, layouts: list[Layout]) -> list[Tensor] | None:
        """Per video, its `Views.guidance`; None for images, which thumbnails guide."""
        return None

    def guided(self, guide: str | None) -> Adapter:
        """This adapter, or a copy of it, with images guided as asked; None is the family's own way.

        Raises:
            InputError: Thumbnails guide the images of this family.
        """
        if guide is not None:
            raise InputError(
                f"guide must be left out for a family whose images have a thumbnail, which guides, got {guide!r}."
            )
        return self

    def positions(self, base: Any, call: dict[str, Any]) -> Tensor | None:
        """Positions (axes, batch, long) of a full prompt in a family with three-dimensional ones, on the host.

        Args:
            base: The model that has `get_image_features`.
            call: The keyword arguments of the model's call, `input_ids` and `attention_mask` on the host.

        Returns:
            None where positions follow from the mask.
        """
        return None

    def videos(self) -> Adapter | None:
        """The adapter of the family's videos; None where they are not compressed."""
        return None

    def encode_arguments(self, base: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The part of a call's keyword arguments that the encoder takes."""
        names = inspect.signature(getattr(base, f"get_{self.modality}_features")).parameters
        return {name: inputs[name] for name in names if name != "kwargs" and name in inputs}

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """Run the vision tower once.

        The adapter's other methods take what this returns as `encoded`; nothing else looks into it.

        Args:
            base: The model that has `get_image_features`.
            arguments: What `encode_arguments` took out of the call.
            layouts: What `layouts` made of the same call.
        """
        return getattr(base, f"get_{self.modality}_features")(**arguments, return_dict=True)

    @abstractmethod
    def tower_features(self, base: Any, encoded: Any) -> Tensor | list[Tensor]:
        """Features (views, tokens, dim) to compare tokens by, in the tower's order: one per token that can be kept.

        Where views differ in size, this is a list with one (tokens, dim) per view.
        """

    def kept_features(self, base: Any, encoded: Any, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """The features (kept, dim) that the language model is to read.

        Args:
            base: The model that has `get_image_features`.
            encoded: What `encode` returned.
            layouts: One per image.
            places: Per image, int (kept,) on the host: the places of its run that stay, in the order in which the
                language model is to read them.
        """
        return gather(encoded.pooler_output, places)

    def output(self, features: Tensor, encoded: Any) -> Any:
        """Put features in the container that the model's forward expects of its encoder.

        Args:
            features: What `kept_features` returned.
            encoded: What `encode` returned, for what else the forward reads from it.

        Returns:
            The model's output class, with a list of one item or a tensor with a batch of one, whichever the model's own
            encoder returns.
        """
        return BaseModelOutputWithPooling(pooler_output=[features])

    def repeat(self, output: Any, counts: list[int], times: int) -> Any:
        """A copy of an encoder's output for a batch in which each prompt stands `times` times, as beam search needs it.

        Args:
            output: What the model's forward takes of its encoder: the model's own output or what `output` returned.
            counts: How many of its features each prompt holds.
            times: How often each prompt is repeated, next to itself.
        """
        repeated = copy.copy(output)
        repeated.pooler_output = repeat_rows(output.pooler_output, counts, times)
        return repeated
