"""What families share that read a video as a row of frames: frames are the crops, and the pooled clip guides.

The pooled clip is the mean of all frames, place by place. It plays the thumbnail: it decides how many tokens each frame
keeps and has a say in which. The language model reads nothing of it.

Source: the GlobalCom² paper (https://arxiv.org/abs/2501.05179) extends to videos in this way, with frames for crops and
a globally averaged representation for the thumbnail, but gives no formula. The formula is that of VidCom² by the same
authors (https://arxiv.org/abs/2505.14454, `token_compressor/vidcom2/vidcom2.py`): a token is worth more the less it
resembles the clip, measured by Gaussian kernels of five widths, and the temperature of 0.01 belongs to that measure.
Differs from VidCom²: a token is compared with the clip at its own place, not with the mean of all places, which misses
changes in a textured scene; all channels of the tower's features enter, not the half of the projected ones that varies
least; within a frame, the family's own scores count and not the resemblance to the frame's mean; totals are exact.
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from globalcom2.adapters.anyres import check_strategy
from globalcom2.adapters.base import Adapter
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError

KERNEL_WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)  # of VidCom², see above: 2**k for k from -3 to 1


@lru_cache(maxsize=256)
def frames_layout(frames: int, token_grid: tuple[int, int], *, newline: bool) -> Layout:
    """The layout of a video: its frames one after another.

    Args:
        frames: How many there are.
        token_grid: (height, width) of a frame's tokens.
        newline: Whether one newline ends the video.
    """
    tokens = token_grid[0] * token_grid[1]
    return Layout(
        grid=(1, frames),
        token_grid=token_grid,
        valid=torch.ones(frames, tokens, dtype=torch.bool),
        lines=torch.zeros(frames, tokens, dtype=torch.long) if newline else None,
        slots=torch.arange(frames * tokens + newline),
        thumbnail=False,
    )


def unlikeness(features: Tensor) -> Tensor:
    """How little each token resembles the pooled clip at its place: (frames, tokens, dim) -> (frames, tokens).

    Minus the sum of Gaussian kernels of the squared distance between normalized features.
    """
    tokens = F.normalize(features.float(), dim=-1)
    distance = (tokens - tokens.mean(0)).square().sum(-1)
    return -torch.stack([(-distance / (2 * width)).exp() for width in KERNEL_WIDTHS]).sum(0)


class FramesAdapter(Adapter):
    """Mixin of all adapters of videos."""

    modality = "video"
    pixels = "pixel_values_videos"

    def parts(self, tokens: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """The pooled clip (tokens, ...), in the part of the thumbnail, and the frames (frames, tokens, ...)."""
        frames = tokens.unflatten(0, (layout.views, layout.tokens))
        return frames.mean(0), frames


class VideosAdapter(FramesAdapter):
    """Mixin that makes an adapter of videos from the adapter of a family's images, where all frames have one size."""

    strategy: str
    """See `AnyresAdapter`."""
    newline = False
    """Whether the model ends a video with a newline token."""

    @abstractmethod
    def side(self, config: Any) -> int:
        """Tokens along a frame's side."""

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        pixels = call[self.pixels]
        if not isinstance(pixels, Tensor) or pixels.ndim != 5:
            got = f"shape {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else f"a {type(pixels).__name__}"
            raise InputError(
                f"{self.pixels} must be a tensor (videos, frames, channels, height, width), got {got}. Videos of one call "
                "need the same number of frames; ask about others in calls of their own."
            )
        check_strategy(call, self.strategy)
        side = self.side(base.config)
        return [frames_layout(pixels.shape[1], (side, side), newline=self.newline)] * len(pixels)

    def guidance(self, base: Any, encoded: Any, layouts: list[Layout]) -> list[Tensor]:  # noqa: D102
        features: Any = self.tower_features(base, encoded)  # one tensor: frames have one size
        return [unlikeness(video) for video in features.split([layout.views for layout in layouts])]

    def output(self, features: Tensor, encoded: Any) -> Any:  # noqa: D102
        return BaseModelOutputWithPooling(pooler_output=features[None])
