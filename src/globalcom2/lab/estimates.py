"""What a model would cost for an image of some size at several ratios, from its configuration alone: no weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.families import load_adapter
from globalcom2.core.budget import LIMITS, check_ratio
from globalcom2.core.layout import kept_places
from globalcom2.core.limits import check_limit, limited_ratio
from globalcom2.errors import InputError, unknown_name
from globalcom2.hf.inside import Drops
from globalcom2.hf.loading import load_config
from globalcom2.lab import costs
from globalcom2.lab.cutting import Cut, cut, cutter, empty_model
from globalcom2.lab.geometries import named_configs as named_configs  # others have it from here
from globalcom2.lab.geometries import native_configs
from globalcom2.lab.images import check_size
from globalcom2.lab.vision_costs import VisionCost, projector_flops_of, vision_cost

CONVENTIONS = ("ours", "paper")


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
        config, own = opened(model)
        more = {"processor": own, **more}
    size = parse_size(image) if isinstance(image, str) else image
    return estimate_costs(config, size, list(ratios), **more)


def opened(model: str) -> tuple[Any, Any]:
    """The configuration of a name that `globalcom2 estimate --model` takes, and what `estimate_costs` takes as `processor`.

    Raises:
        InputError, UnsupportedModelError: As `load_config` and `cutter` do.
    """
    known = {**named_configs(), **native_configs()}
    config = known.get(model)
    if config is not None:
        return config, None
    config = load_config(model, known)
    return config, cutter(model, config)


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
    size_limits: Mapping[str, int] | None = None,
    guide: str | None = None,
) -> list[dict[str, Any]]:
    """What one prompt with one image costs, one row per ratio, then one per limit in tokens.

    Args:
        config: A supported model's configuration.
        image: (width, height) in px.
        ratios: Each in (0, 1].
        convention: "ours": the real prompt, `text_tokens` and newlines included, with tower and projector; matrix
            products only. "paper": what the paper's tables count: ratio x all tokens of the views, no text, no tower,
            no projector; element-wise work included (`prefill_flops_llm_viewer`), cache in the paper's units.
        text_tokens: Length of the prompt without its image; tags between views count as text. Those between the rows of a
            native image (mistral3) are added.
        bytes_per_value: 2 for float16 and bfloat16.
        processor: The model's processor, for families in which it decides how an image is cut. The LLaVA line needs none,
            nor do native families, which take its limits where it is given: it, or the settings in its file.
        limits: Values of `max_visual_tokens`; only in our convention. A row has the ratio that the limit comes to.
        drops: When visual tokens leave inside the language model, in every row; None where none do. Ours only.
        size_limits: Of native families, what the processor keeps an image's size within, by name: `min_pixels` and
            `max_pixels`, `longest_edge`, or `max_patches`. Default: the processor's own, else the published ones.
        guide: Of native families, "pooled" or "thumbnail", which the tower reads, too. Default: the family's.

    Returns:
        Rows with the keys of `globalcom2 estimate --json`. `share_of_whole` is of tower, projector and prefill at ratio
        1; in the paper's convention the tower and the projector, which it leaves out, are added for it. `speedup` (ours
        only) is what these operations allow, less `masked_flops`, which kernels skip: eager attention does not.
        `tower_share` (ours only) is the part of the row's operations that tower and projector do. Native families' rows
        have `read_as` (WIDTHxHEIGHT in px that the tower reads), `token_grid` [height, width], the limits and the guide.

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
    cost = _Cost.of(config, cut(config, image, processor, size_limits, guide))
    if convention == "paper" and cost.cut.native is not None:
        raise InputError(
            f"convention must be 'ours' for {config.model_type}, got 'paper': the paper counts tokens of tiles and of a "
            "thumbnail, and these images have none."
        )

    def row(ratio: float) -> dict[str, Any]:
        return (
            cost.as_in_the_paper(ratio)
            if convention == "paper"
            else cost.of_call(ratio, text_tokens, bytes_per_value, drops)
        )

    whole = cost.as_in_the_paper(1.0) if convention == "paper" else cost.of_call(1.0, text_tokens, bytes_per_value)
    full, rows = whole, [row(ratio) for ratio in ratios]
    rows += [{**row(limited_ratio(limit, cost.cut.layout)), LIMITS[0]: limit} for limit in limits]
    for made in rows:
        made["share_of_whole"] = _whole(made) / _whole(full)
        if convention == "ours":
            made["speedup"] = speedup(full, made)
    return rows


def _whole(row: dict[str, Any]) -> int:
    """Operations of tower, projector and prefill together."""
    return int(row["total_flops"] + row.get("left_out_flops", 0))


@dataclass(frozen=True)
class _Cost:
    """What is alike at all ratios of one image."""

    config: Any
    adapter: Adapter
    cut: Cut
    vision: VisionCost
    """Where the image is compressed."""
    plain: VisionCost
    """Where it is not."""

    @classmethod
    def of(cls, config: Any, found: Cut) -> _Cost:
        """For an image as the model reads it."""
        vision, plain = (vision_cost(config, layout, found.longest) for layout in (found.layout, found.whole))
        return cls(config, load_adapter(config.model_type), found, vision, plain)

    @property
    def text(self) -> Any:
        """The language model's configuration."""
        return self.config.get_text_config()

    def as_in_the_paper(self, ratio: float) -> dict[str, Any]:
        """A row of what the paper's tables count."""
        visual = int(ratio * self.cut.layout.tower_tokens + 0.5)
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
        visual = kept_places(self.cut.layout, ratio)
        vision = self.plain if ratio == 1.0 else self.vision
        prompt = visual + text_tokens + self.cut.tags
        prefill = costs.call_prefill_flops(self.config, prompt, visual, drops)
        by_layer = costs.tokens_by_layer(self.text, prompt, visual, drops)
        projection = vision.projector
        if ratio < 1.0 and self.adapter.projects_kept_only:
            # Which lines keep their newline depends on content, so this is an upper bound by a few tokens.
            projection = projector_flops_of(self.config, visual)
        total = vision.tower + projection + prefill
        return {
            "retention_ratio": ratio,
            "visual_tokens": visual,
            "prompt_tokens": prompt,
            "tower_flops": vision.tower,
            "projector_flops": projection,
            "prefill_flops": prefill,
            "total_flops": total,
            "tower_share": (vision.tower + projection) / total,
            "masked_flops": costs.masked_flops(self.text, by_layer),
            "decode_flops": costs.decode_flops(self.text, by_layer),
            "kv_cache_bytes": costs.kv_cache_bytes(self.text, by_layer, bytes_per_value),
            "activation_bytes": costs.activation_bytes(self.text, prompt, bytes_per_value),
            **({} if self.cut.native is None else self.cut.native.described()),
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
    return bytes_per_value * int(sum(parameter.numel() for parameter in empty_model(config).parameters()))
