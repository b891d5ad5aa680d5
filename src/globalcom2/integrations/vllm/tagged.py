"""Idefics3 and SmolVLM in vLLM: tags stand between the views, and where they come to stand depends on the picture.

So the whole run of an image, tags included, becomes placeholders. Their number follows from size and ratio alone. The
model returns the tags' text embeddings between the visual ones. vLLM treats videos that it prunes in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import idefics3, smolvlm
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptUpdateDetails, cached_encode

from globalcom2.core.layout import Layout, unpacked
from globalcom2.integrations.vllm.model import Pass, ShortModel, indices
from globalcom2.integrations.vllm.processing import FIELD, ServedFamily, ShortProcessor, short_runs

SPAN = "globalcom2_span"
"""The field with the ids of an image's whole run as vLLM writes it, tags included; one tensor per image."""


class TaggedFamily(ServedFamily):
    """Describes an image by the rows and columns of its crops, 0 and 0 for an image of one view."""

    def describe(self, info: Any, width: int, height: int, arguments: Mapping[str, object]) -> tuple[int, int]:  # noqa: D102
        _, rows, cols = info._get_image_feature_grid_size(
            image_width=width, image_height=height, processor=info.get_hf_processor(**arguments), mm_kwargs=arguments
        )
        return rows, cols

    def layout(self, config: Any, first: int, second: int) -> Layout:  # noqa: D102
        vision = config.vision_config
        side = vision.image_size // vision.patch_size // config.scale_factor
        return unpacked((first, second), (side, side), thumbnail_last=True)


FAMILY = TaggedFamily()


class TaggedProcessor(ShortProcessor):
    """Makes short runs of placeholders that stand for tags, too."""

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        data = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        if FIELD in data:
            data[SPAN] = [torch.tensor(self._span(mm_items, index, hf_kwargs)) for index in range(len(data[FIELD]))]
        return data

    def _span(self, mm_items: Any, index: int, arguments: Mapping[str, object]) -> list[int]:
        """The ids of the run that vLLM writes for the request's image of that index."""
        size = mm_items["image"].get_image_size(index)
        text = self.info.get_image_repl(
            image_width=size.width,
            image_height=size.height,
            processor=self.info.get_hf_processor(**arguments),
            mm_kwargs=arguments,
        )
        return cached_encode(self.info.get_tokenizer(), text, add_special_tokens=False)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        return {**fields, SPAN: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def run(self, ids: list[int], places: list[bool], kept: int) -> PromptUpdateDetails:  # noqa: D102
        token = ids[places.index(True)]
        return PromptUpdateDetails.from_seq([token] * (len(ids) - sum(places) + kept))


class TaggedModel(ShortModel):
    """Puts the embeddings of tags between the tokens that stay."""

    flat = ("pixel_values", "pixel_attention_mask")
    model: Any

    def features(self, made: Pass) -> Tensor:  # noqa: D102
        return made.all_views()

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:  # noqa: D102
        return views.roll(1, 0)

    def short_run(self, run: Tensor, kept: Tensor, extra: dict[str, Any]) -> Tensor:  # noqa: D102
        span: Tensor = extra[SPAN].cpu()  # it is on the host already: its field is kept there
        visual = span == self.config.image_token_id
        stays = ~visual | torch.zeros_like(visual).masked_scatter(visual, kept)
        ids, places = (x.to(run.device, non_blocking=True) for x in (span, visual[:, None]))
        embedded = self.model.embed_input_ids(ids).to(run.dtype).masked_scatter(places, run)
        return embedded[indices(stays, run.device)]


@short_runs(
    FAMILY,
    info=idefics3.Idefics3ProcessingInfo,
    processor=idefics3.Idefics3MultiModalProcessor,
    dummy_inputs=idefics3.Idefics3DummyInputsBuilder,
    mixin=TaggedProcessor,
)
class Idefics3(TaggedModel, idefics3.Idefics3ForConditionalGeneration):
    """vLLM's Idefics3 with short runs."""


@short_runs(
    FAMILY,
    info=smolvlm.SmolVLMProcessingInfo,
    processor=idefics3.Idefics3MultiModalProcessor,
    dummy_inputs=idefics3.Idefics3DummyInputsBuilder,
    mixin=TaggedProcessor,
)
class SmolVLM(TaggedModel, smolvlm.SmolVLMForConditionalGeneration):
    """vLLM's SmolVLM with short runs."""
