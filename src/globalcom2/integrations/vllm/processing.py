"""The processor's side: how many placeholders an image gets follows from its size and the ratio, before any tower runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import SimpleNamespace
from typing import Any, TypeVar

import torch
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import ImageProcessorItems
from vllm.multimodal.processing import PromptUpdateDetails
from vllm.multimodal.processing.processor import PlaceholderFeaturesInfo

from globalcom2.core.layout import Layout
from globalcom2.errors import GlobalCom2Error, InputError
from globalcom2.integrations.vllm import door, metrics
from globalcom2.integrations.vllm.options import PARTS, RETENTION, Asked, Options, in_parts, without_ratio

FIELD = "globalcom2_image"
"""The field in which the processor tells the model of an image: int64 (3,), `in_parts` of its ratio and the two numbers of
`ServedFamily.describe`."""

ModelT = TypeVar("ModelT", bound=type)


@dataclass
class ShortRun(PromptUpdateDetails):
    """A short run, with what counts of it. vLLM's caches keep it, so that it is there for images named by uuid alone."""

    before: int = 0
    after: int = 0


@dataclass
class CountedPlace(PlaceholderFeaturesInfo):
    """Where an image stands in a prompt, with its visual tokens before and after compression."""

    before: int
    after: int

    def to_range(self) -> metrics.CountedRange:  # noqa: D102
        return metrics.CountedRange(self.start_idx, self.length, self.is_embed, self.before, self.after)


class ServedFamily(ABC):
    """What processor and model of a family must agree on: how an image of some size becomes a run of placeholders.

    Attributes:
        scores: Score types that the model's side reads, the one first that it reads where no method names one.
    """

    scores: tuple[str, ...] = ("similarity",)

    def check(self, config: Any) -> None:  # noqa: B027 - most families have nothing to refuse
        """Raise a `GlobalCom2Error` for a configuration that cannot be compressed."""

    @abstractmethod
    def describe(self, info: Any, width: int, height: int, arguments: Mapping[str, object]) -> tuple[int, int]:
        """Two numbers that `layout` needs to know of an image.

        Args:
            info: The family's `ProcessingInfo`.
            width: Of the image, in px.
            height: Of the image, in px.
            arguments: The request's `mm_processor_kwargs` without ours.
        """

    @abstractmethod
    def layout(self, config: Any, first: int, second: int) -> Layout:
        """The layout of the run of placeholders that vLLM makes of an image with these two numbers."""


class ShortInfo:
    """Mixin for a family's `ProcessingInfo`."""

    family: ServedFamily
    ctx: Any
    get_hf_config: Any

    @cached_property
    def options(self) -> Options:
        """The engine's settings."""
        if RETENTION in (self.ctx.get_mm_config().mm_processor_kwargs or {}):
            raise InputError(
                f"{RETENTION} of the engine must be set with hf_overrides, got mm_processor_kwargs, which some families "
                f"pass on to processors that do not know it. Use --hf-overrides '{{\"{RETENTION}\": 0.1}}'."
            )
        return Options.of(self.get_hf_config(), self.family.scores)

    def asked(self, arguments: Mapping[str, object]) -> Asked | None:
        """What a request asks for; None where it keeps all tokens.

        Raises:
            InputError: Something out of range, or compression of a model that cannot be compressed.
        """
        asked = self.options.asked(arguments)
        if self.options.keeps_all(asked):
            return None
        try:
            self.family.check(self.get_hf_config())
        except GlobalCom2Error as error:
            raise InputError(f"{RETENTION} must be 1 for this model, got {asked.ratio:g}: {error}") from error
        return asked

    def get_hf_processor(self, **kwargs: object) -> Any:  # noqa: D102
        return super().get_hf_processor(**without_ratio(kwargs))


class ShortProcessor:
    """Mixin for a family's `MultiModalProcessor`."""

    info: Any
    profiling = False
    """Whether vLLM looks at its dummy images, which are no request's."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        metrics.watch_requests()
        may_ask = self.info.options.per_request
        if may_ask is not None:
            door.guard(may_ask)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        rest = without_ratio(inputs.hf_processor_mm_kwargs)
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=rest))
        asked = self.info.asked(inputs.hf_processor_mm_kwargs)
        if asked is None or "image" not in hashes:
            return hashes
        # vLLM's own key knows nothing of engine-wide settings, which matters where caches outlive an engine.
        mark = self.info.options.mark(asked)
        return {**hashes, "image": [f"{key}|{mark}" for key in hashes["image"]]}

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        rest, asked = without_ratio(hf_kwargs), self.info.asked(hf_kwargs)
        data = super()._apply_hf_processor_main(mm_items, rest)
        sizes = _sizes(mm_items)
        if asked is not None and sizes:
            data[FIELD] = torch.tensor([self._described(size, asked, rest) for size in sizes])
        return data

    def _described(self, size: tuple[int, int], asked: Asked, arguments: Mapping[str, object]) -> tuple[int, int, int]:
        """What `FIELD` tells of an image of that width and height."""
        two = self.info.family.describe(self.info, *size, arguments)
        layout = self.info.family.layout(self.info.get_hf_config(), *two)
        return in_parts(self.info.options.ratio_of(layout, asked)), *two

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = super()._get_mm_fields_config(hf_inputs, without_ratio(hf_processor_mm_kwargs))
        return {**fields, FIELD: MultiModalFieldConfig.batched("image", keep_on_cpu=True)}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Any:
        rest = without_ratio(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, rest, out_mm_kwargs)
        images = out_mm_kwargs.get("image", ())
        return [self._shortened(update, images) if update.modality == "image" else update for update in updates]

    def _shortened(self, update: Any, images: Sequence[Any]) -> Any:
        """A prompt update with short runs in place of vLLM's own; `images` are the fields of each image."""

        def replacement(index: int) -> Any:
            whole = update.content(index) if callable(update.content) else update.content
            if FIELD not in images[index]:
                return whole
            ids = whole.full if isinstance(whole, PromptUpdateDetails) else whole
            chosen = whole.is_embed if isinstance(whole, PromptUpdateDetails) else None
            places = [True] * len(ids) if chosen is None else chosen(ids).tolist()
            parts, *two = images[index][FIELD].data.tolist()
            layout = self.info.family.layout(self.info.get_hf_config(), *two)
            if sum(places) != len(layout.slots):
                raise InputError(
                    f"an image must have {len(layout.slots)} placeholders in vLLM, got {sum(places)}. Its processor cuts "
                    "images otherwise than globalcom2 thinks; please report it with the image's size."
                )
            kept = self.info.options.kept(layout, parts / PARTS)
            short = self.run(ids, places, kept)
            return ShortRun(short.full, short.is_embed, len(layout.slots), kept)

        return replace(update, replacement=replacement)

    def run(self, ids: list[int], places: list[bool], kept: int) -> PromptUpdateDetails:
        """The ids that stand for an image in the short prompt: as many placeholders as it keeps, and all other ids.

        Which tokens stay is not known yet and does not matter here, so the last placeholders go.

        Args:
            ids: What vLLM would put into the prompt.
            places: Which of them are placeholders.
            kept: How many placeholders stay.
        """
        token, left, short = ids[places.index(True)], kept, []
        for number, place in zip(ids, places, strict=True):
            left -= place
            if not place or left >= 0:
                short.append(number)
        return PromptUpdateDetails.select_token_id(short, token)

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> tuple[list[int], Any]:
        ids, found = super()._maybe_apply_prompt_updates(mm_items, mm_res)
        if "image" not in found:
            return ids, found
        return ids, {**found, "image": [_counted(place, mm_res.prompt_updates["image"]) for place in found["image"]]}

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's dummy images, at the highest ratio that a request may ask for: what is profiled must be enough for all."""
        inputs, options = super().get_dummy_inputs(*args, **kwargs), self.info.options
        if options.per_request is False:
            return inputs
        return replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, RETENTION: 1.0})

    def get_dummy_mm_inputs(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        self.profiling = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)
        finally:
            self.profiling = False


def _counted(place: Any, updates: Sequence[Sequence[Any]]) -> CountedPlace:
    """A place of an image with its counts; `updates` are those of all images."""
    short = next((x.content for x in updates[place.item_idx] if isinstance(x.content, ShortRun)), None)
    plain = place.length if place.is_embed is None else int(place.is_embed.sum())
    before, after = (plain, plain) if short is None else (short.before, short.after)
    return CountedPlace(place.modality, place.item_idx, place.start_idx, place.tokens, place.is_embed, before, after)


def _sizes(mm_items: Any) -> list[tuple[int, int]]:
    """Width and height in px of a request's images; an empty list where it brings embeddings or names cached images."""
    images = mm_items.get("image")
    if not isinstance(images, ImageProcessorItems) or any(images[index] is None for index in range(len(images))):
        return []
    sizes = [images.get_image_size(index) for index in range(len(images))]
    return [(size.width, size.height) for size in sizes]


def as_base(config: Any) -> Any:
    """A stand-in for a model, for adapters' methods that read nothing but its configuration."""
    return SimpleNamespace(config=config)


def short_runs(
    family: ServedFamily,
    *,
    info: type,
    processor: type,
    dummy_inputs: type,
    mixin: type[ShortProcessor] = ShortProcessor,
) -> Callable[[ModelT], ModelT]:
    """Decorator of a model class: gives it its family, and registers vLLM's own processing of it with short runs.

    Args:
        family: What processor and model agree on.
        info: vLLM's `ProcessingInfo` of the model; a subclass with `ShortInfo` is made of it.
        processor: vLLM's `MultiModalProcessor` of the model; a subclass with `mixin` is made of it.
        dummy_inputs: vLLM's `DummyInputsBuilder` of the model.
        mixin: What shortens the runs.
    """
    short_info = type(f"Short{info.__name__}", (ShortInfo, info), {"family": family})
    short_processor: Any = type(f"Short{processor.__name__}", (mixin, processor), {})

    def decorated(model: ModelT) -> ModelT:
        model.family = family  # type: ignore[attr-defined]
        register = MULTIMODAL_REGISTRY.register_processor(short_processor, info=short_info, dummy_inputs=dummy_inputs)
        registered: ModelT = register(model)
        return registered

    return decorated
