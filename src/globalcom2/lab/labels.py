"""Words and figures in results, tables and plots: what a run is called, and shares as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from globalcom2.core.methods import split_method
from globalcom2.core.presets import PRESET_METHOD, preset_settings, preset_within

FULL = "all tokens"
"""The method of the uncompressed run, in every result."""
FULL_BEFORE = "none"
"""Its method in results that `bench` of version 0.1.0 wrote. Readers of results take both words."""


def is_full(row: dict[str, Any]) -> bool:
    """Whether a result's row is of the uncompressed model, also in older files."""
    return row["method"] in (FULL, FULL_BEFORE) and not row.get("options")


def label(row: dict[str, Any]) -> str:
    """A row's method with its options, for tables and plots: "globalcom2, paper" or "uniform, layer=-1"."""
    if is_full(row):
        return FULL
    method, options = _method_of(row)
    described = options_label(method, options)
    return f"{method}, {described}" if described else method


def options_label(method: str, options: Mapping[str, Any]) -> str:
    """Options of a method in words, separated by commas. A preset that they hold is called by its name."""
    preset, rest = preset_within(options) if method == PRESET_METHOD else (None, options)
    return ", ".join([*([preset] if preset else []), *(f"{name}={value}" for name, value in rest.items())])


def _method_of(row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options, also of a row whose method is a text with options. The method may be one not installed here."""
    name, preset, options = split_method(str(row["method"]))
    told = preset_settings(preset, name) if preset else {}
    return name, {**told, **options, **row.get("options", {})}


def percent(share: float | None) -> str:
    """A share as text, such as "12.5%"; a dash for an unknown one."""
    return "-" if share is None else f"{share:.1%}"
