"""LLaVA-NeXT and LLaVA-OneVision in vLLM."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import llava, llava_next, llava_onevision

from globalcom2.adapters.anyres import AnyresAdapter
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.adapters.llava_onevision import LlavaOnevisionAdapter
from globalcom2.core.layout import Layout
from globalcom2.integrations.vllm.kernel import SCORES, ClsOfKernel
from globalcom2.integrations.vllm.model import Pass, ShortModel
from globalcom2.integrations.vllm.processing import ServedFamily, as_base, short_runs


class AnyresFamily(ServedFamily):
    """Describes an image by its height and width in px. The adapter makes the layout."""

    def __init__(self, adapter: AnyresAdapter, scores: tuple[str, ...]):
        self.adapter = adapter
        self.scores = scores

    def check(self, config: Any) -> None:  # noqa: D102
        self.adapter.check(as_base(config))

    def describe(self, info: Any, width: int, height: int, arguments: Mapping[str, object]) -> tuple[int, int]:  # noqa: D102
        return height, width

    def layout(self, config: Any, first: int, second: int) -> Layout:  # noqa: D102
        return self.adapter.layout(config, first, second)


LLAVA_NEXT = AnyresFamily(LlavaNextAdapter(), SCORES)
ONEVISION = AnyresFamily(LlavaOnevisionAdapter(), ("similarity",))


class AnyresModel(ShortModel):
    """What the two models share: how many views an image has, what their projector reads, and the names of weights."""

    multi_modal_projector: torch.nn.Module

    def install(self) -> None:  # noqa: D102
        super().install()
        self.multi_modal_projector.register_forward_pre_hook(lambda module, args: self.watch.note("tower", args[0]))

    def features(self, made: Pass) -> Tensor:  # noqa: D102
        return torch.cat(made.seen["tower"])

    def view_counts(self, fields: dict[str, Any], layouts: list[Layout]) -> list[int]:
        """How many views of each image the tower sees: the processor fills up all images of a call to one number."""
        return [len(pixels) for pixels in fields["pixel_values"]]

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load weights as vLLM does, of checkpoints with the names that transformers 5 gives them, too."""
        loaded: set[str] = super().load_weights(_hub_names(weights))  # type: ignore[misc]
        return loaded


def _hub_names(weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Weights under hub checkpoints' names: transformers 5 saves the tower without an inner name that vLLM expects."""
    for name, weight in weights:
        yield re.sub(r"(^|\.)vision_tower\.(?!vision_model\.)", r"\1vision_tower.vision_model.", name), weight


@short_runs(
    LLAVA_NEXT,
    info=llava_next.LlavaNextProcessingInfo,
    processor=llava_next.LlavaNextMultiModalProcessor,
    dummy_inputs=llava.LlavaDummyInputsBuilder,
)
class LlavaNext(AnyresModel, ClsOfKernel, llava_next.LlavaNextForConditionalGeneration):
    """vLLM's LLaVA-NeXT with short runs."""

    def install(self) -> None:  # noqa: D102
        if self.config.vision_config.model_type == "clip_vision_model":  # the family's check refuses to compress others
            super().install()

    def attention(self) -> Any:
        """The attention of the last layer: vLLM builds the tower only as far as the features need."""
        return self.vision_tower.vision_model.encoder.layers[-1].self_attn

    def of_tokens(self, rows: Tensor, made: Pass) -> Tensor:  # noqa: D102
        return rows[:, 1:]


@short_runs(
    ONEVISION,
    info=llava_onevision.LlavaOnevisionProcessingInfo,
    processor=llava_onevision.LlavaOnevisionMultiModalProcessor,
    dummy_inputs=llava_onevision.LlavaOnevisionDummyInputsBuilder,
)
class LlavaOnevision(AnyresModel, llava_onevision.LlavaOnevisionForConditionalGeneration):
    """vLLM's LLaVA-OneVision with short runs; videos keep theirs."""

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:  # noqa: D102
        return ONEVISION.adapter.arrange(views, layout)
