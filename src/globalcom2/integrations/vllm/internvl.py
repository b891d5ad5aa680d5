"""InternVL in vLLM: checkpoints in transformers' format (`InternVL`) and in the original one (`InternVLChat`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
)
from vllm.model_executor.models import interns1, internvl
from vllm.transformers_utils.processors.internvl import calculate_internvl_targets

from globalcom2.adapters.internvl import InternVLAdapter
from globalcom2.core.layout import Layout, unpacked
from globalcom2.errors import UnsupportedModelError
from globalcom2.integrations.vllm.kernel import SCORES, ClsOfKernel
from globalcom2.integrations.vllm.model import Pass
from globalcom2.integrations.vllm.processing import ServedFamily, short_runs


class InternVLFamily(ServedFamily):
    """Describes an image by the rows and columns of its crops, 0 and 0 for an image of one view."""

    scores = SCORES

    def describe(self, info: Any, width: int, height: int, arguments: Mapping[str, object]) -> tuple[int, int]:  # noqa: D102
        processor = info.get_hf_processor(**arguments)
        given = info.ctx.get_merged_mm_kwargs(arguments)
        # transformers' processor has a default of its own for cropping, whatever its image processor was saved with.
        defaults = processor.valid_processor_kwargs._defaults["images_kwargs"]
        merged = {**vars(processor.image_processor), **defaults, **given, **given.get("images_kwargs", {})}
        if not merged["crop_to_patches"]:
            return 0, 0
        size = merged["size"]
        cols, rows = get_optimal_tiled_canvas(
            (height, width), (size["height"], size["width"]), merged["min_patches"], merged["max_patches"]
        )
        return (0, 0) if rows * cols == 1 else (rows, cols)

    def layout(self, config: Any, first: int, second: int) -> Layout:  # noqa: D102
        vision = config.vision_config
        image, patch = (v[0] if isinstance(v, (list, tuple)) else v for v in (vision.image_size, vision.patch_size))
        side = int(image // patch * config.downsample_ratio)
        return unpacked((first, second), (side, side), thumbnail_last=True)


class InternVLChatFamily(InternVLFamily):
    """The family of checkpoints in the original format, whose images vLLM's own processor cuts."""

    def describe(self, info: Any, width: int, height: int, arguments: Mapping[str, object]) -> tuple[int, int]:  # noqa: D102
        processor = info.get_hf_processor(**arguments)
        size = processor.image_processor.image_size
        blocks, target_width, target_height = calculate_internvl_targets(
            orig_width=width,
            orig_height=height,
            target_ratios=processor.resolve_target_ratios(use_thumbnail=False),
            image_size=size,
            use_thumbnail=processor.image_processor.use_thumbnail,
        )
        return (0, 0) if blocks == 1 else (target_height // size, target_width // size)

    def check(self, config: Any) -> None:  # noqa: D102
        if not config.use_thumbnail:
            raise UnsupportedModelError(
                "use_thumbnail must be on, got false: without a thumbnail nothing guides the crops."
            )
        if config.ps_version == "v1":
            raise UnsupportedModelError(
                'ps_version must be "v2", got "v1": its pixel shuffle lays tokens column by column, unlike the crops.'
            )


HF, CHAT = InternVLFamily(), InternVLChatFamily()
ADAPTER = InternVLAdapter()


class ShuffledPatches(ClsOfKernel):
    """Scores of tokens that the model's pixel shuffle makes of several patches each; the thumbnail comes last."""

    shared = ("image_token_id",)

    def of_tokens(self, rows: Tensor, made: Pass) -> Tensor:  # noqa: D102
        # vLLM's model has the two things that the adapter reads of a model: its pixel shuffle and its configuration.
        return ADAPTER.scores(self, _of_all_views(self, rows, sum(made.counts)))

    def features(self, made: Pass) -> Tensor:  # noqa: D102
        return made.all_views()

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:  # noqa: D102
        return ADAPTER.arrange(views, layout)


def _of_all_views(model: Any, rows: Tensor, views: int) -> Tensor:
    """The rows of all views, gathered from all ranks where a data-parallel tower gave each a share of them."""
    ranks = get_tensor_model_parallel_world_size()
    tower = getattr(model, "vision_model", None)
    if ranks == 1 or not getattr(tower, "use_data_parallel", False):
        return rows
    return tensor_model_parallel_all_gather(rows.contiguous(), dim=0)[:views]


@short_runs(
    HF,
    info=interns1.InternS1ProcessingInfo,
    processor=interns1.InternS1MultiModalProcessor,
    dummy_inputs=interns1.InternS1DummyInputsBuilder,
)
class InternVL(ShuffledPatches, interns1.InternS1ForConditionalGeneration):
    """vLLM's InternVL of transformers' format with short runs; videos keep theirs."""

    flat = ("pixel_values",)

    def attention(self) -> Any:  # noqa: D102
        return self.vision_tower.encoder.layer[-1].attention


@short_runs(
    CHAT,
    info=internvl.InternVLProcessingInfo,
    processor=internvl.InternVLMultiModalProcessor,
    dummy_inputs=internvl.InternVLDummyInputsBuilder,
)
class InternVLChat(ShuffledPatches, internvl.InternVLChatModel):
    """vLLM's InternVL of the original format with short runs; videos keep theirs."""

    flat = ("pixel_values_flat",)

    def attention(self) -> Any:  # noqa: D102
        return self.vision_model.encoder.layers[-1].attn
