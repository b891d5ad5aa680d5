"""LLaVA-NeXT and LLaVA-OneVision in vLLM."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava, llava_next, llava_onevision
from vllm.multimodal import MULTIMODAL_REGISTRY

from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.adapters.llava_onevision import LlavaOnevisionAdapter
from globalcom2.core.layout import Layout
from globalcom2.core.scores import similarity
from globalcom2.integrations.vllm.kernel import ClsOfKernel
from globalcom2.integrations.vllm.model import ShortModel
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


LLAVA_NEXT = AnyresFamily(LlavaNextAdapter())
ONEVISION = AnyresFamily(LlavaOnevisionAdapter())


class LlavaNextInfo(ShortInfo, llava_next.LlavaNextProcessingInfo):
    """Sizes and counts."""

    family = LLAVA_NEXT


class LlavaNextProcessor(ShortProcessor, llava_next.LlavaNextMultiModalProcessor):
    """Short runs of placeholders."""


@MULTIMODAL_REGISTRY.register_processor(
    LlavaNextProcessor, info=LlavaNextInfo, dummy_inputs=llava.LlavaDummyInputsBuilder
)
class LlavaNext(ClsOfKernel, llava_next.LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT with short runs."""

    family = LLAVA_NEXT

    def install(self) -> None:  # noqa: D102
        if self.config.vision_config.model_type == "clip_vision_model":  # the family's check refuses to compress others
            super().install()

    def attention(self) -> Any:
        """vLLM builds the tower only as far as the features need."""
        return self.vision_tower.vision_model.encoder.layers[-1].self_attn

    def scores(self, seen: list[tuple[Tensor, Tensor]], runs: list[Tensor], counts: list[int]) -> Tensor:  # noqa: D102
        return torch.cat([self.row(*given) for given in seen])[:, 1:]

    def view_counts(self, fields: dict[str, Any], layouts: list[Layout]) -> list[int]:
        """The processor fills images of one call up to the same number of views."""
        return [len(pixels) for pixels in fields["pixel_values"]]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """As vLLM's, with names as transformers 5 saves them."""
        return super().load_weights(_hub_names(weights))


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
