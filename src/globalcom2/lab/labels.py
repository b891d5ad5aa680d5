"""Words and figures in results, tables and plots: what a run is called, and shares as text."""

from __future__ import annotations

from typing import Any

FULL = "all tokens"
"""The method of the uncompressed run, in every result."""
FULL_BEFORE = "none"
"""Its method in results that `bench` of version 0.1.0 wrote. Readers of results take both words."""


def is_full(row: dict[str, Any]) -> bool:
    """Whether a result's row is of the uncompressed model, also in older files."""
    return row["method"] in (FULL, FULL_BEFORE)


def label(row: dict[str, Any]) -> str:
    """A row's method with its options, for tables and plots."""
    options = ", ".join(f"{name}={value}" for name, value in row.get("options", {}).items())
    method = FULL if is_full(row) else str(row["method"])
    return f"{method}, {options}" if options else method


def percent(share: float | None) -> str:
    """A share as text, such as "12.5%"; a dash for an unknown one."""
    return "-" if share is None else f"{share:.1%}"
