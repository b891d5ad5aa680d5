"""What size a native picture has when its tower reads it: the arithmetic of the processors, and their limits.

Where transformers' own function can be imported without torchvision it is called, so that both always agree.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from globalcom2.errors import InputError, UnsupportedModelError

Size = tuple[int, int]
Resize = Callable[[Any, int, int, Mapping[str, int]], Size]
"""From a configuration, (height, width) in px and the limits by name to the (height, width) that the tower reads."""


@dataclass(frozen=True)
class Limits:
    """What keeps a processor from making a picture too small or too large."""

    values: Mapping[str, int]
    """By name: `min_pixels` and `max_pixels` on the area (GLM counts it once for each of a patch's two frames),
    `longest_edge` in px, or `max_patches` and `max_side_patches`."""
    sources: Mapping[str, str]
    """By name, where each is from."""


@dataclass(frozen=True)
class Rule:
    """How a family's processor finds a picture's size."""

    resize: Resize
    published: Limits
    read: Callable[[Mapping[str, Any]], dict[str, int]]
    """Limits by name out of the settings of a processor, those of them that it has."""


def token_side(config: Any) -> int:
    """Side of a token in px."""
    return int(config.vision_config.patch_size) * merge_of(config)


def merge_of(config: Any) -> int:
    """Patches on a side of a token."""
    vision = config.vision_config
    for found in (getattr(config, "spatial_merge_size", None), getattr(vision, "spatial_merge_size", None)):
        if found is not None:
            return int(found)
    return int(vision.merge_kernel_size[0])


def limits_of(config: Any, given: Mapping[str, int] | None = None, settings: Mapping[str, Any] | None = None) -> Limits:
    """The limits of a model's processor.

    Args:
        config: The model's configuration.
        given: Limits by name that go before all others.
        settings: Those of the processor, as its file `preprocessor_config.json` has them; None where there is no file,
            and the published ones hold.

    Raises:
        InputError: A limit that the family's processor does not have, or one out of range.
        UnsupportedModelError: A family whose arithmetic is not known.
    """
    rule, given = _rule(config), given or {}
    published = rule.published.values
    wrong = sorted(set(given) - set(published))
    if wrong:
        raise InputError(
            f"limits of {config.model_type} must be {' or '.join(published)}, as its processor has them, got {wrong[0]}. "
            "Leave it out."
        )
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number from 1 on, got {value!r}.")
    file = rule.read(settings) if settings is not None else {}
    values = {**published, **file, **given}
    if values.get("min_pixels", 0) > values.get("max_pixels", math.inf):
        raise InputError(
            f"min_pixels must be at most max_pixels, got {values['min_pixels']} and {values['max_pixels']}. Give both."
        )
    sources = {
        **rule.published.sources,
        **dict.fromkeys(file, "the processor's file"),
        **dict.fromkeys(given, "as given"),
    }
    return Limits(values, sources)


def read_size(config: Any, height: int, width: int, limits: Limits) -> Size:
    """(height, width) in px that the tower reads of a picture of that size; both are whole tokens.

    Raises:
        InputError: A shape that the processor refuses.
        UnsupportedModelError: A family whose arithmetic is not known.
    """
    try:
        return _rule(config).resize(config, height, width, limits.values)
    except ValueError as error:
        raise InputError(
            f"image must be of a shape that the processor of {config.model_type} takes, got {width}x{height} px: {error}. "
            "Crop it."
        ) from error


def token_grid(config: Any, height: int, width: int, limits: Limits) -> Size:
    """(height, width) in tokens of a picture of that size in px. Raises what `read_size` does."""
    side, (high, wide) = token_side(config), read_size(config, height, width, limits)
    return high // side, wide // side


def _rule(config: Any) -> Rule:
    rule = RULES.get(config.model_type)
    if rule is None:
        raise UnsupportedModelError(
            f"model must be of a family whose processor's arithmetic is known ({', '.join(sorted(RULES))}), got "
            f"{config.model_type!r}. The report of a compressed call tells its tokens all the same."
        )
    return rule


def _smart(family: str) -> Callable[..., Size]:
    """transformers' function of a family's processor."""
    module = import_module(f"transformers.models.{family}.image_processing_pil_{family}")
    return module.smart_resize  # type: ignore[no-any-return]


def _by_area(family: str) -> Resize:
    """Near the picture's own size and within an area."""

    def resize(config: Any, height: int, width: int, limits: Mapping[str, int]) -> Size:
        return _smart(family)(height, width, token_side(config), **limits)

    return resize


def _by_volume(family: str) -> Resize:
    """The same where the area counts once for each of a patch's frames, which are copies of the picture."""

    def resize(config: Any, height: int, width: int, limits: Mapping[str, int]) -> Size:
        frames = int(config.vision_config.temporal_patch_size)
        return _smart(family)(frames, height, width, frames, token_side(config), **limits)

    return resize


def _by_edge(config: Any, height: int, width: int, limits: Mapping[str, int]) -> Size:
    """Shrunk to the longest edge, then up to whole tokens."""
    module = import_module("transformers.models.pixtral.image_processing_pil_pixtral")
    shape = np.broadcast_to(np.zeros((), np.uint8), (3, height, width))  # only its shape is read
    found = module.get_resize_output_image_size(shape, limits["longest_edge"], token_side(config), "channels_first")
    return int(found[0]), int(found[1])


def _by_patches(config: Any, height: int, width: int, limits: Mapping[str, int]) -> Size:
    """Shrunk to so many patches, in all and a side, then padded to whole tokens.

    Source: `navit_resize` of Kimi K2.5 in transformers, whose module needs torchvision.
    """
    patch, side, longest = int(config.vision_config.patch_size), token_side(config), limits["max_side_patches"]
    patches = max(1, height // patch) * max(1, width // patch)
    scale = min(
        1.0, math.sqrt(limits["max_patches"] / patches), longest * patch / height, longest * patch / width
    )  # never larger than the picture
    high, wide = (min(max(1, int(edge * scale)), longest * patch) for edge in (height, width))
    return -(-high // side) * side, -(-wide // side) * side


def _area_settings(settings: Mapping[str, Any]) -> dict[str, int]:
    size = settings.get("size") or {}
    named = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
    found = {name: settings.get(name) or size.get(edge) or size.get(name) for name, edge in named.items()}
    return {name: int(value) for name, value in found.items() if value}


def _edge_settings(settings: Mapping[str, Any]) -> dict[str, int]:
    size = settings.get("size") or {}
    return {"longest_edge": int(size["longest_edge"])} if size.get("longest_edge") else {}


def _patch_settings(settings: Mapping[str, Any]) -> dict[str, int]:
    size = settings.get("size") or {}
    found = {"max_patches": settings.get("max_patches"), "max_side_patches": size.get("max_height")}
    return {name: int(value) for name, value in found.items() if value}


def _area(resize: Resize, smallest: int, largest: int, source: str) -> Rule:
    return Rule(resize, _published(source, min_pixels=smallest, max_pixels=largest), _area_settings)


def _published(source: str, **values: int) -> Limits:
    return Limits(values, dict.fromkeys(values, source))


DEFAULT = "transformers' default"
QWEN2 = _area(_by_area("qwen2_vl"), 56**2, 16384 * 28**2, "published with Qwen2-VL and Qwen2.5-VL")
QWEN3 = _area(_by_area("qwen2_vl"), 256**2, 4096**2, "published with Qwen3-VL and Qwen3.5")
QWEN = _area(_by_area("qwen2_vl"), 56**2, 1280 * 28**2, DEFAULT)
GLM = 112**2, 9633792

RULES: dict[str, Rule] = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl"), QWEN2),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), QWEN3),
    **dict.fromkeys(("exaone4_5", "hyperclovax_vision_v2", "cosmos3_omni"), QWEN),
    "cohere_compass": _area(_by_area("cohere_compass"), 56**2, 1280 * 28**2, DEFAULT),
    **dict.fromkeys(("glm4v", "glm4v_moe"), _area(_by_volume("glm4v"), *GLM, "published with GLM-4.1V")),
    **dict.fromkeys(("glm46v", "glm_ocr"), _area(_by_volume("glm46v"), *GLM, "published with GLM-OCR")),
    "paddleocr_vl": _area(_by_area("paddleocr_vl"), 147384, 2822400, "published with PaddleOCR-VL"),
    "ernie4_5_vl_moe": _area(_by_area("ernie4_5_vl_moe"), 56**2, 6177 * 28**2, DEFAULT),
    "mistral3": Rule(_by_edge, _published("published with Mistral Small 3.1", longest_edge=1540), _edge_settings),
    "kimi_k25": Rule(_by_patches, _published(DEFAULT, max_patches=16384, max_side_patches=512), _patch_settings),
}
"""By `model_type`. Limits are those in the files that came with the named checkpoints, else the processor's own."""
