"""The rules for newlines of packed crops: which ones stay, and whether the budget pays for them."""

from __future__ import annotations

import torch
from torch import Tensor

from globalcom2.core.budget import Budget, keep_counts

NEWLINES = ("counted", "all", "none")
"""Values of `newlines`, see `select`."""


def image_budget(
    retention_ratio: float,
    thumbnail: int,
    crops: int,
    lines: int,
    newlines: str = "counted",
    thumbnail_weight: float = 1.0,
) -> Budget:
    """The budget of one image under a rule for newlines.

    Args:
        retention_ratio: Fraction to keep, in (0, 1].
        thumbnail: Tokens of the thumbnail.
        crops: Valid tokens of all crops together.
        lines: Lines of the stitched crops that end with a newline.
        newlines: "counted": `crops` of the result pays for tokens and newlines. "none": the same total, for tokens
            alone. "all": newlines are not part of it.
        thumbnail_weight: See `keep_counts`.
    """
    budget = keep_counts(retention_ratio, thumbnail, crops, 0 if newlines == "all" else lines, thumbnail_weight)
    if newlines != "none":
        return budget
    kept = min(budget.crops, crops)
    return Budget(budget.thumbnail + kept, budget.thumbnail, kept)


def occupied_lines(crops: Tensor, lines: Tensor, line_count: int) -> Tensor:
    """Lines that keep a token, bool (batch, line_count)."""
    batch = crops.shape[0]
    counts = torch.zeros(batch, line_count, dtype=torch.int64, device=crops.device)
    return counts.scatter_add_(1, lines.clamp(min=0).flatten().expand(batch, -1), crops.flatten(1).long()) > 0


def uncounted_newlines(crops: Tensor, lines: Tensor, line_count: int, newlines: str, exact: bool) -> Tensor:
    """Newlines that stay where allocation has not decided it, bool (batch, line_count).

    Args:
        crops: Kept tokens, bool (batch, crops, tokens).
        lines: int (crops, tokens), the line of each token, -1 on padding.
        line_count: Number of lines.
        newlines: The rule.
        exact: Whether budgets are exact; the published code keeps all newlines.
    """
    if newlines == "counted" and line_count:
        return occupied_lines(crops, lines, line_count)
    stay = newlines != "none" or not exact
    return torch.full((len(crops), line_count), stay, dtype=torch.bool, device=crops.device)
