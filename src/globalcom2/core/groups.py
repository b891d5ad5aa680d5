"""Images of one layout are selected for in one go; then the masks come to the host, once for all of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from globalcom2.core.layout import Layout
from globalcom2.core.selection import Keep, all_finite, require_finite
from globalcom2.core.views import Views

SHARED = ("valid", "lines")
"""Tensors of `Views` that a whole batch has in common."""


@dataclass
class Group:
    """Images, or videos, of one layout and one ratio."""

    layout: Layout
    members: list[int]
    """Their numbers among those of the call."""
    views: Views
    thumbnails: Tensor
    """float (members, tokens)."""
    keep: Keep
    ratio: float = 1.0
    """What it was selected for; at 1.0 everything stays."""

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


def views_of(views: Views, members: list[int]) -> Views:
    """Some images of a batch of views."""
    chosen = copy.copy(views)  # checked already
    index = torch.tensor(members).to(views.scores.device, non_blocking=True)
    for name in (own.name for own in fields(views) if own.name not in SHARED):
        tensor = getattr(views, name)
        if isinstance(tensor, Tensor):
            object.__setattr__(chosen, name, tensor[index])
    return chosen


def all_of(layout: Layout, count: int, device: torch.device) -> Keep:
    """Masks of `count` images of this layout of which everything stays."""
    newlines = None if layout.lines is None else torch.ones(count, layout.line_count, dtype=torch.bool, device=device)
    thumbnail = torch.ones(count, layout.thumbnail_tokens, dtype=torch.bool, device=device)
    valid = layout.valid.to(device, non_blocking=True)
    return Keep(thumbnail, valid.expand(count, *valid.shape), newlines)


def on_host(groups: list[Group]) -> None:
    """Copy all masks to the host: the one time that it waits for the device between tower and language model.

    Raises:
        DataError: Scores that are not finite, from the tower or from the method.
    """
    masks = [mask for group in groups for mask in group.masks]
    flags = [flag[None] for group in groups for flag in (all_finite(group.views), _sound(group.keep))]
    copied = torch.cat([mask.flatten() for mask in (*flags, *masks)]).cpu()
    fine = iter(copied[: len(flags)].tolist())
    for group in groups:
        if not next(fine):
            require_finite(group.views)
        if not next(fine) and group.keep.unchecked is not None:
            group.keep.unchecked.require()
    left = iter(copied[len(flags) :].split([mask.numel() for mask in masks]))
    for group in groups:
        group.keep = Keep(*(next(left).view(mask.shape) for mask in group.masks), merge=group.keep.merge)


def _sound(keep: Keep) -> Tensor:
    """Whether the method's values can be used, bool () on their device."""
    return keep.crops.new_ones(()) if keep.unchecked is None else keep.unchecked.sound()
