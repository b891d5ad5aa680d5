"""The images and the videos of a call, and the places of the prompt that they fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor

from globalcom2.adapters.base import Adapter
from globalcom2.core.groups import Group, places_of
from globalcom2.core.layout import Layout
from globalcom2.core.selection import Keep
from globalcom2.errors import InputError
from globalcom2.hf.pixels import Pixels
from globalcom2.hf.rebuilding import Rebuilding, rebuilding_of
from globalcom2.hf.report import ImageReport

EntryT = TypeVar("EntryT")


@dataclass(frozen=True, eq=False)
class Visuals:
    """All images of a call, or all its videos, in prompt order."""

    adapter: Adapter
    arguments: dict[str, Any]
    """Keyword arguments of the adapter's `encode`."""
    layouts: list[Layout]
    placeholder: Tensor
    """bool (batch, long), on the host: places of the full prompts that these fill."""
    rows: list[int]
    """Row of the batch for each."""
    pixels: Any = None
    """What the tower reads, as the caller gave it."""
    rebuilding: Rebuilding | None = None
    """How the images' pictures are made of `pixels`, where these are patches."""

    @property
    def lengths(self) -> list[int]:
        """Number of placeholders of each."""
        return [len(layout.slots) for layout in self.layouts]

    def pixels_of(self, index: int) -> Pixels:
        """What the tower saw of one of them, held weakly."""
        return Pixels(self.pixels, self.layouts, self.rows, len(self.placeholder), index, self.rebuilding)

    def shown(self, mask: Tensor | None) -> tuple[Tensor, ...] | None:
        """Places of each that the caller's mask does not hide, bool (placeholders,). None without a mask."""
        return None if mask is None else mask[self.placeholder].bool().split(self.lengths)


def visuals_of_call(model: Any, call: dict[str, Any], ids: Tensor, adapters: Sequence[Adapter]) -> list[Visuals]:
    """Images and videos of a call, one `Visuals` per modality.

    Args:
        model: The model that is being called.
        call: Keyword arguments of `generate` or `forward`.
        ids: Its `input_ids` (batch, long), on the host.
        adapters: One per modality that is compressed.

    Raises:
        InputError: Prompts and images do not fit each other, or videos come with images in a family that cannot take both.
    """
    found = []
    for adapter in adapters:
        if call.get(adapter.pixels) is None:
            continue
        layouts = adapter.layouts(model.base_model, {**call, "input_ids": ids})
        placeholder = ids == getattr(model.config, f"{adapter.modality}_token_id")
        rows = _rows(placeholder, layouts, adapter.modality)
        arguments = adapter.encode_arguments(model.base_model, call)
        rebuilding = rebuilding_of(adapter, model.base_model)
        found.append(Visuals(adapter, arguments, layouts, placeholder, rows, call[adapter.pixels], rebuilding))
    if found and call.get("pixel_values_videos") is not None and all(v.adapter.modality != "video" for v in found):
        raise InputError(
            "pixel_values_videos must not come with images in a compressed call of this family, got both. Ask about "
            "images and videos in two calls, or leave the block."
        )
    return found


def wanted_tokens(ids: Tensor, found: list[Visuals], kept: list[Tensor]) -> Tensor:
    """Tokens of the full prompts that stay, bool (batch, long).

    Args:
        ids: (batch, long).
        found: The call's images and videos.
        kept: For each of `found`, bool (placeholders,), its images in prompt order.
    """
    wanted = torch.ones_like(ids, dtype=torch.bool)
    for visuals, stays in zip(found, kept, strict=True):
        wanted = wanted.masked_scatter(visuals.placeholder, stays)
    return wanted


def entries_of(groups: list[Group], visuals: Visuals, mask: Tensor | None) -> list[ImageReport]:
    """One entry per image or video, in prompt order. Places that the caller's mask hides are dropped."""
    shown = visuals.shown(mask)
    entries: dict[int, ImageReport] = {}
    for group in groups:
        kept = _places_of(group)
        for n, i in enumerate(group.members):
            seen = kept[n] if shown is None else kept[n] & shown[i]
            own = Keep(*(tensor[n] for tensor in group.masks))
            entries[i] = ImageReport(
                visuals.rows[i],
                group.layout,
                own,
                group.thumbnails[n].detach(),
                seen,
                visuals.adapter.modality,
                group.views.scores[n].detach(),
                retention_ratio=group.ratio,
                pixels=visuals.pixels_of(i),
            )
    return [entries[i] for i in range(len(visuals.layouts))]


def _places_of(group: Group) -> Tensor:
    """Which places of the images' runs stay, bool (images, placeholders); all of them at a ratio of 1."""
    if group.ratio == 1.0:
        return torch.ones(len(group.members), len(group.layout.slots), dtype=torch.bool)
    return places_of(group.keep, group.layout)


def in_prompt_order(found: list[Visuals], entries: list[list[EntryT]]) -> list[EntryT]:
    """Merge the entries of all modalities, one list for each, in the order of the prompts."""
    if len(found) == 1:
        return entries[0]
    starts = []
    for visuals in found:
        places = visuals.placeholder.flatten().nonzero().flatten().tolist()
        starts += [places[first] for first in accumulate(visuals.lengths[:-1], initial=0)]
    flat = [entry for own in entries for entry in own]
    return [flat[i] for i in sorted(range(len(flat)), key=starts.__getitem__)]


def _rows(placeholder: Tensor, layouts: list[Layout], modality: str) -> list[int]:
    """Row of the batch for each image or video. Raises `InputError` if they do not fit the prompts."""
    counts = placeholder.sum(1).tolist()
    rows, row, left = [], 0, counts[0] if counts else 0
    expected = [len(layout.slots) for layout in layouts]
    for size in expected:
        while left == 0 and row + 1 < len(counts):
            row += 1
            left = counts[row]
        if left < size:
            break
        left -= size
        rows.append(row)
    if len(rows) != len(layouts) or left or any(counts[row + 1 :]):
        raise InputError(
            f"input_ids must hold {expected} {modality} placeholders for the {len(layouts)} {modality}s of this call, got "
            f"{counts} per prompt. Build prompts and {modality}s with one call of the processor, with one {modality} tag "
            f"per {modality}."
        )
    return rows
