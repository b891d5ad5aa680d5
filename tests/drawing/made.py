"""Entries of reports without a model: any grid, real selections of random scores."""

import torch

from globalcom2 import ImageReport, Views, select
from globalcom2.core.groups import places_of
from globalcom2.core.layout import Layout, unpacked
from globalcom2.core.selection import Keep


def made(grid=(2, 2), token_grid=(4, 4), ratio=0.25, layout=None, seed=0, **more) -> ImageReport:
    """An entry of an image with these crops; one without crops for the grid (0, 0)."""
    layout = layout or unpacked(grid, token_grid, thumbnail_last=False, **more)
    generator = torch.Generator().manual_seed(seed)
    thumbnail = torch.randn(layout.thumbnail_tokens, generator=generator) if layout.thumbnail else None
    crops = torch.randn(layout.grid[0] * layout.grid[1], layout.tokens, generator=generator)
    views = Views(
        crops,
        layout.valid,
        layout.grid,
        thumbnail_scores=thumbnail,
        token_grid=layout.token_grid,
        lines=layout.lines,
        thumbnail_grid=layout.thumbnail_grid,
        guidance=None if layout.thumbnail else crops,
    )
    keep = select(views, ratio)
    newlines = None if keep.newlines is None else keep.newlines[None]
    batched = Keep(keep.thumbnail[None], keep.crops[None], newlines)
    modality = "image" if layout.thumbnail else "video"
    return ImageReport(0, layout, keep, thumbnail, places_of(batched, layout)[0], modality, crops)


def padded(rows: int = 1) -> Layout:
    """2 x 2 crops of 4 x 4 tokens, of which the last lines of the lower crops are padding."""
    whole = unpacked((2, 2), (4, 4), thumbnail_last=False)
    valid = whole.valid.clone()
    valid.view(2, 2, 4, 4)[1, :, 4 - rows :] = False
    slots = torch.cat([torch.arange(16), 16 + valid.flatten().nonzero().flatten()])
    return Layout((2, 2), (4, 4), valid, None, slots)


def ratio_one(entry: ImageReport) -> ImageReport:
    """The same image at a ratio of 1."""
    keep = Keep(torch.ones_like(entry.keep.thumbnail), entry.layout.valid.clone())
    return ImageReport(0, entry.layout, keep, None, torch.ones(len(entry.layout.slots), dtype=torch.bool))
