"""Aya Vision and Cohere2 Vision: SigLIP towers without [CLS], pixel shuffle, one run of placeholders per view.

Source: transformers' processing_aya_vision.py and processing_cohere2_vision.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from globalcom2.adapters.tiles import Run, TilesAdapter
from globalcom2.errors import InputError


class _CohereAdapter(TilesAdapter):
    """What the two families share."""

    cls_index = None
    default_score = "similarity"
    tower = "siglip_vision_model"

    def factor(self, base: Any) -> int:
        return int(base.config.downsample_factor)

    def attentions(self, base: Any) -> list[nn.Module]:
        tower = getattr(base.vision_tower, "vision_model", base.vision_tower)
        return [layer.self_attn for layer in tower.encoder.layers]


class AyaVisionAdapter(_CohereAdapter):
    """Adapter of `aya_vision`: `<start> TILE_1 crop TILE_2 crop ... TILE_GLOBAL thumbnail <end>`, tags of any length."""

    strategy = "full"

    def images(self, runs: list[Run]) -> list[int]:
        """How many placeholders each image has: the id after a prompt's last view closes an image everywhere."""
        *_, (_, after) = runs
        if not after:
            raise InputError(
                "input_ids must hold the tag that ends an image after its last placeholder, got a prompt that stops "
                "there. Build prompts with the processor, without truncation."
            )
        return _joined(runs, lambda ids: ids[0] == after[0])


class Cohere2VisionAdapter(_CohereAdapter):
    """Adapter of `cohere2_vision`: `<boi> crop <break> ... thumbnail <break> <eoi>`."""

    def images(self, runs: list[Run]) -> list[int]:
        """How many placeholders each image has. Between two views of one image stands the break and nothing else."""
        return _joined(runs, lambda ids: len(ids) != 1)


def _joined(runs: list[Run], ends: Callable[[list[int]], bool]) -> list[int]:
    """How many placeholders each image has; `ends` tells whether the ids after a view end an image."""
    counts = [0]
    for length, after in runs:
        counts[-1] += length
        if ends(after):
            counts.append(0)
    return [count for count in counts if count]
