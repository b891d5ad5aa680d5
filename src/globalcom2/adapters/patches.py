"""From the flat patches of a processor to the picture, back again, and smaller."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from globalcom2.adapters.tagged import Size


def image_of(patches: Tensor, size: Size, side: int, block: int = 1) -> Tensor:
    """The picture that patches were cut from, float (frames, 3, height * side, width * side).

    Args:
        patches: (height * width, ...): values of patches in the order (channel, frame, row, column). Frames of an image
            are copies of it.
        size: Height and width in patches.
        side: px on a side of a patch.
        block: Patches come in blocks of that many on a side, blocks row by row; 1 for patches row by row.
    """
    height, width = size
    cells = patches.reshape(height // block, width // block, block, block, 3, -1, side, side)
    return cells.permute(5, 4, 0, 2, 6, 1, 3, 7).reshape(-1, 3, height * side, width * side)


def patches_of(image: Tensor, size: Size, side: int, block: int = 1) -> Tensor:
    """The inverse of `image_of`, (height * width, 3 * frames * side * side)."""
    height, width = size
    cells = image.reshape(-1, 3, height // block, block, side, width // block, block, side)
    return cells.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(height * width, -1)


def shrunk(image: Tensor, size: Size) -> Tensor:
    """A picture (frames, 3, height, width) at another size in px. Normalised pixels may be resized like any others."""
    small = F.interpolate(image.float(), size, mode="bicubic", antialias=True, align_corners=False)
    return small.to(image.dtype)
