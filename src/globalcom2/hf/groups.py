"""Images of one layout are selected for in one go; then what stays comes to the host, once, and is told image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from globalcom2.adapters.base import Layout
from globalcom2.core.selection import Keep, all_finite, require_finite
from globalcom2.core.views import Views
from globalcom2.hf.report import ImageReport
from globalcom2.hf.visuals import Visuals


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
        """What there is of `keep`, in its order."""
        return masks_of(self.keep)


def masks_of(keep: Keep) -> list[Tensor]:
    """What there is of it, in its order."""
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


def entries_of(groups: list[Group], visuals: Visuals, mask: Tensor | None) -> list[ImageReport]:
    """What stays of each image or video, in prompt order. A place that the caller's mask hides is dropped."""
    shown = visuals.shown(mask)
    entries: dict[int, ImageReport] = {}
    for group in groups:
        kept = places_of(group.keep, group.layout)
        for n, i in enumerate(group.members):
            seen = kept[n] if shown is None else kept[n] & shown[i]
            own = Keep(*(tensor[n] for tensor in group.masks))
            entries[i] = ImageReport(
                visuals.rows[i], group.layout, own, group.thumbnails[n], seen, visuals.adapter.modality
            )
    return [entries[i] for i in range(len(visuals.layouts))]


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
