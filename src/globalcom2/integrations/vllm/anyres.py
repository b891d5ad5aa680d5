"""LLaVA-NeXT and LLaVA-OneVision in vLLM."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.models import llava, llava_next, llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY

from globalcom2.adapters import Layout
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.adapters.llava_onevision import LlavaOnevisionAdapter
from globalcom2.adapters.tap import attention_row
from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.integrations.vllm.model import ShortModel, similarity
from globalcom2.integrations.vllm.processing import Family, ShortInfo, ShortProcessor, as_base


class AnyresFamily(Family):
    """The two numbers are the image's height and width."""

    def __init__(self, adapter: LlavaNextAdapter):
        self.adapter = adapter

    def check(self, config: Any) -> None:  # noqa: D102
        self.adapter.check(as_base(config))

    def describe(self, info: Any, width: int, height: int, arguments: Mapping[str, object]) -> tuple[int, int]:  # noqa: D102
        return height, width

    def layout(self, config: Any, first: int, second: int) -> Layout:  # noqa: D102
        return self.adapter.layout(config, first, second)


class LlavaNextFamily(AnyresFamily):
    """vLLM builds the tower only as far as the features need."""

    def check(self, config: Any) -> None:  # noqa: D102
        super().check(config)
        if config.vision_feature_layer not in (-1, -2):
            raise UnsupportedModelError(
                f"vision_feature_layer must be -1 or -2 in vLLM, got {config.vision_feature_layer!r}: scores come from the "
                "tower's last layer, and vLLM does not build what feeds it."
            )


LLAVA_NEXT = LlavaNextFamily(LlavaNextAdapter())
ONEVISION = AnyresFamily(LlavaOnevisionAdapter())


class LlavaNextInfo(ShortInfo, llava_next.LlavaNextProcessingInfo):
    """Sizes and counts."""

    family = LLAVA_NEXT


class LlavaNextProcessor(ShortProcessor, llava_next.LlavaNextMultiModalProcessor):
    """Short runs of placeholders."""


class CLSRow(nn.Module):
    """What makes the [CLS] row of attention logits in the tower's last layer: its norm, queries and keys.

    vLLM does not build that layer, because LLaVA-NeXT's features are its input, and shards what it builds. These few
    weights are a copy of the checkpoint's on every rank, so that all ranks choose the same tokens.
    """

    def __init__(self, config: Any):
        super().__init__()
        self.heads = config.num_attention_heads
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """(views, sequence, dim) -> logits (views, sequence)."""
        hidden = self.layer_norm1(hidden)
        query, key = (
            layer(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q_proj, self.k_proj)
        )
        return attention_row(query, key, None, None, cls_index=0, softmax=False)


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextProcessor, info=LlavaNextInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class LlavaNext(ShortModel, llava_next.LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT with short runs."""

    family = LLAVA_NEXT
    saliency = "logits"

    def install(self) -> None:  # noqa: D102
        layers = self.vision_tower.vision_model.encoder.layers
        vision = self.config.vision_config
        if vision.model_type != "clip_vision_model" or len(layers) < vision.num_hidden_layers - 1:
            return  # the family's check refuses to compress it
        self.globalcom2_row = CLSRow(vision)
        before = layers[vision.num_hidden_layers - 2]
        before.register_forward_hook(lambda module, args, output: self.watch.note(output))

    def scores(self, seen: list[Tensor], runs: list[Tensor], counts: list[int]) -> Tensor:  # noqa: D102
        return self.globalcom2_row(torch.cat(seen))[:, 1:]

    def view_counts(self, fields: dict[str, Any], layouts: list[Layout]) -> list[int]:
        """The processor fills images of one call up to the same number of views."""
        return [len(pixels) for pixels in fields["pixel_values"]]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As vLLM's, with the [CLS] row's weights, and names as transformers 5 saves them."""
        row = getattr(self, "globalcom2_row", None)
        wanted = dict(row.named_parameters()) if row is not None else {}
        found: set[str] = set()
        loaded = super().load_weights(self._taken(weights, wanted, found))
        if missing := sorted(set(wanted) - found):
            raise InputError(
                f"the checkpoint must hold the vision tower's last layer, got no {', '.join(missing)} of it. Set "
                "VLLM_PLUGINS='' to run without globalcom2."
            )
        return loaded | {f"globalcom2_row.{name}" for name in found}

    def _taken(
        self, weights: Iterable[tuple[str, Tensor]], wanted: dict[str, nn.Parameter], found: set[str]
    ) -> Iterator[tuple[str, Tensor]]:
        last = self.config.vision_config.num_hidden_layers - 1
        inside = re.compile(rf"vision_tower\.vision_model\.encoder\.layers\.{last}\.(?:self_attn\.)?(.+)$")
        for name, weight in _hub_names(weights):
            match = inside.search(name)
            if match and match[1] in wanted:
                wanted[match[1]].data.copy_(weight)
                found.add(match[1])
            yield name, weight


def _hub_names(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """transformers 5 saves the tower without the inner name that hub checkpoints and vLLM have."""
    for name, weight in weights:
        yield re.sub(r"(^|\.)vision_tower\.(?!vision_model\.)", r"\1vision_tower.vision_model.", name), weight


class LlavaOnevisionInfo(ShortInfo, llava_onevision.LlavaOnevisionProcessingInfo):
    """Sizes and counts."""

    family = ONEVISION


class LlavaOnevisionProcessor(ShortProcessor, llava_onevision.LlavaOnevisionMultiModalProcessor):
    """Short runs of placeholders; videos keep theirs."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaOnevisionProcessor, info=LlavaOnevisionInfo, dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder
)
class LlavaOnevision(ShortModel, llava_onevision.LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with short runs."""

    family = ONEVISION
    view_counts = LlavaNext.view_counts

    def install(self) -> None:  # noqa: D102
        self.multi_modal_projector.register_forward_pre_hook(lambda module, args: self.watch.note(args[0]))

    def scores(self, seen: list[Tensor], runs: list[Tensor], counts: list[int]) -> Tensor:  # noqa: D102
        return similarity(torch.cat(seen))

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As vLLM's, with names as transformers 5 saves them."""
        return super().load_weights(_hub_names(weights))

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:  # noqa: D102
        return ONEVISION.adapter.arrange(views, layout)
