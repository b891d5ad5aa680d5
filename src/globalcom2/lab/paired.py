"""Every run against the default method at the same ratio, on the same questions: who is ahead, level or behind."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from globalcom2.core.presets import PRESET_METHOD
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.labels import is_full

AHEAD, LEVEL, BEHIND, DEFAULT = "ahead", "level", "behind", "default"

MORE = 1.05
"""A row that reads this many times the default's tokens has another budget, and is not compared."""


def is_default(row: dict[str, Any]) -> bool:
    """Whether a row is of the default method with nothing changed."""
    return row["method"] == PRESET_METHOD and not row.get("options")


def with_differences(rows: list[dict[str, Any]], owners: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Rows with their paired difference to the default method at the same ratio.

    Args:
        rows: Rows with `right`, one 0 or 1 per question.
        owners: Which image each question is about, int (questions,), counted from 0.

    Returns:
        The rows with two more keys: `difference`, the accuracy minus the default's, and `difference_interval`, its 95 %
        interval over images, drawn in pairs. Both are None for all tokens, for the default itself, where it was not tried,
        and for a row that reads more tokens than it, by more than a twentieth and half a token.
    """
    bootstrap = Bootstrap(owners)
    bases = {row["retention_ratio"]: row for row in rows if is_default(row)}
    found = []
    for row in rows:
        base = bases.get(row["retention_ratio"])
        apart = base is None or is_full(row) or is_default(row)
        if base is None or apart or row["visual_tokens"] > MORE * base["visual_tokens"] + 0.5:
            found.append({**row, "difference": None, "difference_interval": None})
            continue
        right, of_default = _right(row), _right(base)
        drawn = bootstrap.accuracies(right) - bootstrap.accuracies(of_default)
        more = {"difference": float(right.mean() - of_default.mean()), "difference_interval": interval(drawn)}
        found.append({**row, **more})
    return found


def standing(row: dict[str, Any]) -> str:
    """How a row does against the default: ahead or behind where the interval has one sign alone, else level.

    Empty for all tokens and where nothing was compared.
    """
    if is_default(row):
        return DEFAULT
    if row.get("difference_interval") is None:
        return ""
    low, high = row["difference_interval"]
    return AHEAD if low > 0 else BEHIND if high < 0 else LEVEL


def _right(row: dict[str, Any]) -> NDArray[np.bool_]:
    return np.array([digit == "1" for digit in row["right"]])
