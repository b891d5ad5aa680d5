"""What the vision side of a call costs, family by family: tower and projector, in closed form.

Tests compare every formula with torch's own counter, as transformers 5.24 computes; other versions may pad views and make
logits otherwise in the families beside LLaVA's. A family without one is refused with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from globalcom2.adapters.families import load_adapter
from globalcom2.core.layout import Layout
from globalcom2.errors import UnsupportedModelError
from globalcom2.lab.costs import tower_flops
from globalcom2.lab.native_costs import NATIVE, native_cost


@dataclass(frozen=True)
class VisionCost:
    """Operations on one image."""

    tower: int
    """All views, all layers; of a native image with its guide, where that has a pass of its own."""
    projector: int
    """All tokens; in native families the mergers, too."""


@dataclass(frozen=True)
class Image:
    """One image as the towers see it."""

    config: Any
    """The model's."""
    layout: Layout
    factor: int
    """Patches along the side of a token."""
    longest: int | None
    """Patches that every view is padded to, where views are; None if that is not known."""

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each view in tokens, the thumbnail first."""
        layout = self.layout
        return [layout.thumbnail_grid, *[layout.token_grid] * (layout.views - 1)]

    @property
    def tokens(self) -> int:
        """Tokens of all views."""
        return sum(height * width for height, width in self.sizes)

    def over_patches(self, cost: Callable[[int], int]) -> int:
        """The sum over all views of a cost that depends on a view's patches."""
        return sum(cost(height * width * self.factor**2) for height, width in self.sizes)


def vision_cost(config: Any, layout: Layout, longest: int | None = None) -> VisionCost:
    """Operations of tower and projector on one image.

    Args:
        config: The model's configuration.
        layout: The image's.
        longest: Patches that every view is padded to, in families that pad: `pixel_values.shape[1]` of a call.

    Raises:
        UnsupportedModelError: No formula is known for this family.
    """
    if config.model_type in NATIVE:
        guides = [layout.guide_grid] if layout.guide_pass and layout.guide_grid is not None else []
        return VisionCost(*native_cost(config, [layout.size, *guides]))
    counter = FAMILIES.get(config.model_type)
    if counter is None:
        raise UnsupportedModelError(
            f"costs must be counted for a known vision tower ({', '.join(sorted({*FAMILIES, *NATIVE}))}), got one of "
            f"{config.model_type!r}, which nobody has compared with torch's counter yet."
        )
    adapter: Any = load_adapter(config.model_type)
    factor = adapter.factor(SimpleNamespace(config=config)) if hasattr(adapter, "factor") else 1
    if config.model_type == "minicpmv4_6":
        factor *= 2  # the tower merges once, the projector once more
    return counter(Image(config, layout, factor, longest))


def padded_length(call: dict[str, Any]) -> int | None:
    """Patches that every view of a call is padded to, where its processor hands out patches; else None."""
    pixels = call["pixel_values"]
    return int(pixels.shape[1]) if pixels.ndim == 3 else None


def projector_flops_of(config: Any, tokens: int) -> int:
    """Operations of the projector on `tokens` tokens, in families where it works on kept tokens alone."""
    vision, text = config.vision_config, config.get_text_config()
    if config.model_type == "llama4":
        return int(2 * tokens * vision.vision_output_dim * text.hidden_size)
    layers = config.vision_feature_layer
    states = 1 if isinstance(layers, int) else len(layers)
    return int(2 * tokens * (states * vision.hidden_size * text.hidden_size + text.hidden_size**2))


def block(tokens: int, width: int, wide: int, matrices: int = 2) -> int:
    """One transformer layer on `tokens` tokens: attention, and an MLP of so many matrices."""
    return 8 * tokens * width**2 + 4 * tokens**2 * width + 2 * matrices * tokens * width * wide


def embedding(vision: Any, patches: int) -> int:
    """Patches made tokens of the tower."""
    return int(2 * patches * getattr(vision, "num_channels", 3) * _side(vision.patch_size) ** 2 * vision.hidden_size)


def plain_tower(image: Image, class_token: int = 0, matrices: int = 2) -> int:
    """A plain vision transformer on all views of an image."""
    vision = image.config.vision_config
    width, wide, layers = int(vision.hidden_size), int(vision.intermediate_size), int(vision.num_hidden_layers)

    def view(patches: int) -> int:
        head = pooling_head(vision, patches) if getattr(vision, "vision_use_head", False) else 0
        return layers * block(patches + class_token, width, wide, matrices) + embedding(vision, patches) + head

    return image.over_patches(view)


def pooling_head(vision: Any, patches: int) -> int:
    """SigLIP's pooling of a view by one query, which these models do not read but may compute."""
    width, wide = vision.hidden_size, vision.intermediate_size
    return int(4 * width**2 + 4 * patches * width**2 + 4 * patches * width + 4 * width * wide)


def _llava(image: Image) -> VisionCost:
    config, layout = image.config, image.layout
    class_token = config.vision_config.model_type == "clip_vision_model"
    head = 0
    if getattr(config.vision_config, "vision_use_head", False):
        head = image.over_patches(lambda patches: pooling_head(config.vision_config, patches))
    tower = tower_flops(config.vision_config, layout.views, class_token) + head
    return VisionCost(tower, projector_flops_of(config, layout.tower_tokens))


def _internvl(image: Image) -> VisionCost:
    vision, text = image.config.vision_config, image.config.get_text_config()
    merged = vision.hidden_size * image.factor**2
    projector = 2 * image.tokens * (merged * text.hidden_size + text.hidden_size**2)
    return VisionCost(plain_tower(image, class_token=1), projector)


def _idefics3(image: Image) -> VisionCost:
    merged = image.config.vision_config.hidden_size * image.factor**2
    return VisionCost(plain_tower(image), 2 * image.tokens * merged * image.config.get_text_config().hidden_size)


def _cohere(image: Image) -> VisionCost:
    config, text = image.config, image.config.get_text_config()
    wide = getattr(config, "alignment_intermediate_size", None) or text.hidden_size
    merged = config.vision_config.hidden_size * image.factor**2
    return VisionCost(plain_tower(image), 2 * image.tokens * (merged * wide + wide // 2 * text.hidden_size))


def _ovis2(image: Image) -> VisionCost:
    vision, text = image.config.vision_config, image.config.get_text_config()
    words = vision.vocab_size - vision.num_visual_indicator_tokens
    head = 2 * image.tokens * vision.hidden_size * image.factor**2 * words
    table = 2 * image.tokens * vision.vocab_size * text.hidden_size
    return VisionCost(plain_tower(image, matrices=3) + head, table)


def _llama4(image: Image) -> VisionCost:
    vision = image.config.vision_config
    adapter = (
        2 * image.tokens * (vision.intermediate_size * vision.projector_input_dim + vision.projector_output_dim**2)
    )
    return VisionCost(plain_tower(image, class_token=1) + adapter, projector_flops_of(image.config, image.tokens))


def _lfm2_vl(image: Image) -> VisionCost:
    config, vision = image.config, image.config.vision_config
    if image.longest is None:
        raise UnsupportedModelError(
            "costs must be counted for views of known length in lfm2_vl, which pads all views to one, got none. Give a "
            "processor."
        )
    padded, width = image.longest, vision.hidden_size
    layers = vision.num_hidden_layers * block(padded, width, vision.intermediate_size)
    places = 2 * padded * vision.num_patches * width  # the table of places, resized by a matrix
    head = pooling_head(vision, padded) if getattr(vision, "vision_use_head", False) else 0
    tower = image.layout.views * (layers + embedding(vision, padded) + places + head)
    merged = width * image.factor**2
    projector = config.projector_hidden_size * (merged + config.get_text_config().hidden_size)
    tokens = image.layout.views * (padded // image.factor**2)  # padding is projected, too
    return VisionCost(int(tower), int(2 * tokens * projector))


def _minicpmv(image: Image) -> VisionCost:
    config, vision = image.config, image.config.vision_config
    if config.merger_times != 1:
        raise UnsupportedModelError(f"costs must be counted for one merger in minicpmv4_6, got {config.merger_times}.")
    width, mlp, before = int(vision.hidden_size), int(vision.intermediate_size), int(vision.insert_layer_id) + 1
    after = int(vision.num_hidden_layers) - before
    inner, wide = int(vision.window_hidden_size), int(vision.window_intermediate_size)
    window = int(vision.window_kernel_size[0] * vision.window_kernel_size[1])

    def view(patches: int) -> int:
        layers = before * block(patches, width, mlp)
        layers += after * block(patches // window, width, mlp)
        merger = 8 * patches * width**2 + 4 * patches * window * width
        merger += 2 * (patches // window) * (inner * wide + wide * width)
        return layers + merger + embedding(vision, patches)

    merged = 4 * width
    projector = 2 * image.tokens * (merged**2 + merged * config.get_text_config().hidden_size)
    return VisionCost(image.over_patches(view), projector)


def _step3p7(image: Image) -> VisionCost:
    width = image.config.vision_config.hidden_size
    first, second = 2 * 9 * width * 2 * width, 2 * 9 * 2 * width * 4 * width  # 3 x 3 convolutions of stride 2
    convolutions = image.tokens * (4 * first + second)
    projector = 2 * image.tokens * 4 * width * image.config.get_text_config().hidden_size
    return VisionCost(plain_tower(image) + convolutions, projector)


def _got_ocr2(image: Image) -> VisionCost:
    vision, text = image.config.vision_config, image.config.get_text_config()
    side, width, out = vision.image_size // vision.patch_size, vision.hidden_size, vision.output_channels

    def attention(side: int) -> int:
        places = 4 * side**2 * side * width if vision.use_rel_pos else 0
        return int(8 * side**2 * width**2 + 4 * side**4 * width + places)

    windows = (-(-side // vision.window_size)) ** 2
    whole = len(set(vision.global_attn_indexes) & set(range(vision.num_hidden_layers)))
    tower = whole * attention(side) + (vision.num_hidden_layers - whole) * windows * attention(vision.window_size)
    tower += vision.num_hidden_layers * 4 * side**2 * width * vision.mlp_dim + embedding(vision, side**2)
    tower += 2 * side**2 * (width * out + 9 * out**2)
    tokens = side**2 // 16
    projector = 2 * tokens * (4 * 9 * out * 2 * out + 9 * 2 * out * text.hidden_size + text.hidden_size**2)
    return VisionCost(int(image.layout.views * tower), int(image.layout.views * projector))


def _granite4(image: Image) -> VisionCost:
    config, vision, former = image.config, image.config.vision_config, image.config.qformer_config
    query_side, window_side = (int(side) for side in config.downsample_rate.split("/"))
    queries, seen, width = query_side**2, window_side**2, former.hidden_size
    one = block(queries, width, former.intermediate_size)
    across = 4 * queries * width**2 + 4 * seen * former.encoder_hidden_size * width + 4 * queries * seen * width
    crossing = len(range(0, former.num_hidden_layers, former.cross_attention_frequency))
    window = former.num_hidden_layers * one + crossing * across
    window += 2 * queries * vision.hidden_size * config.get_text_config().hidden_size
    side = vision.image_size // vision.patch_size
    windows = image.layout.views * (side // window_side) ** 2
    projectors = len(config.deepstack_layer_map) + len(config.spatial_target_layers or ())
    tower = tower_flops(vision, image.layout.views, class_token=False)
    return VisionCost(tower, int(projectors * windows * window))


FAMILIES: dict[str, Callable[[Image], VisionCost]] = {
    **dict.fromkeys(("llava_next", "llava_next_video", "llava_onevision"), _llava),
    **dict.fromkeys(("internvl", "qianfan_ocr"), _internvl),
    **dict.fromkeys(("idefics3", "smolvlm"), _idefics3),
    **dict.fromkeys(("aya_vision", "cohere2_vision"), _cohere),
    "ovis2": _ovis2,
    "llama4": _llama4,
    "lfm2_vl": _lfm2_vl,
    "minicpmv4_6": _minicpmv,
    "step3p7": _step3p7,
    "got_ocr2": _got_ocr2,
    "granite4_vision": _granite4,
}
"""By `model_type`."""


def _side(size: Any) -> int:
    return int(size[0] if isinstance(size, (list, tuple)) else size)
