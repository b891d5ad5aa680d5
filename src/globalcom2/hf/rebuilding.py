"""From the patches of a call back to the picture of an image that keeps its resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from torch import Tensor

from globalcom2.adapters.base import Adapter
from globalcom2.adapters.channels import channels_first
from globalcom2.adapters.native import NativeAdapter
from globalcom2.adapters.patches import image_of
from globalcom2.core.layout import Layout


@dataclass(frozen=True)
class Rebuilding:
    """How a family's processor cuts pictures into patches."""

    side: int
    """px on a side of a patch."""
    merge: int
    """Patches on a side of a token."""
    block: int
    """Patches come in blocks of so many on a side; 1 for row by row."""
    channels_last: bool
    """Whether a patch's values have the three channels of a pixel together."""
    frames_first: bool
    """Whether they have all channels of a frame before the next one."""

    def picture(self, given: Tensor, layouts: Sequence[Layout], index: int) -> Tensor | None:
        """One image of a call, float (3, height, width), as the processor normalised it.

        Args:
            given: The call's pixels: patches of all images end to end, padded ones per image, or padded pictures.
            layouts: Of all images.
            index: Which of them.

        Returns:
            None where the pixels have another form.
        """
        sizes = [(height * self.merge, width * self.merge) for height, width in (layout.size for layout in layouts)]
        counts = [height * width for height, width in sizes]
        height, width = sizes[index]
        if len(given) == sum(counts):
            start = list(accumulate(counts, initial=0))[index]
            return self._joined(given[start : start + counts[index]], sizes[index])
        if len(given) != len(layouts):
            return None
        if given.ndim == 4:
            return given[index, :, : height * self.side, : width * self.side]
        return self._joined(given[index, : counts[index]], sizes[index]) if given.ndim == 3 else None

    def _joined(self, patches: Tensor, size: tuple[int, int]) -> Tensor | None:
        flat = patches.flatten(1)
        if flat.shape[1] % (3 * self.side**2):
            return None
        flat = flat[:, : 3 * self.side**2] if self.frames_first else flat  # frames of an image are copies
        flat = channels_first(flat, self.side) if self.channels_last else flat
        return image_of(flat, size, self.side, self.block)[0]


def rebuilding_of(adapter: Adapter, base: Any) -> Rebuilding | None:
    """How the pictures of a model's calls are rebuilt. None for videos, and for images cut into crops.

    Args:
        adapter: Of the family's images.
        base: The model that has `get_image_features`. It is not kept.
    """
    if not isinstance(adapter, NativeAdapter) or adapter.modality != "image":
        return None
    try:
        side, merge = adapter.side(base), adapter.merge(base)
    except AttributeError:  # a family of another package, whose configuration has other names
        return None
    return Rebuilding(side, merge, 1 if adapter.row_by_row else merge, adapter.channels_last, adapter.frames_first)
