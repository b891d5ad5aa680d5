"""How an image of some size in px reaches the tower, from a configuration and what is known of the processor: no weights."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText
from transformers.image_processing_base import ImageProcessingMixin

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.resizing import Limits, limits_of, read_size, token_side
from globalcom2.adapters.windows import windows
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError
from globalcom2.hf.loading import files_of, load_processor
from globalcom2.lab.chat import question_inputs
from globalcom2.lab.vision_costs import padded_length

TAGGED_ROWS = ("mistral3",)
"""Families whose images have a text token after each row."""


@dataclass(frozen=True)
class Native:
    """How a native image is read."""

    size: tuple[int, int]
    """(height, width) in px, whole tokens."""
    grid: tuple[int, int]
    """(height, width) in tokens."""
    limits: Limits
    guide: str
    tags: int = 0
    """Text tokens between its rows, which stay."""

    def described(self) -> dict[str, Any]:
        """As rows of `globalcom2 estimate --json` have it."""
        return {
            "read_as": f"{self.size[1]}x{self.size[0]}",
            "token_grid": list(self.grid),
            "size_limits": dict(self.limits.values),
            "size_limits_from": dict(self.limits.sources),
            "guide": self.guide,
        }


@dataclass(frozen=True)
class Cut:
    """One image as a model reads it."""

    layout: Layout
    """Where it is compressed."""
    longest: int | None = None
    """Patches that every view is padded to, if they are."""
    native: Native | None = None
    """None for a family with tiles."""

    @property
    def tags(self) -> int:
        """Text tokens that the image's size brings into the prompt."""
        return 0 if self.native is None else self.native.tags

    @property
    def whole(self) -> Layout:
        """Where it is not compressed: no guide has a pass of its own."""
        return self.layout if self.native is None else windows(*self.native.grid)


def needs_processor(config: Any) -> bool:
    """Whether a processor decides how the family's images are cut, and the configuration does not tell."""
    adapter = load_adapter(config.model_type)
    return not adapter.native and type(adapter).layout is Adapter.layout


def cutter(name: str, config: Any) -> Any:
    """What `cut` takes as `processor` for a model of that name; None where it needs none, or a native one has no file.

    Raises:
        InputError: A processor is needed and cannot be loaded.
    """
    if needs_processor(config):
        return load_processor(name)
    if not load_adapter(config.model_type).native:
        return None
    try:
        return ImageProcessingMixin.get_image_processor_dict(files_of(name))[
            0
        ]  # the processor itself may need torchvision
    except (OSError, ValueError):
        return None


def cut(
    config: Any,
    image: tuple[int, int],
    processor: Any = None,
    size_limits: Mapping[str, int] | None = None,
    guide: str | None = None,
) -> Cut:
    """An image of (width, height) px as a model reads it.

    Args:
        config: A supported model's configuration.
        image: (width, height) in px.
        processor: The model's processor. Native families need none: its limits are read where it is given, and the
            settings in its file do as well.
        size_limits: For native families, limits of the processor by name, which go before the processor's own.
        guide: For native families, "pooled" or "thumbnail"; None is the family's own.

    Raises:
        InputError: No processor where one is needed, or an option that does not fit the family.
    """
    adapter: Any = load_adapter(config.model_type)
    if not adapter.native:
        for name, given in {**(size_limits or {}), "guide": guide}.items():
            if given is not None:
                raise InputError(
                    f"{name} must be left out for {config.model_type}, whose images have tiles and a thumbnail, got {given!r}."
                )
        return _tiled(config, adapter, image, processor)
    return _native(config, adapter.guided(guide), image, limits_of(config, size_limits, _settings(processor)))


def _native(config: Any, adapter: NativeAdapter, image: tuple[int, int], limits: Limits) -> Cut:
    height, width = read_size(config, image[1], image[0], limits)
    side = token_side(config)
    grid = height // side, width // side
    tags = grid[0] if config.model_type in TAGGED_ROWS else 0
    return Cut(windows(*grid, adapter.guide), native=Native((height, width), grid, limits, adapter.guide, tags))


def _settings(processor: Any) -> Mapping[str, Any] | None:
    """The settings of a processor, given as it is or as its file has them."""
    if processor is None or isinstance(processor, Mapping):
        return processor
    return getattr(processor, "image_processor", processor).to_dict()  # type: ignore[no-any-return]


def _tiled(config: Any, adapter: Adapter, image: tuple[int, int], processor: Any) -> Cut:
    if not needs_processor(config):
        return Cut(adapter.layout(config, image[1], image[0]))
    if processor is None:
        raise InputError(
            f"a processor must be given for {config.model_type}, whose configuration does not tell how an image is cut, got "
            "none. Give a folder with the processor's files, or a name on the hub."
        )
    call = _call(config, image, processor)
    base = empty_model(config).base_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plain picture has no grid; costs are the same in any
        (layout,) = adapter.layouts(base, call)
    return Cut(layout, padded_length(call))


def _call(config: Any, image: tuple[int, int], processor: Any) -> dict[str, Any]:
    """What the processor makes of a picture of that size; nothing of what it shows counts."""
    shown = Image.linear_gradient("L").resize(image).convert("RGB")
    if getattr(processor, "chat_template", None) is None and config.model_type == "got_ocr2":
        return dict(processor(images=shown, return_tensors="pt"))  # it asks its one question by itself
    return question_inputs(config, processor, shown, "?")


def empty_model(config: Any) -> Any:
    """The model on the meta device. Raises `InputError` for a configuration that transformers makes none of."""
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the configuration must be one of which transformers can make a {config.model_type} model, got one where it says: "
            f"{error} Correct config.json."
        ) from error
