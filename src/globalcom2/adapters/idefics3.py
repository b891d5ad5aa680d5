"""Idefics3 and SmolVLM: crops, then the thumbnail, each with a tag; the crops' rows end with line breaks.

A prompt has `<fake> row_1_col_1 ... <fake> row_1_col_2 ... \\n <fake> row_2_col_1 ... \\n\\n <fake> global-img ...
<fake>`, where tags are one id or several. Source: transformers' processing_idefics3.py and processing_smolvlm.py.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from globalcom2.adapters.tagged import Gaps, Grid, TaggedAdapter, by_image, grid_of
from globalcom2.errors import InputError


class Idefics3Adapter(TaggedAdapter):
    """Adapter of `idefics3` and `smolvlm`."""

    cls_index = None
    default_score = "similarity"

    def attentions(self, base: Any) -> list[nn.Module]:  # noqa: D102
        return [layer.self_attn for layer in base.vision_model.encoder.layers]

    def factor(self, base: Any) -> int:  # noqa: D102
        return int(base.config.scale_factor)

    def views(self, base: Any, call: dict[str, Any]) -> tuple[list[int], tuple[int, int]]:
        """Views per prompt, and their token grid.

        Views of zeros do not count: the processor fills up the batch with them, and the model drops them.
        """
        pixels, mask = call["pixel_values"], call.get("pixel_attention_mask")
        prompts = len(call["input_ids"])
        height, width = pixels.shape[-2:]
        # The tower takes whole patches; pixels may be left over (384 = 27 * 14 + 6).
        side, rest = divmod(height // base.config.vision_config.patch_size, self.factor(base))
        if pixels.ndim != 5 or len(pixels) != prompts or height != width or rest:
            raise InputError(
                f"pixel_values must be ({prompts} prompts, views, channels, side, side) with a side of a multiple of "
                f"{self.factor(base)} patches, got {tuple(pixels.shape)}. Pass what the processor returned."
            )
        real = (pixels != 0).flatten(2).any(-1)
        if mask is not None and not bool((mask.flatten(2) != 0).all(-1)[real].all()):
            raise InputError(
                "pixel_attention_mask must be 1 on every pixel of a view, got a partly masked view. Pass images as the "
                "processor returns them (it scales every view to a full square); make calls with videos outside the block."
            )
        return real.sum(1).tolist(), (side, side)

    def grids(self, base: Any, gaps: Gaps) -> list[Grid]:
        """The grids of one prompt's images.

        One fake id opens every view, and another one closes the thumbnail. So two of them in a gap part two images.
        """
        fake = gaps[-1][0] if gaps[-1] else None
        if not all(fake in gap for gap in gaps):
            raise InputError(
                "input_ids must hold <fake_token_around_image> and a tag before each view and <fake_token_around_image> "
                "after the thumbnail, got placeholders without it. Build prompts with the processor."
            )
        # What stands before the fake id that opens a view: nothing within a row, a line break between rows.
        images = by_image(gaps, lambda gap: gap.count(fake) > 1)  # type: ignore[arg-type]
        return [_grid([gap[: gap.index(fake)] for gap in image]) for image in images]  # type: ignore[arg-type]

    def tower_features(self, base: Any, encoded: Any) -> Tensor:  # noqa: D102
        tokens = encoded.last_hidden_state.shape[1] // self.factor(base) ** 2
        features: Tensor = self.flat(base, encoded).unflatten(0, (-1, tokens))
        return features

    def output(self, features: Tensor, encoded: Any) -> Any:
        """The features as a tensor (kept, 1, dim) of blocks of one token, which every version of transformers takes."""
        return BaseModelOutputWithPooling(pooler_output=features[:, None])


def _grid(breaks: Gaps) -> Grid:
    """The grid of one image, from the line breaks between its views; the last one stands before the thumbnail."""
    if not breaks:
        return 0, 0, True
    *between, end = breaks
    grid = grid_of([True, *(bool(gap) for gap in between)])
    # No line break before the thumbnail means that the prompt lost its line breaks, and then nothing tells the rows.
    if grid is None or not end or len({tuple(gap) for gap in between if gap}) > 1:
        return 1, len(breaks), False
    return *grid, True
