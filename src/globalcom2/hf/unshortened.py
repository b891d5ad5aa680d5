"""What a call at a ratio of 1 reports: its images and videos, of which everything stays. The call itself is untouched."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from globalcom2.adapters.base import Adapter
from globalcom2.core.layout import Layout
from globalcom2.core.selection import Keep
from globalcom2.hf.report import ImageReport
from globalcom2.hf.visuals import Visuals, in_prompt_order, visuals_of_call


@torch.no_grad()
def unshortened_entries(model: Any, call: dict[str, Any], adapters: Iterable[Adapter]) -> list[ImageReport]:
    """One entry per image or video of a call, in prompt order. Runs no part of the model, reads no score.

    A call that is none of ours must not fail here, whatever it holds: what cannot be told gives no entries.

    Args:
        model: The model that is being called.
        call: Keyword arguments of `generate` or `forward`, not modified.
        adapters: One per modality.
    """
    try:
        ids = call["input_ids"]
        if ids.is_cuda and torch.cuda.is_current_stream_capturing():  # a copy to the host would spoil the graph
            return []
        found = visuals_of_call(model, call, ids.cpu(), list(adapters))
        return in_prompt_order(found, [_entries(visuals) for visuals in found])
    except Exception:  # the model's own call, which follows, says what is wrong with it, if anything is
        return []


def _entries(visuals: Visuals) -> list[ImageReport]:
    return [
        ImageReport(
            row,
            layout,
            _everything(layout),
            None,
            torch.ones(len(layout.slots), dtype=torch.bool),
            visuals.adapter.modality,
            pixels=visuals.pixels_of(n),
        )
        for n, (row, layout) in enumerate(zip(visuals.rows, visuals.layouts, strict=True))
    ]


def _everything(layout: Layout) -> Keep:
    thumbnail = torch.ones(layout.thumbnail_tokens, dtype=torch.bool)
    newlines = None if layout.lines is None else torch.ones(layout.line_count, dtype=torch.bool)
    return Keep(thumbnail, layout.valid.clone(), newlines)
