"""Reports of compressed calls: one entry per image or video, and seconds per phase."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import torch
from torch import Tensor

from globalcom2.core.budget import budget_text, ratio_text
from globalcom2.core.layout import Layout
from globalcom2.core.limits import Limits
from globalcom2.core.selection import Keep
from globalcom2.drawing.page import in_frame, kept_page
from globalcom2.drawing.panel import Panel
from globalcom2.drawing.pictures import Pictures
from globalcom2.errors import GlobalCom2Error, InputError
from globalcom2.hf.inside_report import Inside, inside_text
from globalcom2.hf.pixels import Pixels

NOTHING_COMPRESSED = (
    "nothing was compressed in the last call: there was none yet, it had no images or videos, or it passed "
    "through. Check len(report) first."
)


MOST_LINES = 20
"""Entries that `print(report)` lists."""
MOST_DRAWN = 8
"""Entries that a notebook draws."""
FRAME = 900
"""Height of a notebook's drawing, in px: all of 3 x 3 crops beside their thumbnail."""
COLUMNS = (
    "modality", "row", "grid", "token_grid", "thumbnail_grid", "guide_grid", "retention_ratio", "tokens_before",
    "tokens_after", "retained", "tokens_inside", "mean_retention", "thumbnail_ratio", "crop_ratios",
)  # fmt: skip
"""Keys of an entry's `to_dict`, and columns of `to_pandas`."""


@dataclass(frozen=True, eq=False, repr=False)
class ImageReport:
    """One image or video of a call. Its tensors stay on the model's device.

    A video's crops are its frames. Its thumbnail is the pooled clip, of which nothing is kept. The crops of an image that
    keeps its resolution are windows of its tokens. A guide commands them in a thumbnail's place, and nothing of it is kept.
    """

    row: int
    """Row of the batch whose prompt has the image."""
    layout: Layout
    keep: Keep
    thumbnail_scores: Tensor | None
    """float (tokens,), row-major in the thumbnail, or in the guide; None at a ratio of 1, where no score is read."""
    kept: Tensor
    """bool (placeholders,): the image's places in the full prompt that stayed."""
    modality: str = "image"
    """"image" or "video"."""
    scores: Tensor | None = None
    """float (crops, tokens), each crop's own, row-major in the crop; None at a ratio of 1."""
    retention_ratio: float = field(default=1.0, kw_only=True)
    """What it was selected for: the call's ratio, or its own where a limit or "auto" decides; 1 if it stayed whole."""
    inside: Inside | None = field(default=None, kw_only=True)
    """What became of its tokens inside the language model; None where none left there."""
    pixels: Pixels | None = field(default=None, kw_only=True)
    """What the vision tower saw of it, as long as the caller keeps the call's pixels."""

    def __repr__(self) -> str:
        shape = Panel(self).crops_name
        return (
            f"ImageReport({self.modality}, row {self.row}, {shape}, {self.tokens_before} -> {self.tokens_after} tokens"
            f"{inside_text(self)})"
        )

    def _repr_html_(self) -> str:
        return in_frame(kept_page([Panel(self, self.pictures)]), FRAME)

    @property
    def pictures(self) -> Pictures | None:
        """What the vision tower saw, one 8-bit RGB picture per view, or per window. None where the call's pixels are gone."""
        picture = None if self.pixels is None else self.pixels.picture()
        if picture is not None:
            return Pictures.of_picture(picture.float().cpu().numpy(), self.layout)
        views = None if self.pixels is None else self.pixels.views()
        return None if views is None else Pictures.of_views(views.float().cpu().numpy(), self.layout)

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) of the crops, or of the windows; (1, frames) of a video."""
        return self.layout.grid

    @property
    def tokens_before(self) -> int:
        """Visual tokens of the uncompressed prompt, newlines included."""
        return len(self.layout.slots)

    @cached_property
    def tokens_after(self) -> int:
        """Visual tokens of the prompt that the language model was given, newlines included."""
        return int(self.kept.sum())

    @property
    def retained(self) -> float:
        """Fraction of the visual tokens that the prompt kept."""
        return self.tokens_after / max(self.tokens_before, 1)

    @property
    def kept_inside(self) -> list[Tensor]:
        """For each drop inside the language model, bool (placeholders,), on the host: places of the full prompt left."""
        return [] if self.inside is None else self.inside.masks(self.tokens_before)

    @property
    def tokens_inside(self) -> list[int]:
        """Visual tokens left after each drop inside the language model; empty where none leave there."""
        return [int(mask.sum()) for mask in self.kept_inside]

    @property
    def mean_retention(self) -> float:
        """Fraction of the visual tokens that a layer of the language model read, mean over its layers."""
        if self.inside is None:
            return self.retained
        read = self.inside.by_layer(self.tokens_after, self.tokens_inside)
        return sum(read) / len(read) / max(self.tokens_before, 1)

    @cached_property
    def thumbnail_ratio(self) -> float | None:
        """Fraction of the thumbnail's tokens that were kept; None for a video, and for an image with a guide."""
        return float(self.keep.thumbnail.float().mean()) if self.layout.thumbnail else None

    @cached_property
    def crop_ratios(self) -> list[float]:
        """Fraction of valid tokens kept, per crop or window (row-major) or per frame."""
        valid = self.layout.valid.sum(1)
        return [float(k) / max(int(v), 1) for k, v in zip(self.keep.crops.sum(1).tolist(), valid.tolist(), strict=True)]

    @property
    def thumbnail_map(self) -> Tensor:
        """The thumbnail's scores, or the guide's, as a map, float (height, width), on the host.

        Raises:
            InputError: The entry has no scores: its ratio was 1.
        """
        if self.thumbnail_scores is None:
            raise InputError("entry must be of a compressed call, got one at a ratio of 1, which reads no scores.")
        return self.thumbnail_scores.float().cpu().view(self.layout.guide_grid or self.layout.thumbnail_grid)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "modality": self.modality,
            "row": self.row,
            "grid": list(self.grid),
            "token_grid": list(self.layout.token_grid),
            "thumbnail_grid": list(self.layout.thumbnail_grid) if self.layout.thumbnail else None,
            "guide_grid": None if self.layout.guide_grid is None else list(self.layout.guide_grid),
            "retention_ratio": self.retention_ratio,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "retained": self.retained,
            "tokens_inside": self.tokens_inside,
            "mean_retention": self.mean_retention,
            "thumbnail_ratio": self.thumbnail_ratio,
            "crop_ratios": self.crop_ratios,
        }


class Report(Sequence[ImageReport]):
    """Images and videos of a call in prompt order, with the call's times. Empty if nothing was compressed.

    Raises:
        IndexError: `report[i]` for an image that the call did not have, or if nothing was compressed in it.
    """

    def __init__(
        self,
        retention_ratio: float | str,
        method: str,
        images: Sequence[ImageReport] = (),
        clock: Clock | None = None,
        *,
        limits: Limits | None = None,
    ):
        self.retention_ratio = retention_ratio
        self.method = method
        self.limits = limits or Limits()
        self.images = tuple(images)
        self._clock = clock or Clock()

    @overload
    def __getitem__(self, index: int) -> ImageReport: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ImageReport]: ...
    def __getitem__(self, index: int | slice) -> ImageReport | Sequence[ImageReport]:
        try:
            return self.images[index]
        except IndexError:
            count = len(self)
            message = f"index must be in [{-count}, {count}), got {index}." if count else NOTHING_COMPRESSED
            raise IndexError(message) from None

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        videos = sum(entry.modality == "video" for entry in self)
        counted = {"image": len(self) - videos, "video": videos}
        entries = ", ".join(f"{n} {kind}{'s' * (n != 1)}" for kind, n in counted.items() if n or kind == "image")
        counts = f"{self.tokens_before} -> {self.tokens_after} visual tokens"
        limits = "".join(f"{name}={value}, " for name, value in self.limits.to_dict().items())
        ratio = ratio_text(self.retention_ratio)
        return f"Report({self.method!r}, retention_ratio={ratio}, {limits}{entries}, {counts}{inside_text(self)})"

    def __str__(self) -> str:
        lines = [repr(self), *(f"  {number}: {entry!r}" for number, entry in enumerate(self.images[:MOST_LINES]))]
        more = len(self) - MOST_LINES
        return "\n".join([*lines, f"  and {more} more"] if more > 0 else lines)

    def _repr_html_(self) -> str:
        shown = [Panel(entry, entry.pictures, f"{entry.modality} {n}") for n, entry in enumerate(self[:MOST_DRAWN])]
        more = len(self) - len(shown)
        note = (
            "Nothing was compressed in the last call." if not shown else f"{more} more are not shown." if more else ""
        )
        limits = self.limits.to_dict()
        asked = budget_text(self.retention_ratio, limits) if limits else f"ratio {ratio_text(self.retention_ratio)}"
        title = f"{self.method}, {asked}: {_arrow(self)}"
        return in_frame(kept_page(shown, title=title, note=note), FRAME if shown else 160)

    @property
    def tokens_before(self) -> int:
        """Visual tokens of all images and videos in the uncompressed prompts."""
        return sum(image.tokens_before for image in self)

    @property
    def tokens_after(self) -> int:
        """Visual tokens of all images and videos in the prompts that the language model was given."""
        return sum(image.tokens_after for image in self)

    @property
    def tokens_inside(self) -> list[int]:
        """Visual tokens of all images and videos left after each drop inside the language model."""
        return [sum(counts) for counts in zip(*(image.tokens_inside for image in self), strict=True)]

    @property
    def mean_retention(self) -> float | None:
        """Fraction of all visual tokens that a layer of the language model read, mean over its layers; None without any."""
        read = sum(image.mean_retention * image.tokens_before for image in self)
        return read / self.tokens_before if self.tokens_before else None

    @property
    def inside(self) -> Inside | None:
        """Of the first image or video whose tokens left inside the language model; None where none did."""
        return next((image.inside for image in self if image.inside is not None), None)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of "tower", "selection", "projection" (of kept tokens) and, after generate, "generation"."""
        return self._clock.seconds()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return {
            "retention_ratio": self.retention_ratio,
            **self.limits.to_dict(),
            "method": self.method,
            "tokens_before": self.tokens_before,
            "tokens_after": self.tokens_after,
            "tokens_inside": self.tokens_inside,
            "mean_retention": self.mean_retention,
            "seconds": self.seconds,
            "images": [image.to_dict() for image in self],
        }

    def to_pandas(self) -> Any:
        """One row per image or video as a `pandas.DataFrame`, with its own ratio and the call's method in each.

        Raises:
            GlobalCom2Error: pandas is not installed.
        """
        try:
            import pandas  # noqa: PLC0415 - an optional package
        except ImportError:
            raise GlobalCom2Error(
                "to_pandas needs pandas, got none. Run `pip install pandas`, or take to_dict(), which needs nothing."
            ) from None
        columns = list(dict.fromkeys(["retention_ratio", "method", *COLUMNS]))
        return pandas.DataFrame([{"method": self.method, **image.to_dict()} for image in self], columns=columns)


@dataclass
class Clock:
    """Times phases. On CUDA it records events; only `seconds` waits for them."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _marks: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the `with` block under this name."""
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
        """Seconds per phase. Waits for the device."""
        if self.device.type != "cuda":
            return {name: stop - start for name, (start, stop) in self._marks.items()}
        torch.cuda.synchronize(self.device)
        return {name: start.elapsed_time(stop) / 1000 for name, (start, stop) in self._marks.items()}


def _arrow(counted: ImageReport | Report) -> str:
    before, after = counted.tokens_before, counted.tokens_after
    share = f" ({after / before:.1%})" if before else ""
    return f"{before:,} → {after:,} visual tokens{share}{inside_text(counted)}"


def check_entry(entry: object) -> ImageReport:
    """Return `entry`. Raise `InputError` unless it is one of a report."""
    if not isinstance(entry, ImageReport):
        raise InputError(
            f"entry must be one of a report's, compression.report[i], got {type(entry).__name__}. Number 0 is the call's "
            "first image."
        )
    return entry


def raster(image: ImageReport) -> Tensor:
    """Kept places of one image, int (kept,), in the order of the full prompt."""
    return image.kept.nonzero().flatten()


def best_first(image: ImageReport) -> Tensor:
    """Kept places of one image, int (kept,). The thumbnail's come best first, as in the published code."""
    if image.thumbnail_scores is None:
        return raster(image)
    slots, tokens = image.layout.slots, image.layout.thumbnail_tokens
    place = torch.arange(len(slots))
    in_thumbnail = (slots >= 0) & (slots < tokens)
    thumbnail = place[in_thumbnail]
    best = thumbnail[image.thumbnail_scores.cpu()[slots[thumbnail]].argsort(descending=True, stable=True)]
    # The thumbnail keeps its places in the run; the best token comes first in them.
    order = place.masked_scatter(in_thumbnail, best)
    return order[image.kept[order]]
