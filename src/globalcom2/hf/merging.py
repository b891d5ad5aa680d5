"""Features of kept tokens with what a method merges into them. Published methods that merge need it; ours do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globalcom2.adapters.base import gather
from globalcom2.core.groups import Group
from globalcom2.core.layout import Layout
from globalcom2.core.ranking import Merge
from globalcom2.core.selection import Keep
from globalcom2.hf.saliency import Encoded


def kept_features(base: Any, encoded: Encoded, groups: list[Group], places: list[Tensor]) -> Tensor:
    """Features (kept, ...) as `Adapter.kept_features` returns them, of tokens into which dropped ones may have been merged.

    Where the projector works on kept tokens alone, the tower's features are merged before it; in all other families,
    what the adapter gives for all places of a run.

    Args:
        base: The model that has `get_image_features`.
        encoded: One pass of the tower.
        groups: Its images, or videos, by layout, with masks on the host.
        places: Per image, on the host, the places of its run that stay, in the order in which they are to be read.
    """
    visuals = encoded.visuals
    adapter, layouts = visuals.adapter, visuals.layouts
    merges = {
        i: _Sums.of(_nth(group.keep, n), Merge(*(part[n] for part in group.keep.merge)), group.layout)
        for group in groups
        if group.keep.merge is not None
        for n, i in enumerate(group.members)
    }
    if not merges:
        return adapter.kept_features(base, encoded.output, layouts, places)
    if isinstance(encoded.output, Tensor):  # (views, tokens, dim), not projected yet
        images = encoded.output.split([layout.views for layout in layouts])
        merged = [
            merges[i].added(own.flatten(0, 1)).view_as(own) if i in merges else own for i, own in enumerate(images)
        ]
        return adapter.kept_features(base, torch.cat(merged), layouts, places)
    everything = adapter.kept_features(base, encoded.output, layouts, [torch.arange(n) for n in visuals.lengths])
    runs = [
        merges[i].at(layout.slots).added(run) if i in merges else run
        for i, (run, layout) in enumerate(zip(everything.split(visuals.lengths), layouts, strict=True))
    ]
    return gather(runs, places)


def _nth(keep: Keep, n: int) -> Keep:
    return Keep(keep.thumbnail[n], keep.crops[n])


@dataclass(frozen=True)
class _Sums:
    """Where features of one image's tokens, in [thumbnail | crops] or in its run, are added to others, and how much of each."""

    target: Tensor
    """int (n,): the token that each is added to; itself where it is not added to any other."""
    own: Tensor
    """float (n,): the factor on a token's own feature where it stays."""
    share: Tensor
    """float (n,): the factor on its feature in the sum of its target, 0 where it is not added."""

    @classmethod
    def of(cls, keep: Keep, merge: Merge, layout: Layout) -> _Sums:
        """In [thumbnail | crops] end to end; a contribution from padding or to a dropped token is left out."""
        device = merge.into.device
        first = 0 if layout.thumbnail else 1
        into, weight = merge.into[first:], merge.weight[first:].float()
        shown = torch.cat([torch.ones(1 - first, layout.tokens, dtype=torch.bool), layout.valid])
        kept = torch.cat([keep.thumbnail.view(1 - first, layout.tokens), keep.crops])
        kept, shown = (mask.to(device, non_blocking=True).flatten() for mask in (kept, shown))
        place = torch.arange(kept.numel(), device=device)
        starts = place.view_as(into)[:, :1]
        target = (starts + into.clamp(min=0)).flatten()
        added = ~kept & shown & (into.flatten() >= 0) & kept[target]
        weight = weight.flatten()
        return cls(
            torch.where(added, target, place),
            # A token that was to be merged and stays after all, since budget was left, keeps its feature.
            torch.where(kept & (into.flatten() < 0), weight, 1.0),
            torch.where(added, weight, 0.0),
        )

    def at(self, slots: Tensor) -> _Sums:
        """The same sums by places of the run; `slots` as in `Layout`."""
        count, device = len(self.target), self.target.device
        token = (slots >= 0) & (slots < count)
        place = torch.arange(len(slots))
        place_of = torch.zeros(count, dtype=torch.int64).index_copy(0, slots[token], place[token])
        slots, token, place, place_of = (
            x.to(device, non_blocking=True) for x in (slots.clamp(0, count - 1), token, place, place_of)
        )
        return _Sums(
            torch.where(token, place_of[self.target[slots]], place),
            torch.where(token, self.own[slots], 1.0),
            torch.where(token, self.share[slots], 0.0),
        )

    def added(self, features: Tensor) -> Tensor:
        """Features (n, ...) with the sums in place of the kept tokens' own; summed in at least float32."""
        shape = (-1, *[1] * (features.ndim - 1))
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        own, share = (factor.to(wide.dtype).view(shape) for factor in (self.own, self.share))
        return (wide * own).index_add(0, self.target, wide * share).to(features.dtype)
