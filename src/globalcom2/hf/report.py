"""What happened in a compressed call: one entry per image or video, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from globalcom2.core.layout import Layout
from globalcom2.core.selection import Keep


@dataclass(frozen=True, eq=False)
class ImageReport:
    """One image or video of a call. Tensors stay on the model's device until they are looked at.

    A video's crops are its frames. Its thumbnail is the pooled clip, of which nothing is kept.
    """

    row: int
    """The prompt of the batch that the image belongs to."""
    layout: Layout
    keep: Keep
    thumbnail_scores: Tensor
    """float (tokens,)."""
    kept: Tensor
    """bool (placeholders,): which of the image's places in the prompt stayed."""
    modality: str = "image"
    """"image" or "video"."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of the crops; (1, frames) of a video."""
        return self.layout.grid

    @property
    def tokens_before(self) -> int:
        """Visual tokens of the uncompressed prompt, newlines included."""
        return len(self.layout.slots)

    @cached_property
    def tokens_after(self) -> int:
        """Visual tokens that the language model read, newlines included."""
        return int(self.kept.sum())

    @cached_property
    def thumbnail_ratio(self) -> float | None:
        """Fraction of the thumbnail's tokens that stayed; None for a video."""
        return float(self.keep.thumbnail.float().mean()) if self.layout.thumbnail else None

    @cached_property
    def crop_ratios(self) -> list[float]:
        """Per crop, row-major, or per frame: the fraction of its valid tokens that stayed."""
        valid = self.layout.valid.sum(1)
        return [float(k) / max(int(v), 1) for k, v in zip(self.keep.crops.sum(1).tolist(), valid.tolist(), strict=True)]

    @property
    def thumbnail_map(self) -> Tensor:
        """The thumbnail's scores as a map, float (height, width)."""
        return self.thumbnail_scores.float().cpu().view(self.layout.thumbnail_grid)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "modality": self.modality,
            "row": self.row,
            "grid": list(self.grid),
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "thumbnail_ratio": self.thumbnail_ratio,
            "crop_ratios": self.crop_ratios,
        }


class Report(Sequence[ImageReport]):
    """A call's images and videos in prompt order, with its times. Empty if nothing was compressed."""

    def __init__(
        self, retention_ratio: float, method: str, images: Sequence[ImageReport] = (), clock: Clock | None = None
    ):
        self.retention_ratio = retention_ratio
        self.method = method
        self.images = tuple(images)
        self._clock = clock or Clock()

    @overload
    def __getitem__(self, index: int) -> ImageReport: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageReport]: ...
    def __getitem__(self, index: int | slice) -> ImageReport | Sequence[ImageReport]:
        return self.images[index]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        videos = sum(entry.modality == "video" for entry in self)
        entries = f"{len(self) - videos} images" + (f", {videos} videos" if videos else "")
        counts = f"{self.tokens_before} -> {self.tokens_after} visual tokens"
        return f"Report({self.method!r}, retention_ratio={self.retention_ratio:g}, {entries}, {counts})"

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all images and videos, uncompressed."""
        return sum(image.tokens_before for image in self)

    @property
    def tokens_after(self) -> int:
        """Visual tokens of all images and videos that the language model read."""
        return sum(image.tokens_after for image in self)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of "tower", "selection", "projection" (of what stays) and, after generate, "generation"."""
        return self._clock.seconds()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "retention_ratio": self.retention_ratio,
            "method": self.method,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "seconds": self.seconds,
            "images": [image.to_dict() for image in self],
        }


@dataclass
class Clock:
    """Times phases without making the host wait: on CUDA with events that are read when somebody asks."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _marks: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block."""
        start = self._now()
        yield
        self._marks[name] = (start, self._now())

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def seconds(self) -> dict[str, float]:
        """Seconds per phase."""
        if self.device.type != "cuda":
            return {name: stop - start for name, (start, stop) in self._marks.items()}
        torch.cuda.synchronize(self.device)
        return {name: start.elapsed_time(stop) / 1000 for name, (start, stop) in self._marks.items()}


def raster(image: ImageReport) -> Tensor:
    """Kept places of one image, in the order of the full prompt."""
    return image.kept.nonzero().flatten()


def best_first(image: ImageReport) -> Tensor:
    """Kept places of one image, those of the thumbnail ordered by score as the published code does."""
    slots, tokens = image.layout.slots, image.layout.thumbnail_tokens
    place = torch.arange(len(slots))
    in_thumbnail = (slots >= 0) & (slots < tokens)
    thumbnail = place[in_thumbnail]
    best = thumbnail[image.thumbnail_scores.cpu()[slots[thumbnail]].argsort(descending=True, stable=True)]
    # The thumbnail's stretch of the run stays where it is and is filled best first.
    order = place.masked_scatter(in_thumbnail, best)
    return order[image.kept[order]]
