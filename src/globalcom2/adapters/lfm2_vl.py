"""LFM2-VL: SigLIP 2 tower without [CLS]; square crops parted by tags, then a thumbnail in the image's own proportions.

A prompt has `<start> <row_1_col_1> crop <row_1_col_2> crop ... <thumbnail> thumbnail <end>`, and `<start> view <end>`
for an image that is not cut. Source: transformers' processing_lfm2_vl.py; the tags' ids are those of the published
tokenizers.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from globalcom2.adapters.tagged import Gaps, Grid, Size, by_image
from globalcom2.adapters.unequal import UnequalAdapter, tokens_of
from globalcom2.errors import InputError, UnsupportedModelError

COLUMNS = 10  # the vocabulary has <|img_row_1_col_1|> to <|img_row_10_col_10|>, one id after another


class Lfm2VlAdapter(UnequalAdapter):
    """Adapter of `lfm2_vl`."""

    def check(self, base: Any) -> None:  # noqa: D102
        if base.config.vision_config.model_type != "siglip2_vision_model":
            raise UnsupportedModelError(
                "the vision tower of lfm2_vl must be of type 'siglip2_vision_model', got "
                f"{base.config.vision_config.model_type!r}."
            )

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_tower.encoder.layers]

    def factor(self, base: Any) -> int:  # noqa: D102
        return int(base.config.downsample_factor)

    def block(self, base: Any, patches: int, tokens: int) -> int:
        """Patches along a token's side, from the configuration: views are padded to one length, which tells nothing."""
        return self.factor(base)

    def views(self, base: Any, call: dict[str, Any]) -> tuple[int, list[Size]]:  # noqa: D102
        sizes = tokens_of("spatial_shapes", call.get("spatial_shapes"), self.factor(base))
        return len(call["pixel_values"]), sizes

    def grids(self, base: Any, gaps: Gaps) -> list[Grid]:
        """Grids of a prompt's images. The id after the prompt's last view closes an image wherever it stands."""
        end = gaps[-1][:1]
        images = by_image(gaps, lambda gap: gap[:1] == end)
        if not end or any(len(image) == 1 or any(len(gap) != 1 for gap in image) for image in images):
            raise InputError(
                "input_ids must hold <|img_row_R_col_C|> before each crop, <|img_thumbnail|> before the thumbnail and "
                "<|image_end|> after it, got other ids between the views of an image. Build prompts with the "
                "processor, with use_image_special_tokens=True and use_thumbnail=True."
            )
        # The first crop's tag is the last id before it, row 1 and column 1.
        before = [gaps[0], *(gap for gap in gaps[1:-1] if gap[:1] == end)]
        return [_grid([first[-1:], *image]) for first, image in zip(before, images, strict=True)]


def _grid(tags: Gaps) -> Grid:
    """The grid of one image, from the tag before each of its views; an image of one view has no grid."""
    if len(tags) == 1:
        return 0, 0, True
    crops = [tag[0] for tag in tags[:-1]]
    rows, cols = (n + 1 for n in divmod(crops[-1] - crops[0], COLUMNS))
    table = [crops[0] + COLUMNS * row + col for row in range(rows) for col in range(cols)]
    return (rows, cols, True) if crops == table else (1, len(crops), False)
