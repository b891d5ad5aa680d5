"""The rules for newlines of packed crops: which ones stay, and whether the budget pays for them."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from globalcom2.core.budget import Budget, keep_counts
from globalcom2.errors import InputError

NEWLINES = ("counted", "all", "none", "from_2")
"""Values of `newlines`, see `select`. "from_3" and so on are like "from_2"."""


def check_newlines(newlines: str) -> str:
    """Return a value of `newlines`. Raise `InputError` for what is none."""
    opens_at(newlines)
    return newlines


def opens_at(newlines: str) -> int:
    """Which of a line's kept tokens makes its newline stay and count: 1 for "counted", m for "from_m". 0 where none counts.

    Raises:
        InputError: No value of `newlines`.
    """
    found = None
    if isinstance(newlines, str):
        if newlines in ("all", "none"):
            return 0
        if newlines == "counted":
            return 1
        found = re.fullmatch(r"from_([1-9][0-9]{0,5})", newlines)
    if found is None or found[1] == "1":
        cure = 'Write "counted".' if found else 'With "from_m" a line keeps its newline from its m-th kept token on.'
        raise InputError(f"newlines must be one of {', '.join(NEWLINES)}, from_3, ..., got {newlines!r}. {cure}")
    return int(found[1])


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
        newlines: "counted", "from_2" and so on: `crops` of the result pays for tokens and newlines. "none": the same
            total, for tokens alone. "all": newlines are not part of it.
        thumbnail_weight: See `keep_counts`.
    """
    budget = keep_counts(retention_ratio, thumbnail, crops, 0 if newlines == "all" else lines, thumbnail_weight)
    if newlines != "none":
        return budget
    kept = min(budget.crops, crops)
    own = min(budget.total - kept, thumbnail)  # what would have been newlines
    return Budget(own + kept, own, kept)


def occupied_lines(crops: Tensor, lines: Tensor, line_count: int, opens: int = 1) -> Tensor:
    """Lines that keep at least `opens` tokens, bool (batch, line_count)."""
    batch = crops.shape[0]
    counts = torch.zeros(batch, line_count, dtype=torch.int64, device=crops.device)
    return counts.scatter_add_(1, lines.clamp(min=0).flatten().expand(batch, -1), crops.flatten(1).long()) >= opens


def uncounted_newlines(crops: Tensor, lines: Tensor, line_count: int, newlines: str, exact: bool) -> Tensor:
    """Newlines that stay where allocation has not decided it, bool (batch, line_count).

    Args:
        crops: Kept tokens, bool (batch, crops, tokens).
        lines: int (crops, tokens), the line of each token, -1 on padding.
        line_count: Number of lines.
        newlines: The rule.
        exact: Whether budgets are exact; the published code keeps all newlines.
    """
    opens = opens_at(newlines)
    if opens and line_count:
        return occupied_lines(crops, lines, line_count, opens)
    stay = newlines != "none" or not exact
    return torch.full((len(crops), line_count), stay, dtype=torch.bool, device=crops.device)
