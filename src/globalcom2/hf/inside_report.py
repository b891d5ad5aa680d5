"""What a report tells about visual tokens that left inside the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from globalcom2.hf.inside_run import Run
from globalcom2.hf.prompt import ShortPrompt


@dataclass(frozen=True, eq=False)
class Inside:
    """What became of one image's tokens inside the language model."""

    run: Run
    row: int
    columns: Tensor
    """int (kept,): where the kept tokens stand in the prompt that the language model was given."""
    places: Tensor
    """int (kept,): their places in the image's run of the full prompt, in the same order."""
    layers: int
    """Layers of the language model."""

    def masks(self, count: int) -> list[Tensor]:
        """For each drop that has happened, which of the image's `count` places are left, bool (count,), on the host."""
        found = []
        for stage in self.run.stages:
            left = stage.index[self.row][stage.visual[self.row]].cpu()
            stays = self.places[torch.isin(self.columns, left)]
            found.append(torch.zeros(count, dtype=torch.bool).index_fill(0, stays, True))
        return found

    def by_layer(self, kept: int, left: Sequence[int]) -> list[int]:
        """Tokens of the image that each layer read, of `kept` in the prompt and so many left after each drop."""
        counts = [kept, *left]
        return [counts[min(self.run.drops.done(layer), len(left))] for layer in range(self.layers)]


def columns_of(prompt: ShortPrompt, placeholder: Tensor, lengths: list[int]) -> list[Tensor]:
    """Per image or video, where the tokens that stay stand in the short prompt, int (kept,).

    Args:
        prompt: The short prompt, on the host.
        placeholder: bool (batch, long), on the host: places of the full prompts that a modality fills.
        lengths: Number of placeholders of each image or video.
    """
    column = torch.full(placeholder.shape, -1)
    own = torch.where(prompt.real, torch.arange(prompt.index.shape[1]), -1)
    runs = column.scatter_reduce(1, prompt.index, own, "amax")[placeholder].split(lengths)
    return [run[run >= 0] for run in runs]


def inside_text(counted: Any) -> str:
    """What the text of a report, or of an entry, adds for tokens that left inside the language model; else empty."""
    if counted.inside is None:
        return ""
    left = counted.tokens_inside
    drops = counted.inside.run.drops
    if not left:
        return f", {drops.name} has not run"
    after = ", ".join(f"{count} after layer {layer}" for count, layer in zip(left, drops.layers, strict=True))
    return f", {drops.name}: {after}, {counted.mean_retention:.1%} over all layers"
