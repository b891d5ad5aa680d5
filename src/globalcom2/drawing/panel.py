"""What a drawing is made of: an entry of a report, its pictures, and per view the numbers that are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from globalcom2.core.layout import Layout
from globalcom2.drawing.pictures import Pictures

WIDEST = 8
"""Frames of a video, or crops whose places nobody knows, in one row of a drawing."""


class Entry(Protocol):
    """What is read of a report's entry, see `globalcom2.ImageReport`."""

    @property
    def layout(self) -> Layout: ...  # noqa: D102
    @property
    def keep(self) -> Any: ...  # noqa: D102
    @property
    def scores(self) -> Any: ...  # noqa: D102
    @property
    def thumbnail_scores(self) -> Any: ...  # noqa: D102
    @property
    def modality(self) -> str: ...  # noqa: D102
    @property
    def tokens_before(self) -> int: ...  # noqa: D102
    @property
    def tokens_after(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, eq=False)
class Panel:
    """One entry of a report, ready to be drawn."""

    entry: Entry
    pictures: Pictures | None = None
    """What its views show; None draws the maps alone."""
    name: str = ""
    """Heading: the picture, or the setting."""
    answer: str | None = None
    """What the model said."""

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, cols) in which crops are laid out; long videos and crops without known places are wrapped."""
        layout = self.entry.layout
        rows, cols = layout.grid
        if (self.entry.modality == "video" or not layout.known_grid) and cols > WIDEST:
            return -(-cols // WIDEST), WIDEST
        return rows, cols

    @property
    def crop_kind(self) -> str:
        """What one of the crops is: "crop", "frame" of a video, or "window" of an image that keeps its resolution."""
        if self.entry.modality == "video":
            return "frame"
        return "crop" if self.entry.layout.guide_grid is None else "window"

    @property
    def crops_name(self) -> str:
        """What the crops are called all together, such as "2 x 3 crops"."""
        layout, kind = self.entry.layout, self.crop_kind
        rows, cols = layout.grid
        if kind == "frame":
            return f"{cols} frames"
        if not rows:
            return "no crops"
        if kind == "window":
            return "1 window" if rows == cols == 1 else f"{rows} x {cols} windows"
        return f"{rows} x {cols} crops" if layout.known_grid else f"{cols} crops in unknown places"

    @property
    def thumbnail(self) -> View | None:
        """The thumbnail's numbers; None for a video, whose pooled clip the language model does not read."""
        entry = self.entry
        if not entry.layout.thumbnail:
            return None
        size = entry.layout.thumbnail_grid
        keep = _array(entry.keep.thumbnail).astype(bool).reshape(size)
        return View("thumbnail", keep, np.ones(size, bool), _map(entry.thumbnail_scores, size))

    @property
    def guide(self) -> View | None:
        """The guide's scores, of which the language model reads none; None without a guide, or where no score was read."""
        entry, size = self.entry, self.entry.layout.guide_grid
        if size is None or entry.thumbnail_scores is None:
            return None
        scores = _map(entry.thumbnail_scores, size)
        return View("guide", np.zeros(size, bool), np.ones(size, bool), scores, commands_only=True)

    @property
    def commander(self) -> View | None:
        """The view that commands and is drawn beside the crops: the thumbnail, or the guide."""
        return self.guide or self.thumbnail

    @property
    def crops(self) -> list[View]:
        """The numbers of each crop, row by row, or of each frame, or of each window."""
        entry, layout = self.entry, self.entry.layout
        size = layout.token_grid
        keep, valid = _array(entry.keep.crops).astype(bool), layout.valid.numpy()
        scores = [None] * len(keep) if entry.scores is None else list(entry.scores)
        names = [_crop_name(number, self) for number in range(len(keep))]
        return [
            View(name, k.reshape(size), v.reshape(size), _map(own, size))
            for name, k, v, own in zip(names, keep, valid, scores, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class View:
    """Numbers of one view, each an array (height, width) in tokens."""

    name: str
    keep: NDArray
    valid: NDArray
    scores: NDArray | None
    """float; None where none was read."""
    commands_only: bool = False
    """Whether none of its tokens can be kept: of a guide."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in tokens."""
        height, width = self.keep.shape
        return height, width

    @property
    def kept(self) -> int:
        """How many tokens it kept: its budget."""
        return int(self.keep.sum())

    @property
    def count(self) -> int:
        """Its valid tokens."""
        return int(self.valid.sum())

    @property
    def ratio(self) -> float:
        """Fraction of its valid tokens that it kept."""
        return self.kept / max(self.count, 1)

    @property
    def dropped(self) -> NDArray:
        """Valid tokens that it did not keep; none of a view that only commands."""
        dropped: NDArray = self.valid & ~self.keep & (not self.commands_only)
        return dropped


def score_range(views: list[View]) -> tuple[float, float] | None:
    """Least and greatest score among the valid tokens of some views; None where they have no scores."""
    found = [view.scores[view.valid] for view in views if view.scores is not None and view.count]
    if not found:
        return None
    every = np.concatenate(found)
    return float(every.min()), float(every.max())


def share(tokens: int, of: int) -> str:
    """A part of a whole as text, such as "10%"."""
    return f"{tokens / max(of, 1):.0%}"


def _crop_name(number: int, panel: Panel) -> str:
    kind, layout = panel.crop_kind, panel.entry.layout
    if kind == "frame" or not layout.known_grid:
        return f"{kind} {number + 1}"
    row, col = divmod(number, max(layout.grid[1], 1))
    return f"{kind} in row {row + 1}, column {col + 1}"


def _array(tensor: Any) -> NDArray:
    array: NDArray = tensor.detach().cpu().numpy()
    return array


def _map(scores: Any, size: tuple[int, int]) -> NDArray | None:
    return None if scores is None else _array(scores.float()).reshape(size)
