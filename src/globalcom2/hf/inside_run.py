"""One call whose visual tokens leave inside the language model: who is left after each drop. Pure tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from globalcom2.hf.inside import Drops
from globalcom2.hf.logits import Places


@dataclass(frozen=True, eq=False)
class Stage:
    """The tokens that the layers between two drops read, in the order of the prompt, padded on the left."""

    index: Tensor
    """int (batch, left): the place of each in the prompt that the language model was given."""
    chosen: Tensor
    """int (batch, left): its place among those that were left before."""
    real: Tensor
    """bool (batch, left): False on padding."""
    placed: Tensor
    """bool (batch, left): False on padding that the prompt does not have."""
    visual: Tensor
    """bool (batch, left)."""
    padded: bool
    """Whether any row has padding."""


class Run:
    """What leaves in one call.

    Args:
        drops: When and how many.
        visual: bool (batch, places), on the host: where the prompts that the language model is given have visual tokens.
        real: bool (batch, places), on the host: False on padding.
    """

    def __init__(self, drops: Drops, visual: Tensor, real: Tensor):
        self.drops = drops
        self.batch, self.length = visual.shape
        column = torch.arange(self.length)
        last = torch.where(real, column, -1).amax(1)
        self.behind: list[int] = (self.length - 1 - last).clamp(max=self.length - 1).tolist()
        """Per row, masked places after the prompt's last token; they stay."""
        self.rest: list[int] = (real & ~visual).sum(1).tolist()
        """Per row, tokens that are not visual."""
        self.left: list[list[int]] = [drops.left(count) for count in visual.sum(1).tolist()]
        """Per row, visual tokens left after each drop."""
        places = column.expand(self.batch, -1)
        whole = torch.ones_like(real)
        self.start = Stage(places, places, real, whole, visual, bool((~real).any()))
        self.stages: list[Stage] = []
        """One per drop, once it has happened; on the language model's device."""

    def before(self, number: int) -> Stage:
        """The stage before drop `number`, on the host for the first one."""
        return self.stages[number - 1] if number else self.start

    @property
    def shortest(self) -> int:
        """Length of the prompt after all drops that have happened."""
        return self.before(len(self.stages)).index.shape[1]

    def scores(self, query: Tensor, key: Tensor, scaling: float | None) -> Tensor:
        """Attention that the prompt's last token pays, softmaxed, mean over heads: float32 (batch, left).

        Args:
            query: (rows, heads, left, dim) as the kernel sees it; rows is a multiple of the batch, the same prompt in
                neighbours.
            key: (rows, key heads, left, dim).
            scaling: The kernel's factor; None for dim ** -0.5.
        """
        stage = self.before(len(self.stages))
        times = len(query) // self.batch
        left = stage.index.shape[1]
        row = torch.arange(self.batch, device=query.device)
        end = left - 1 - torch.tensor(self.behind).to(query.device, non_blocking=True)
        asking = query[::times][row, :, end].float()  # (batch, heads, dim)
        keys = key[::times].float()
        grouped = asking.unflatten(1, (keys.shape[1], -1))  # the query heads of each key head
        factor = query.shape[-1] ** -0.5 if scaling is None else scaling
        logits = (grouped @ keys.transpose(2, 3)).flatten(1, 2) * factor
        hidden = ~stage.real.to(query.device, non_blocking=True)
        attention: Tensor = logits.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
        return attention.mean(1)

    def drop(self, scores: Tensor) -> None:
        """Let the visual tokens with the lowest scores (batch, left) leave; of equal ones, the later."""
        number = len(self.stages)
        before = self.before(number)
        device = scores.device
        visual, real, index = (x.to(device, non_blocking=True) for x in (before.visual, before.real, before.index))
        stay = torch.tensor([left[number] for left in self.left]).to(device, non_blocking=True)
        best = scores.masked_fill(~visual, float("-inf")).argsort(dim=1, descending=True, stable=True)
        rank = best.argsort(1)
        column = torch.arange(index.shape[1], device=device)
        behind = torch.tensor(self.behind).to(device, non_blocking=True)
        trailing = column >= index.shape[1] - behind[:, None]
        stays = (real & (~visual | (rank < stay[:, None]))) | trailing
        lengths = [r + own[number] + b for r, own, b in zip(self.rest, self.left, self.behind, strict=True)]
        length = max(lengths)  # known without asking the device
        order = stays.logical_not().to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
        shift = torch.arange(length, device=device) - (
            length - torch.tensor(lengths).to(device, non_blocking=True)[:, None]
        )
        chosen = order.gather(1, shift.clamp(min=0))
        placed = shift >= 0
        real = placed & real.gather(1, chosen)
        padded = any(own != length or behind for own, behind in zip(lengths, self.behind, strict=True))
        self.stages.append(
            Stage(index.gather(1, chosen), chosen, real, placed, placed & visual.gather(1, chosen), padded)
        )

    def visual_by_layer(self, layers: int) -> list[int]:
        """Visual tokens that each of `layers` layers reads, all rows together."""
        counts = [int(self.start.visual.sum()), *(sum(own) for own in zip(*self.left, strict=True))]
        return [counts[self.drops.done(layer)] for layer in range(layers)]

    def places_of_logits(self, computed: int, last: int) -> Places:
        """How logits of tokens that are left go back to places of the prompt that the language model was given.

        Args:
            computed: Of how many last tokens there are logits.
            last: How many last places are wanted, 0 for all.
        """
        stage = self.stages[-1]
        left = stage.index.shape[1]
        own = torch.where(stage.placed, torch.arange(left, device=stage.index.device), -1)
        column = torch.full((self.batch, self.length), -1, device=own.device)
        column = column.scatter_reduce(1, stage.index, own, "amax")
        predicted = column[:, 1:] - 1
        column = column.cummax(1).values[:, -last if last else 0 :]
        return Places(torch.where(column < 0, -1, column - (left - computed)), computed, predicted, left)


def extended(index: Tensor, start: int, more: int, times: int) -> Tensor:
    """Places (rows, left + more): those of `index` (batch, left), then `more` from `start` on; each row `times` times."""
    index = index.repeat_interleave(times, 0) if times > 1 else index
    if not more:
        return index
    return torch.cat([index, torch.arange(start, start + more, device=index.device).expand(len(index), -1)], 1)


def taken(tensors: Sequence[Tensor], index: Tensor) -> tuple[Tensor, ...]:
    """Of tensors (rows or 1, places, dim), the places `index` (rows, left)."""
    rows = torch.arange(len(index), device=index.device)[:, None]
    return tuple(tensor.expand(len(index), -1, -1)[rows, index] for tensor in tensors)
