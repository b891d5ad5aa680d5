"""What a model would cost for an image of some size at several ratios, from its configuration alone: no weights."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, LlamaConfig, LlavaNextConfig

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.families import load_adapter
from globalcom2.core.budget import LIMITS, check_ratio
from globalcom2.core.layout import Layout, kept_places
from globalcom2.core.limits import check_limit, limited_ratio
from globalcom2.errors import InputError, unknown_name
from globalcom2.hf.inside import Drops
from globalcom2.hf.loading import load_config, load_processor
from globalcom2.lab import costs
from globalcom2.lab.chat import question_inputs
from globalcom2.lab.images import check_size
from globalcom2.lab.vision_costs import VisionCost, padded_length, projector_flops_of, vision_cost

CONVENTIONS = ("ours", "paper")


def named_configs() -> dict[str, Any]:
    """Configurations that need no download: LLaVA-NeXT 7B and 13B, which the paper measured, and two small ones for a CPU."""

    def llama(width: int, wide: int, layers: int, heads: int) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=32064,
            hidden_size=width,
            intermediate_size=wide,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            max_position_embeddings=8192,
        )

    small_tower = {
        "model_type": "clip_vision_model",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
        "image_size": 336,
        "patch_size": 14,
    }
    return {
        "llava-next-13b": LlavaNextConfig(text_config=llama(5120, 13824, 40, 40)),
        "llava-next-7b": LlavaNextConfig(text_config=llama(4096, 11008, 32, 32)),
        "llava-next-500m": LlavaNextConfig(text_config=llama(768, 2048, 12, 12)),
        "llava-next-86m": LlavaNextConfig(text_config=llama(512, 1376, 8, 8), vision_config=small_tower),
    }


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from "672x672"."""
    match = re.fullmatch(r"\s*(\d+)\s*[xX×]\s*(\d+)\s*", text)
    if not match or not all(int(side) for side in match.groups()):
        raise InputError(f"image must be WIDTHxHEIGHT in pixels, such as 672x672, got {text!r}.")
    check_size(int(match[1]), int(match[2]))
    return int(match[1]), int(match[2])


def estimate(
    model: Any, image: str | tuple[int, int] = (672, 672), ratios: Sequence[float] = (1.0, 0.1), **more: Any
) -> list[dict[str, Any]]:
    """What one prompt with one image costs, one row per ratio, without weights.

    Args:
        model: A name, as `globalcom2 estimate --model` takes it; or a configuration, or a model.
        image: (width, height) in px, or "672x672".
        ratios: Each in (0, 1].
        **more: Further arguments of `estimate_costs`.

    Returns:
        The rows of `estimate_costs`.

    Raises:
        InputError, UnsupportedModelError: As `estimate_costs` does, or for a name that is not known.
    """
    config = getattr(model, "config", model)
    if isinstance(model, str):
        named = named_configs()
        config = named.get(model) or load_config(model, named)
        if needs_processor(config) and "processor" not in more:
            more["processor"] = load_processor(model)
    size = parse_size(image) if isinstance(image, str) else image
    return estimate_costs(config, size, list(ratios), **more)


def estimate_costs(
    config: Any,
    image: tuple[int, int],
    ratios: list[float],
    *,
    convention: str = "ours",
    text_tokens: int = 40,
    bytes_per_value: int = 2,
    processor: Any = None,
    limits: Sequence[int] = (),
    drops: Drops | None = None,
) -> list[dict[str, Any]]:
    """What one prompt with one image costs, one row per ratio, then one per limit in tokens.

    Args:
        config: A supported model's configuration.
        image: (width, height) in px.
        ratios: Each in (0, 1].
        convention: "ours": the real prompt, `text_tokens` and newlines included, with tower and projector; matrix
            products only. "paper": what the paper's tables count: ratio x all tokens of the views, no text, no tower,
            no projector; element-wise work included (`prefill_flops_llm_viewer`), cache in the paper's units.
        text_tokens: Length of the prompt without its image; tags between views count as text.
        bytes_per_value: 2 for float16 and bfloat16.
        processor: The model's processor, for families in which it decides how an image is cut. The LLaVA line needs none.
        limits: Values of `max_visual_tokens`; only in our convention. A row has the ratio that the limit comes to.
        drops: When visual tokens leave inside the language model, in every row; None where none do. Ours only.

    Returns:
        Rows with the keys of `globalcom2 estimate --json`. `share_of_whole` is of tower, projector and prefill at ratio
        1; in the paper's convention the tower and the projector, which it leaves out, are added for it. `speedup` (ours
        only) is what these operations allow, less `masked_flops`, which kernels skip: eager attention does not.

    Raises:
        InputError: An unknown convention, a ratio or a limit out of range, or no processor where one is needed.
        UnsupportedModelError: A family or a language model whose operations are not known.
    """
    if convention not in CONVENTIONS:
        raise unknown_name("convention", convention, CONVENTIONS)
    ratios = [check_ratio(ratio) for ratio in ratios]
    limits = [check_limit(LIMITS[0], limit) for limit in limits]
    if limits and convention == "paper":
        raise InputError(
            "max_visual_tokens must be left out in the paper's convention, which counts no newlines, got one."
        )
    check_size(*image)
    cost = _Cost.of(config, image, processor)

    def row(ratio: float) -> dict[str, Any]:
        return (
            cost.as_in_the_paper(ratio)
            if convention == "paper"
            else cost.of_call(ratio, text_tokens, bytes_per_value, drops)
        )

    whole = cost.as_in_the_paper(1.0) if convention == "paper" else cost.of_call(1.0, text_tokens, bytes_per_value)
    full, rows = whole, [row(ratio) for ratio in ratios]
    rows += [{**row(limited_ratio(limit, cost.layout)), LIMITS[0]: limit} for limit in limits]
    for made in rows:
        made["share_of_whole"] = _whole(made) / _whole(full)
        if convention == "ours":
            made["speedup"] = speedup(full, made)
    return rows


def _whole(row: dict[str, Any]) -> int:
    """Operations of tower, projector and prefill together."""
    return int(row["total_flops"] + row.get("left_out_flops", 0))


def needs_processor(config: Any) -> bool:
    """Whether a processor decides how the family's images are cut, and the configuration does not tell."""
    return type(load_adapter(config.model_type)).layout is Adapter.layout


def _cut(config: Any, image: tuple[int, int], processor: Any) -> tuple[Layout, int | None]:
    """The layout of an image of (width, height) px, and the length that its views are padded to, if they are."""
    adapter = load_adapter(config.model_type)
    if not needs_processor(config):
        return adapter.layout(config, image[1], image[0]), None
    if processor is None:
        raise InputError(
            f"a processor must be given for {config.model_type}, whose configuration does not tell how an image is cut, got "
            "none. Give a folder with the processor's files, or a name on the hub."
        )
    call = _call(config, image, processor)
    base = _empty_model(config).base_model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a plain picture has no grid; costs are the same in any
        (layout,) = adapter.layouts(base, call)
    return layout, padded_length(call)


def _call(config: Any, image: tuple[int, int], processor: Any) -> dict[str, Any]:
    """What the processor makes of a picture of that size; nothing of what it shows counts."""
    shown = Image.linear_gradient("L").resize(image).convert("RGB")
    if getattr(processor, "chat_template", None) is None and config.model_type == "got_ocr2":
        return dict(processor(images=shown, return_tensors="pt"))  # it asks its one question by itself
    return question_inputs(config, processor, shown, "?")


@dataclass(frozen=True)
class _Cost:
    """What is alike at all ratios of one image."""

    config: Any
    adapter: Adapter
    layout: Layout
    vision: VisionCost

    @classmethod
    def of(cls, config: Any, image: tuple[int, int], processor: Any) -> _Cost:
        """For an image of (width, height) px."""
        layout, longest = _cut(config, image, processor)
        return cls(config, load_adapter(config.model_type), layout, vision_cost(config, layout, longest))

    @property
    def text(self) -> Any:
        """The language model's configuration."""
        return self.config.get_text_config()

    def as_in_the_paper(self, ratio: float) -> dict[str, Any]:
        """A row of what the paper's tables count."""
        visual = int(ratio * self.layout.tower_tokens + 0.5)
        prefill = costs.prefill_flops_llm_viewer(self.text, visual)
        cache = costs.kv_cache_bytes(self.text, visual)
        return {
            "retention_ratio": ratio,
            "visual_tokens": visual,
            "tower_flops": 0,
            "projector_flops": 0,
            "prefill_flops": prefill,
            "total_flops": prefill,
            "kv_cache_bytes": cache,
            "kv_cache_mb_as_printed": paper_megabytes(cache),
            "left_out_flops": self.vision.tower + self.vision.projector,
        }

    def of_call(
        self, ratio: float, text_tokens: int, bytes_per_value: int, drops: Drops | None = None
    ) -> dict[str, Any]:
        """A row of what a call with the real prompt computes."""
        visual = kept_places(self.layout, ratio)
        prompt = visual + text_tokens
        prefill = costs.call_prefill_flops(self.config, prompt, visual, drops)
        by_layer = costs.tokens_by_layer(self.text, prompt, visual, drops)
        projection = self.vision.projector
        if ratio < 1.0 and self.adapter.projects_kept_only:
            # Which lines keep their newline depends on content, so this is an upper bound by a few tokens.
            projection = projector_flops_of(self.config, visual)
        return {
            "retention_ratio": ratio,
            "visual_tokens": visual,
            "prompt_tokens": prompt,
            "tower_flops": self.vision.tower,
            "projector_flops": projection,
            "prefill_flops": prefill,
            "total_flops": self.vision.tower + projection + prefill,
            "masked_flops": costs.masked_flops(self.text, by_layer),
            "decode_flops": costs.decode_flops(self.text, by_layer),
            "kv_cache_bytes": costs.kv_cache_bytes(self.text, by_layer, bytes_per_value),
            "activation_bytes": costs.activation_bytes(self.text, prompt, bytes_per_value),
        }


def speedup(full: dict[str, Any], row: dict[str, Any], *, eager: bool = False) -> float:
    """How much faster than `full` a row of `estimate_costs` is at the same operations per second, masked ones skipped.

    Args:
        full: The row at ratio 1.
        row: Another one.
        eager: Whether the language model's attention is eager: it computes what it then masks, as other kernels do in
            padded batches.
    """
    skipped = 0 if eager else 1
    done = [made["total_flops"] - skipped * made["masked_flops"] for made in (full, row)]
    return float(done[0] / done[1])


def paper_megabytes(size: int) -> float:
    """Bytes as the paper prints them: decimal units rounded as LLM-Viewer displays them, a "G" read as 1024 MB."""
    if size >= 1e9:
        return round(round(size / 1e9, 1) * 1024, 1)
    return float(round(size / 1e6))


def weight_bytes(config: Any, bytes_per_value: int = 2) -> int:
    """Bytes of a model's weights, counted on the meta device."""
    return bytes_per_value * int(sum(parameter.numel() for parameter in _empty_model(config).parameters()))


def _empty_model(config: Any) -> Any:
    """The model on the meta device. Raises `InputError` for a configuration that transformers makes none of."""
    try:
        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"the configuration must be one of which transformers can make a {config.model_type} model, got one where it says: "
            f"{error} Correct config.json."
        ) from error
