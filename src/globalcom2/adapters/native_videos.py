"""Videos of families whose images keep their resolution: frames are the crops, and the pooled clip guides.

A frame is one step in time of the tower's grid, which holds two frames of the video that the processor read. Videos of one
call may differ in size and in length. Where the processor writes the time before each frame, that text stays.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.tagged import Size
from globalcom2.adapters.videos import FramesAdapter, frames_layout, unlikeness
from globalcom2.core.layout import Layout
from globalcom2.errors import InputError


class NativeVideosAdapter(FramesAdapter, NativeAdapter):
    """Mixin that makes an adapter of videos from that of a family's images, for towers that read each frame by itself."""

    grid_name = "video_grid_thw"

    def layouts(self, base: Any, call: dict[str, Any]) -> list[Layout]:  # noqa: D102
        given, m = call.get(self.grid_name), self.merge(base)
        grids = given.cpu() if isinstance(given, Tensor) else None
        if grids is None or grids.ndim != 2 or grids.shape[1] != 3 or bool((grids[:, 0] < 1).any()):
            got = repr(given if grids is None else grids.tolist())
            raise InputError(
                f"{self.grid_name} must be (videos, 3), with one frame at least per video, got {got:.120}. Pass everything "
                "the processor returned."
            )
        frames = grids.repeat_interleave(grids[:, 0], 0)
        frames[:, 0] = 1
        self.grids(base, {**call, self.grid_name: frames})  # checks each frame as an image
        return [frames_layout(t, (h // m, w // m), newline=False) for t, h, w in grids.tolist()]

    def encode(self, base: Any, arguments: dict[str, Any], layouts: list[Layout]) -> Any:  # noqa: D102
        encoded = super().encode(base, arguments, layouts)
        encoded.frames = [layout.views for layout in layouts]  # nothing else tells where a frame ends
        return encoded

    def tower_features(self, base: Any, encoded: Any) -> list[Tensor]:
        """Per video (frames, tokens, dim)."""
        videos = zip(encoded.pooler_output, encoded.frames, strict=True)
        return [video.unflatten(0, (frames, -1)) for video, frames in videos]

    def guidance(self, base: Any, encoded: Any, layouts: list[Layout]) -> list[Tensor]:  # noqa: D102
        return [unlikeness(video) for video in self.tower_features(base, encoded)]

    def view_sizes(self, layouts: list[Layout]) -> list[Size]:
        """Height and width in tokens of what the tower reads: each frame of each video."""
        return [layout.token_grid for layout in layouts for _ in range(layout.views)]
