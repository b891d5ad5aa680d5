"""What a model family needs: where its scores, grid and packing come from. One file per family.

This is the only place that knows the insides of transformers' models.
"""

from __future__ import annotations

import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from globalcom2.core.layout import Layout
from globalcom2.errors import InputError, UnsupportedModelError


def stretches(prompt: Tensor, token: int) -> Iterator[tuple[bool, Tensor]]:
    """The prompt's stretches of that token (True) and of others (False), in order; ids (length,) on the host."""
    kinds, lengths = torch.unique_consecutive(prompt == token, return_counts=True)
    return zip(kinds.tolist(), prompt.split(lengths.tolist()), strict=True)


def layer_of(layers: Sequence[nn.Module], layer: int) -> nn.Module:
    """`layers[layer]`, which may be negative.

    Raises:
        InputError: There is no such layer.
    """
    if not -len(layers) <= layer < len(layers):
        raise InputError(f"layer must be in [{-len(layers)}, {len(layers) - 1}] for this vision tower, got {layer}.")
    return layers[layer]


def deepest_layer(states: int | Sequence[int], count: int) -> int:
    """The layer, counted from the end, whose output is the deepest of some hidden states.

    Args:
        states: Indices of transformers' `hidden_states`, of which the first is the embeddings; may be negative.
        count: Layers of the tower.
    """
    states = [states] if isinstance(states, int) else states
    return max(state if state < 0 else state - count - 1 for state in states)


def repeat_rows(features: Tensor | Sequence[Tensor], counts: list[int], times: int) -> Tensor | list[Tensor]:
    """The features of each prompt repeated, prompt by prompt, in a container of the same kind.

    Args:
        features: A tensor (blocks, tokens, dim), or tensors (tokens, dim), that hold the features of all prompts in order.
        counts: How many features each prompt has.
        times: How often each prompt is repeated, next to itself.

    Returns:
        A tensor (1, sum(counts) * times, dim) for a tensor, a list of one (sum(counts) * times, dim) for a sequence.
    """
    prompts = torch.cat([item.flatten(0, -2) for item in features]).split(counts)
    rows = torch.cat([prompt for prompt in prompts for _ in range(times)])
    return rows[None] if isinstance(features, Tensor) else [rows]


class Adapter(ABC):
    """Glue to one model family. Stateless; `base` is the model that has `get_image_features`."""

    modality: str = "image"
    """Names the placeholder (`image_token_id`), the encoder (`get_image_features`) and where its output goes."""
    pixels: str = "pixel_values"
    """The call's keyword argument that the encoder reads."""
    cls_index: int | None = 0
    """Where the [CLS] token stands in the tower's sequence; None for a tower without one."""
    default_score: str = "logits"
    """What saliency is unless the caller says otherwise."""
    projects_kept_only: bool = False
    """Whether the projector runs after selection, on the tokens that stay."""

    @abstractmethod
    def check(self, base: Any) -> None:
        """Raise `UnsupportedModelError` for a configuration that this adapter cannot handle."""

    @abstractmethod
    def attention(self, base: Any, layer: int) -> nn.Module:
        """The attention module of the tower's layer `layer` (may be negative)."""

    def default_layer(self, base: Any) -> int:
        """The layer to read scores in unless the caller says otherwise: the deepest whose output is among the features.

        Layers after it have no say in what the language model reads, and vLLM does not build them.
        """
        states = getattr(base.config, "vision_feature_layer", -1)
        return deepest_layer(states, base.config.vision_config.num_hidden_layers) if states != -1 else -1

    @abstractmethod
    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:
        """One layout per image, in prompt order; from sizes and tags where these tell everything.

        Args:
            base: The model that has `get_image_features`.
            call: The keyword arguments of the model's call, `input_ids` on the host.
        """

    def layout(self, config: Any, height: int, width: int) -> Layout:
        """The layout of an image of that size in px, where it follows from the model's configuration alone."""
        raise UnsupportedModelError(
            f"how {config.model_type} cuts an image is the processor's affair, so costs cannot be estimated from the "
            f"configuration, for {width}x{height} px. Use a llava_next model for that."
        )

    def scores(self, base: Any, rows: Tensor) -> Tensor:
        """Scores (views, tokens) of the tokens that the language model reads, from tapped rows (views, sequence)."""
        cls = self.cls_index
        return rows if cls is None else torch.cat([rows[:, :cls], rows[:, cls:][:, 1:]], 1)

    def all_scores(self, base: Any, rows: list[Tensor], layouts: list[Layout]) -> Tensor:
        """`scores` of all views end to end, (tokens,), from the rows that each pass of the tower left."""
        return self.scores(base, torch.cat(rows)).flatten()

    def parts(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Thumbnail (tokens, ...) and crops (crops, tokens, ...) of one image's tokens, in the tower's order."""
        views = self.arrange(tokens.unflatten(0, (layout.views, layout.tokens)), layout)
        return views[0], views[1:]

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:
        """What belongs to one image's views, (views, tokens, ...) in the tower's order, with the thumbnail first."""
        return views

    def guidance(self, base: Any, encoded: Any, layouts: list[Layout]) -> list[Tensor] | None:
        """Per video, `Views.guidance`; None where thumbnails guide."""
        return None

    def videos(self) -> Adapter | None:
        """The adapter of the family's videos; None where they are not compressed."""
        return None

    def encode_arguments(self, base: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The part of a call's keyword arguments that the encoder takes."""
        names = inspect.signature(getattr(base, f"get_{self.modality}_features")).parameters
        return {name: inputs[name] for name in names if name != "kwargs" and name in inputs}

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:
        """Run the vision tower once. Whether the result is projected and packed already is the adapter's affair.

        Args:
            base: The model that has `get_image_features`.
            arguments: What `encode_arguments` took out of the call.
            layouts: What `layouts` made of the same call.
        """
        return getattr(base, f"get_{self.modality}_features")(**arguments, return_dict=True)

    def tower_features(self, base: Any, encoded: Any) -> Tensor | list[Tensor]:
        """Features (views, tokens, dim) to compare tokens by, in the tower's order: one per token that can be kept.

        Where views differ in size, a list of one (tokens, dim) per view.
        """
        raise NotImplementedError

    def kept(self, base: Any, encoded: Any, layouts: list[Layout], places: list[Tensor]) -> Tensor:
        """Features (kept, dim) as the language model reads them.

        Args:
            base: The model that has `get_image_features`.
            encoded: What `encode` returned.
            layouts: One per image.
            places: Per image, on the host, the places of its run that stay, in the order in which they are to be read.
        """
        packed = zip(encoded.pooler_output, places, strict=True)
        return torch.cat([features[kept.to(features.device, non_blocking=True)] for features, kept in packed])

    def output(self, features: Tensor, encoded: Any) -> Any:
        """`features` (kept, dim) in the container that the model's forward expects of its encoder.

        A list of one item, or a tensor with a batch of one, whichever the model's own code has. `encoded` is what
        `encode` returned, for what else the forward reads from it.
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
