"""Images of one layout are selected for in one go; then the masks come to the host, once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from globalcom2.core.layout import Layout
from globalcom2.core.selection import Keep, all_finite, require_finite
from globalcom2.core.views import Views


@dataclass
class Group:
    """Images, or videos, of one layout."""

    layout: Layout
    members: list[int]
    """Their numbers among those of the call."""
    views: Views
    thumbnails: Tensor
    """float (members, tokens)."""
    keep: Keep

    @property
    def masks(self) -> list[Tensor]:
        """The masks of `keep` that are not None, as [thumbnail, crops, newlines]."""
        return masks_of(self.keep)


def masks_of(keep: Keep) -> list[Tensor]:
    """The masks that are not None, as [thumbnail, crops, newlines]."""
    return [mask for mask in (keep.thumbnail, keep.crops, keep.newlines) if mask is not None]


def places_of(keep: Keep, layout: Layout) -> Tensor:
    """Which places of the images' runs stay, bool (images, placeholders)."""
    flat = torch.cat([mask.flatten(1) for mask in masks_of(keep)], 1)
    slots = layout.slots.to(flat.device, non_blocking=True)
    return flat[:, slots.clamp(min=0)] & (slots >= 0)


def on_host(groups: list[Group]) -> None:
    """Copy all masks to the host: the one time that it waits for the device between tower and language model.

    Raises:
        DataError: Scores that are not finite.
    """
    masks = [mask for group in groups for mask in group.masks]
    finite = [all_finite(group.views)[None] for group in groups]
    copied = torch.cat([mask.flatten() for mask in (*finite, *masks)]).cpu()
    for flag, group in zip(copied[: len(groups)].tolist(), groups, strict=True):
        if not flag:
            require_finite(group.views)
    left = iter(copied[len(groups) :].split([mask.numel() for mask in masks]))
    for group in groups:
        group.keep = Keep(*(next(left).view(mask.shape) for mask in group.masks))
