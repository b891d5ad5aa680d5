"""Which places of an image stay is decided once: an image that is encoded again keeps the same ones. Knows no vLLM.

A tower's last digits hang on what else is in its batch. In half precision that is enough to change which of two tokens of
nearly equal worth is kept. But keys and values of an image's first encoding may still be in the prefix cache when a second
one brings the rest, and together they must be one set.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

IMAGES = 2**14
"""How many images are remembered: more than the caches of an engine hold. Each takes well under a kilobyte."""
PIECE = 2**20
"""Values that are mixed at once, in 8 bytes each."""
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Odd numbers without a pattern in their bits.
PLACE, FIRST, SECOND = 0x1E3779B97F4A7C15, 0x3F58476D1CE4E5B9, 0x14D049BB133111EB


def digest(pixels: Tensor | Sequence[Tensor]) -> Tensor:
    """A number that tells images apart, int64 (), from the bits of their pixels; computed where they are."""
    parts = [pixels] if isinstance(pixels, Tensor) else list(pixels)
    total = torch.zeros((), dtype=torch.int64, device=parts[0].device)
    begin = 0
    for part in parts:
        values = part.contiguous().view(WORDS[part.element_size()]).flatten()
        for piece in values.split(PIECE):
            place = torch.arange(begin, begin + len(piece), device=piece.device)
            mixed = place.mul_(PLACE).add_(piece).mul_(FIRST)
            mixed ^= mixed >> 31
            mixed.mul_(SECOND)
            mixed ^= mixed >> 29
            total += mixed.sum()
            begin += len(piece)
    return total


class Memory:
    """The kept places of the images that were seen last."""

    def __init__(self, images: int = IMAGES):
        self._images = images
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()

    def settled(self, image: Hashable, kept: Tensor) -> Tensor:
        """The places that this image keeps: those of the first time, or `kept` if this is the first time.

        Args:
            image: What tells it from others, its layout and ratio included.
            kept: bool (places,) on the host.
        """
        packed = self._kept.get(image)
        if packed is None:
            self._kept[image] = np.packbits(kept.numpy()).tobytes()
            if len(self._kept) > self._images:
                self._kept.popitem(last=False)
            return kept
        self._kept.move_to_end(image)
        bits = np.unpackbits(np.frombuffer(packed, dtype=np.uint8), count=len(kept))
        return torch.from_numpy(bits).bool()

    def clear(self) -> None:
        """Forget all: the tower has new weights."""
        self._kept.clear()
