"""InternVL in vLLM: checkpoints in transformers' format (`InternVL`) and in the original one (`InternVLChat`).

Scores are the [CLS] row of the tower's last attention, as the kernel gets its queries and keys (after their norms).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas
from vllm.distributed import (
    get_tensor_model_parallel_world_size,
    tensor_model_parallel_all_gather,
    tensor_model_parallel_all_reduce,
)
from vllm.model_executor.models import interns1, internvl
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.transformers_utils.processors.internvl import calculate_internvl_targets

from globalcom2.adapters import Layout, unpacked
from globalcom2.adapters.tap import attention_row
from globalcom2.errors import UnsupportedModelError
from globalcom2.integrations.vllm.model import ShortModel
from globalcom2.integrations.vllm.processing import Family, ShortInfo, ShortProcessor


class InternVLFamily(Family):
    """The two numbers are the rows and columns of the crops, 0 and 0 for an image of one view."""

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
    """vLLM's own processor cuts the images."""

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


class ClsOfKernel(ShortModel):
    """Reads the [CLS] row from what the last attention kernel of the tower is given."""

    pixel_shuffle: Any

    def attention(self) -> Any:
        """The tower's last attention module, which has the kernel as `attn`."""
        raise NotImplementedError

    def install(self) -> None:  # noqa: D102
        self.attention().attn.register_forward_pre_hook(lambda module, args: self.watch.note(args[:2]))

    def scores(self, seen: list[tuple[Tensor, Tensor]], runs: list[Tensor], counts: list[int]) -> Tensor:  # noqa: D102
        attention = self.attention()
        rows = torch.cat([self._row(attention, *given) for given in seen])
        rows = _of_all_views(self, rows, sum(counts))
        patches = rows[:, 1:]
        side = round(patches.shape[1] ** 0.5)
        numbers = torch.arange(side * side, device=rows.device).view(1, side, side, 1)
        # Numbered patches through the model's own shuffle tell which ones a token is made of.
        return patches[:, self.pixel_shuffle(numbers, self.config.downsample_ratio).flatten(0, -2)].mean(-1)

    def _row(self, attention: Any, query: Tensor, key: Tensor) -> Tensor:
        """Logits (views, sequence) averaged over the heads of all ranks."""
        size, heads = attention.head_dim, attention.num_heads
        query, key = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in (query, key))
        ranks = getattr(attention, "tp_size", 1)
        # Heads are dealt out in order; the last ones may be padding.
        own = max(0, min(query.shape[1], heads - getattr(attention, "tp_rank", 0) * query.shape[1]))
        if own == 0:
            row = query.new_zeros(query.shape[0], query.shape[2], dtype=torch.float32)
        else:
            row = attention_row(query[:, :own], key[:, :own], None, attention.scale, 0, False) * (own / heads)
        return row if ranks == 1 else tensor_model_parallel_all_reduce(row)

    def arrange(self, views: Tensor, layout: Layout) -> Tensor:  # noqa: D102
        return views.roll(1, 0)


def _of_all_views(model: Any, rows: Tensor, views: int) -> Tensor:
    """Rows of all views where a data-parallel tower gave each rank a share of them."""
    ranks = get_tensor_model_parallel_world_size()
    tower = getattr(model, "vision_model", None)
    if ranks == 1 or not getattr(tower, "use_data_parallel", False):
        return rows
    return tensor_model_parallel_all_gather(rows.contiguous(), dim=0)[:views]


class InternVLInfo(ShortInfo, interns1.InternS1ProcessingInfo):
    """Sizes and counts."""

    family = HF


class InternVLProcessor(ShortProcessor, interns1.InternS1MultiModalProcessor):
    """Short runs of placeholders; videos keep theirs."""


@MULTIMODAL_REGISTRY.register_processor(
    InternVLProcessor, info=InternVLInfo, dummy_inputs=interns1.InternS1DummyInputsBuilder
)
class InternVL(ClsOfKernel, interns1.InternS1ForConditionalGeneration):
    """vLLM's InternVL of transformers' format with short runs."""

    family = HF
    saliency = "logits"
    flat = ("pixel_values",)
    shared = ("image_token_id",)

    def attention(self) -> Any:  # noqa: D102
        return self.vision_tower.encoder.layer[-1].attention


class InternVLChatInfo(ShortInfo, internvl.InternVLProcessingInfo):
    """Sizes and counts."""

    family = CHAT


class InternVLChatProcessor(ShortProcessor, internvl.InternVLMultiModalProcessor):
    """Short runs of placeholders; videos keep theirs."""


@MULTIMODAL_REGISTRY.register_processor(
    InternVLChatProcessor, info=InternVLChatInfo, dummy_inputs=internvl.InternVLDummyInputsBuilder
)
class InternVLChat(ClsOfKernel, internvl.InternVLChatModel):
    """vLLM's InternVL of the original format with short runs."""

    family = CHAT
    saliency = "logits"
    flat = ("pixel_values_flat",)
    shared = ("image_token_id",)

    def attention(self) -> Any:  # noqa: D102
        return self.vision_model.encoder.layers[-1].attn
