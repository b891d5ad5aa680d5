"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in vLLM: images that keep their resolution, and positions by time, row and column.

vLLM numbers a prompt before the tower runs. That is right for text and videos. For tokens of an image with a short run it tells
where the image begins. Which tokens are kept is known later. So each kept token's embedding carries its row and column,
and the model adds them to the positions when the token is read. vLLM's own way for videos that it prunes would need a switch
that it has for videos alone, and it misplaces text behind portrait images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.models import qwen2_5_vl, qwen2_vl, qwen3_vl

from globalcom2.adapters.qwen_vl import QwenVLAdapter
from globalcom2.adapters.windows import windows
from globalcom2.core.groups import places_of
from globalcom2.core.layout import Layout
from globalcom2.core.scores import similarity
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.hf.config import CompressionConfig
from globalcom2.hf.native import check_settings
from globalcom2.integrations.vllm.model import Pass, ShortModel, indices
from globalcom2.integrations.vllm.options import without_ratio
from globalcom2.integrations.vllm.places import numbered, with_places, without_places
from globalcom2.integrations.vllm.processing import FIELD, ServedFamily, ShortProcessor, _sizes, short_runs

GRID = "globalcom2_grid"
"""`image_grid_thw` once more, under a name by which `short_run` gets that of each image."""
ADAPTER = QwenVLAdapter()


class NativeFamily(ServedFamily):
    """Describes an image by its rows and columns of tokens. A pooled map of its own scores guides it."""

    def describe(self, info: Any, width: int, height: int, arguments: Mapping[str, object]) -> tuple[int, int]:  # noqa: D102
        size, _ = info._get_vision_info(
            image_width=width,
            image_height=height,
            image_processor=info.get_image_processor(**arguments),
            mm_kwargs=arguments,
            modality="image",
        )
        vision = info.get_hf_config().vision_config
        side = vision.patch_size * vision.spatial_merge_size
        return size.height // side, size.width // side

    def layout(self, config: Any, first: int, second: int) -> Layout:  # noqa: D102
        return windows(first, second)


FAMILY = NativeFamily()


class NativeProcessor(ShortProcessor):
    """Refuses prompts that number their tokens further than the model can."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:  # noqa: D102
        result = super().apply(inputs, timing_ctx)  # type: ignore[misc]
        arguments, info = inputs.hf_processor_mm_kwargs, self.info
        if info.asked(arguments) is None:
            return result
        rest, last = without_ratio(arguments), len(result["prompt_token_ids"])
        for size, place in zip(_sizes(inputs.mm_data_items), result["mm_placeholders"].get("image", ()), strict=False):
            # An image takes as many positions as its longer side has tokens, however few it keeps.
            last += max(0, max(info.family.describe(info, *size, rest)) - place.length)
        most = max(info.get_hf_config().get_text_config().max_position_embeddings, info.ctx.model_config.max_model_len)
        if last > most:
            raise InputError(
                f"a prompt must end within the model's {most} positions, got {last}: its images are long and narrow. Pass fewer "
                "of them, or smaller ones."
            )
        return result


class NativeModel(ShortModel):
    """What the three models share.

    Attributes:
        short: Whether the engine may compress images.
        inside: Rows and columns of the tokens of the next pass, int64 (2, tokens); 0 for all that is in no short run.
        numbers: Positions of the tokens of a pass, int64 (3, tokens). As `inside`, it stays where it is for graphs that read
            it. One token more than are ever read keeps its slices from being contiguous, as vLLM's own are.
        dim: Channels of an embedding: deeper levels of the tower come behind the first.
        last: The greatest position that the model has a rotation for.
    """

    flat = ("pixel_values",)
    short: bool
    inside: Tensor
    numbers: Tensor
    dim: int
    last: int
    language_model: torch.nn.Module

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.short = self.options.may_compress
        if not self.short:
            return
        check_engine(vllm_config)
        self.dim = self.config.get_text_config().hidden_size + getattr(self, "multiscale_dim", 0)
        self.inside, self.numbers = (torch.zeros(rows, self.room + 1, dtype=torch.long) for rows in (2, 3))
        tables = [own.cos_sin_cache for own in self.language_model.modules() if hasattr(own, "cos_sin_cache")]
        self.last = min(len(own) for own in tables) - 1  # type: ignore[arg-type]
        self._check_method()

    def _check_method(self) -> None:
        """Raise now, and not at the first request, for settings that native images cannot follow."""
        check_settings(ADAPTER, CompressionConfig(method=self.options.method), self.config.model_type)
        layout = windows(20, 20)
        views = self._views_of(torch.zeros(layout.tower_tokens, 1), layout)
        self._places({name: own[None] for name, own in views.items()}, layout, 0.5)

    # -- the tower

    def view_counts(self, fields: dict[str, Any], layouts: list[Layout]) -> list[int]:
        """How many patches each image has."""
        return [int(grid.prod()) for grid in fields["image_grid_thw"]]

    def embed_multimodal(self, **fields: Any) -> Any:  # noqa: D102
        if FIELD in fields:
            fields[GRID] = fields["image_grid_thw"]
        return super().embed_multimodal(**fields)

    def short_run(self, run: Tensor, kept: Tensor, extra: dict[str, Any]) -> Tensor:  # noqa: D102
        places = indices(kept, run.device)
        return with_places(run[places], places, int(extra[GRID][2]) // ADAPTER.merge(self))

    def _views(self, made: Pass, layouts: list[Layout]) -> dict[str, list[Tensor]]:
        dim = self.config.get_text_config().hidden_size  # as in transformers, deeper levels choose nothing
        views = [self._views_of(run[:, :dim], layout) for run, layout in zip(made.runs, layouts, strict=True)]
        return {name: [own[name] for own in views] for name in views[0]}

    def _views_of(self, tokens: Tensor, layout: Layout) -> dict[str, Tensor]:
        """What the method reads of one image, from its features (tokens, dim)."""
        # A tower that overflows must not stop the engine: it does not without compression either.
        guide, scores = ADAPTER.parts(similarity(tokens).nan_to_num(), layout)
        views = {"guide": guide, "scores": scores}
        if self.options.reads:
            crops = ADAPTER.parts(tokens, layout)[1]
            # Methods that compare views do not see the guide, and find zeros in its place.
            views["features"] = torch.cat([torch.zeros_like(crops[:1]), crops])
        return views

    def _places(self, stacked: dict[str, Tensor], layout: Layout, ratio: float) -> Tensor:
        features = stacked.get("features")
        more: dict[str, Tensor] = {}
        if features is not None:
            more = {"features": features} if "features" in self.options.reads else {"crop_features": features[:, 1:]}
        views = Views.of(layout, stacked["guide"], stacked["scores"], self.saliency, **more)
        return places_of(self.options.select(views, ratio), layout)

    # -- positions

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions (3, tokens) before the tower runs, and the next position less the number of tokens; see `numbered`."""
        whole = super().get_mrope_input_positions  # type: ignore[misc]
        return numbered(input_tokens, mm_features, self._count, whole)

    def _count(self, feature: Any) -> int | None:
        """How many tokens an image with a short run has in the full prompt."""
        if feature.modality != "image" or FIELD not in feature.data:
            return None
        return int(feature.data["image_grid_thw"].data.prod()) // ADAPTER.merge(self) ** 2

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (tokens, dim) of the tokens of the next pass, whose rows and columns are noted for `forward`."""
        if self.short:
            self.inside.zero_()
        if self.short and multimodal_embeddings:
            parts = [without_places(own, self.dim) for own in multimodal_embeddings]
            multimodal_embeddings = [own for own, _ in parts]
            self.inside[:, : len(input_ids)][:, is_multimodal] = torch.cat([own for _, own in parts], 1)
        embedded: Tensor = super().embed_input_ids(  # type: ignore[misc]
            input_ids, multimodal_embeddings, is_multimodal=is_multimodal
        )
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """One pass of the language model, with tokens of short runs at their rows and columns."""
        if self.short and inputs_embeds is not None:
            count = positions.shape[1]
            numbers = self.numbers[:, :count].copy_(positions)
            numbers[1:] += self.inside[:, :count]
            # An answer may go on past the last position, after images that are long and narrow.
            positions = numbers.clamp_(max=self.last)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)  # type: ignore[misc]


def check_engine(vllm_config: Any) -> None:
    """Raise for what an engine cannot do while its images are compressed.

    Raises:
        InputError: Something in which tokens are read in another order or place than they are embedded, or in which others
            number them.
    """
    parallel, multimodal = vllm_config.parallel_config, vllm_config.model_config.multimodal_config
    refused = {
        "pipeline_parallel_size": parallel.pipeline_parallel_size > 1
        and "later stages never see an image's embeddings",
        "prefill_context_parallel_size": parallel.prefill_context_parallel_size > 1
        and "each rank reads a part of a prompt",
        "enable_dbo and ubatch_size": parallel.use_ubatching and "a batch is read in parts",
        "speculative_config": vllm_config.speculative_config is not None and "a draft model does not know short runs",
        "video_pruning_rate": multimodal.get_video_pruning_spec() is not None and "two would number the tokens",
    }
    for name, why in refused.items():
        if why:
            raise InputError(
                f"{name} must be left out where globalcom2 compresses images of this model, got it: {why}. Leave it out, or "
                "set VLLM_PLUGINS='' to run without globalcom2."
            )


@short_runs(
    FAMILY,
    info=qwen2_vl.Qwen2VLProcessingInfo,
    processor=qwen2_vl.Qwen2VLMultiModalProcessor,
    dummy_inputs=qwen2_vl.Qwen2VLDummyInputsBuilder,
    mixin=NativeProcessor,
)
class Qwen2VL(NativeModel, qwen2_vl.Qwen2VLForConditionalGeneration):
    """vLLM's Qwen2-VL with short runs; videos keep theirs."""


@short_runs(
    FAMILY,
    info=qwen2_5_vl.Qwen2_5_VLProcessingInfo,
    processor=qwen2_5_vl.Qwen2_5_VLMultiModalProcessor,
    dummy_inputs=qwen2_5_vl.Qwen2_5_VLDummyInputsBuilder,
    mixin=NativeProcessor,
)
class Qwen25VL(NativeModel, qwen2_5_vl.Qwen2_5_VLForConditionalGeneration):
    """vLLM's Qwen2.5-VL with short runs; videos keep theirs."""


@short_runs(
    FAMILY,
    info=qwen3_vl.Qwen3VLProcessingInfo,
    processor=qwen3_vl.Qwen3VLMultiModalProcessor,
    dummy_inputs=qwen3_vl.Qwen3VLDummyInputsBuilder,
    mixin=NativeProcessor,
)
class Qwen3VL(NativeModel, qwen3_vl.Qwen3VLForConditionalGeneration):
    """vLLM's Qwen3-VL with short runs; videos keep theirs."""
