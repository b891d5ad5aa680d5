"""What the vision tower saw of each image of a call, for drawings: the caller's own tensor, never kept alive by us."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from globalcom2.core.layout import Layout
from globalcom2.hf.rebuilding import Rebuilding


class Pixels:
    """Pixels of one image or video, as long as the caller keeps the tensor of the call and does not write into it.

    Holds a weak reference. A copy and a pickle of it are empty.

    Args:
        given: The pixels of the whole call.
        layouts: Of all its images, or videos, in prompt order.
        rows: Row of the batch for each.
        prompts: Rows of the batch.
        index: Which of the images this one is.
        rebuilding: How the picture is made of patches, for an image that keeps its resolution.
    """

    def __init__(
        self,
        given: Any,
        layouts: Sequence[Layout] = (),
        rows: Sequence[int] = (),
        prompts: int = 0,
        index: int = 0,
        rebuilding: Rebuilding | None = None,
    ):
        self._given = weakref.ref(given) if isinstance(given, Tensor) else None
        self._version = _version(given)
        self._layouts, self._rows, self._prompts, self._index = layouts, rows, prompts, index
        self._rebuilding = rebuilding

    def __reduce__(self) -> tuple[Any, ...]:
        return Pixels, (None,)

    def views(self) -> Tensor | None:
        """The image's views, float (views, 3, height, width), the thumbnail first, on their device.

        None where the tensor is gone or was written into, or where it does not hold one picture per view, as of an image
        that keeps its resolution.
        """
        given = self._present()
        if given is None or self._rebuilding is not None or given.ndim not in (4, 5) or given.shape[-3] != 3:
            return None
        layout = self._layouts[self._index]
        start = self._start(given)
        if start is None:
            return None
        views = given.detach().flatten(0, -4)[start : start + layout.views]
        if len(views) < layout.views:
            return None
        # The tower's order is that of the prompt, which begins with the thumbnail or ends with it.
        last = layout.thumbnail and len(layout.slots) > 0 and int(layout.slots[0]) != 0
        return views.roll(1, 0) if last else views

    def picture(self) -> Tensor | None:
        """The whole image as the tower saw it, float (3, height, width), for one that keeps its resolution.

        None for any other, and where the tensor is gone, was written into, or has a form of its own.
        """
        given = self._present()
        if given is None or self._rebuilding is None:
            return None
        return self._rebuilding.picture(given.detach(), self._layouts, self._index)

    def _present(self) -> Tensor | None:
        """The caller's tensor, unless it is gone or was written into."""
        given = None if self._given is None else self._given()
        return given if given is not None and _version(given) == self._version else None

    def _start(self, given: Tensor) -> int | None:
        """Where the image's views begin in the pixels, counted in views. None if that cannot be told."""
        counts = [layout.views for layout in self._layouts]
        before = sum(counts[: self._index])
        if given.ndim == 4:  # the views of all images, end to end
            return before if len(given) == sum(counts) else None
        most, row = given.shape[1], self._rows[self._index]
        views_of = [sum(n for n, own in zip(counts, self._rows, strict=True) if own == r) for r in range(self._prompts)]
        per_image = len(given) == len(counts) and max(counts) <= most
        per_row = len(given) == self._prompts and max(views_of) == most
        own_row = sum(n for n, own in zip(counts[: self._index], self._rows[: self._index], strict=True) if own == row)
        starts = {self._index * most} if per_image else set()
        starts |= {row * most + own_row} if per_row else set()
        return starts.pop() if len(starts) == 1 else None


def _version(given: Any) -> int | None:
    """How often a tensor was written into; None where torch does not count it."""
    if not isinstance(given, Tensor) or given.is_inference() or torch.compiler.is_compiling():
        return None
    return int(given._version)
