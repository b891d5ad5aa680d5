"""What the towers and mergers of native pictures cost, in closed form. A picture is its grid of tokens.

The guide is one more picture where the tower reads it. Tests compare every formula with torch's own counter, as
transformers 5.24 computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from globalcom2.adapters.resizing import merge_of

Size = tuple[int, int]


@dataclass(frozen=True)
class Tower:
    """A vision transformer on pictures of any size."""

    width: int
    layers: int
    weights: int
    """Of one layer, which each patch is multiplied with."""
    embedding: int
    """Of the patch embedding, likewise."""
    window: int | None = None
    """Side in tokens of what most layers see at once; None where all layers see the whole picture."""
    whole: int = 0
    """With a window, how many layers see the whole picture all the same."""
    packed: bool = False
    """Whether all pictures are padded to one size, then are one sequence, attention between them masked but computed."""


@dataclass(frozen=True)
class Native:
    """How a family makes tokens of a picture."""

    tower: Callable[[Any], Tower]
    merger: Callable[[Any], int]
    """Weights that each token is multiplied with, all mergers and the projector together."""


def native_cost(config: Any, sizes: Sequence[Size]) -> tuple[int, int]:
    """Operations of the tower, and of the mergers and the projector, on pictures that one call of the tower reads.

    Args:
        config: The model's configuration; its `model_type` must be in `NATIVE`.
        sizes: (height, width) in tokens of each picture, guides of their own among them.
    """
    family, merge = NATIVE[config.model_type], merge_of(config)
    tower = family.tower(config)
    patches = [height * width * merge**2 for height, width in sizes]
    whole = sum(patches) ** 2 if tower.packed else sum(number**2 for number in patches)
    full = tower.layers if tower.window is None else tower.whole
    pairs = full * whole
    if tower.window is not None:
        seen = sum(_squares(height, tower.window) * _squares(width, tower.window) for height, width in sizes)
        pairs += (tower.layers - full) * seen * merge**4
    heights, widths = zip(*sizes, strict=True)
    embedded = len(sizes) * max(heights) * max(widths) * merge**2 if tower.packed else sum(patches)
    dense = 2 * (sum(patches) * tower.layers * tower.weights + embedded * tower.embedding)
    tokens = sum(height * width for height, width in sizes)
    return dense + 4 * pairs * tower.width, 2 * tokens * family.merger(config)


def _squares(tokens: int, window: int) -> int:
    """Sum of the squared lengths of a side's windows; the last one is cut short by the edge."""
    return tokens // window * window**2 + (tokens % window) ** 2


def _layer(width: int, wide: int, matrices: int) -> int:
    """Weights of a layer: attention, and an MLP of so many matrices."""
    return 4 * width**2 + matrices * width * wide


def _patch(vision: Any, frames: int = 1) -> int:
    """Values of a patch."""
    channels = int(getattr(vision, "in_channels", 0) or getattr(vision, "num_channels", 3))
    return int(channels * frames * vision.patch_size**2)


def _plain(matrices: int, frames: bool) -> Callable[[Any], Tower]:
    """All layers see the whole picture; `frames` where a patch holds several."""

    def tower(config: Any) -> Tower:
        vision = config.vision_config
        layers = int(getattr(vision, "depth", None) or vision.num_hidden_layers)
        width = int(vision.hidden_size)
        values = _patch(vision, vision.temporal_patch_size if frames else 1)
        return Tower(width, layers, _layer(width, vision.intermediate_size, matrices), values * width)

    return tower


def _qwen2_tower(config: Any) -> Tower:
    vision, width = config.vision_config, config.vision_config.embed_dim
    values = _patch(vision, vision.temporal_patch_size)
    return Tower(width, vision.depth, _layer(width, int(width * vision.mlp_ratio), 2), values * width)


def _qwen2_5_tower(config: Any) -> Tower:
    """Also of families whose queries share keys and values."""
    vision, width = config.vision_config, config.vision_config.hidden_size
    window = vision.window_size // vision.patch_size // vision.spatial_merge_size
    whole = len(set(vision.fullatt_block_indexes) & set(range(vision.depth)))
    layer, values = _layer(width, vision.intermediate_size, 3), _patch(vision, vision.temporal_patch_size)
    fewer = vision.num_heads - (getattr(vision, "num_key_value_heads", None) or vision.num_heads)
    layer -= 2 * fewer * (width // vision.num_heads) * width
    return Tower(width, vision.depth, layer, values * width, window, whole)


def _pixtral_tower(config: Any) -> Tower:
    vision, width = config.vision_config, config.vision_config.hidden_size
    layer = _layer(width, vision.intermediate_size, 3)
    return Tower(width, vision.num_hidden_layers, layer, _patch(vision) * width, packed=True)


def _merged(config: Any) -> int:
    """Width of a token's patches side by side."""
    vision = config.vision_config
    return int(getattr(vision, "embed_dim", None) or vision.hidden_size) * merge_of(config) ** 2


def _qwen2_merger(config: Any) -> int:
    merged = _merged(config)
    return int(merged**2 + merged * config.vision_config.hidden_size)


def _qwen_merger(config: Any) -> int:
    """One merger for the last layer, and one for each that deepstack reads."""
    merged, vision = _merged(config), config.vision_config
    levels = 1 + len(getattr(vision, "deepstack_visual_indexes", None) or ())
    return int(levels * (merged**2 + merged * vision.out_hidden_size))


def _clova_merger(config: Any) -> int:
    return int(_qwen_merger(config) + config.vision_config.out_hidden_size * config.get_text_config().hidden_size)


def _glm_merger(config: Any) -> int:
    vision, out = config.vision_config, config.vision_config.out_hidden_size
    wide = out * vision.in_channels if config.model_type == "glm_ocr" else vision.intermediate_size
    return int(_merged(config) * out + out**2 + 3 * out * wide)


def _two_layers(config: Any) -> int:
    merged = _merged(config)
    return int(merged**2 + merged * config.get_text_config().hidden_size)


def _ernie_merger(config: Any) -> int:
    """A picture's frame is read twice where a video's two are read once."""
    merged, frames = _merged(config), config.vision_config.temporal_merge_size
    return int((3 + frames) * merged**2 + merged * config.get_text_config().hidden_size)


def _mistral_merger(config: Any) -> int:
    width, out = config.vision_config.hidden_size, config.get_text_config().hidden_size
    return int(_merged(config) * width + width * out + out**2)


QWEN3 = Native(_plain(2, frames=True), _qwen_merger)
GLM = Native(_plain(3, frames=True), _glm_merger)
NATIVE: dict[str, Native] = {
    "qwen2_vl": Native(_qwen2_tower, _qwen2_merger),
    **dict.fromkeys(("qwen2_5_vl", "exaone4_5"), Native(_qwen2_5_tower, _qwen_merger)),
    "hyperclovax_vision_v2": Native(_qwen2_5_tower, _clova_merger),
    **dict.fromkeys(("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"), QWEN3),
    **dict.fromkeys(("cohere_compass", "cosmos3_omni"), QWEN3),
    **dict.fromkeys(("glm4v", "glm4v_moe", "glm46v", "glm_ocr"), GLM),
    "paddleocr_vl": Native(_plain(2, frames=False), _two_layers),
    "ernie4_5_vl_moe": Native(_plain(2, frames=False), _ernie_merger),
    "kimi_k25": Native(_plain(2, frames=False), _two_layers),
    "mistral3": Native(_pixtral_tower, _mistral_merger),
}
"""By `model_type`."""
