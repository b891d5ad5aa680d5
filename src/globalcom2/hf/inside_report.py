"""What a report tells about visual tokens that left inside the language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from globalcom2.hf.inside_run import Run
from globalcom2.hf.prompt import ShortPrompt

if TYPE_CHECKING:
    from globalcom2.hf.visuals import Visuals


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


def insides_of(run: Run, prompt: ShortPrompt, visuals: Visuals, places: list[Tensor], layers: int) -> list[Inside]:
    """One per image or video of a modality.

    Args:
        run: The call's.
        prompt: The short prompt, on the host.
        visuals: The call's images, or its videos.
        places: Per image, the places of its run that stay, in the order in which they are read.
        layers: Layers of the language model.
    """
    column = torch.full(visuals.placeholder.shape, -1)
    own = torch.where(prompt.real, torch.arange(prompt.index.shape[1]), -1)
    column = column.scatter_reduce(1, prompt.index, own, "amax")
    runs = column[visuals.placeholder].split(visuals.lengths)
    return [
        Inside(run, row, columns[columns >= 0], order, layers)
        for row, columns, order in zip(visuals.rows, runs, places, strict=True)
    ]


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
