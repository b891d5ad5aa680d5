"""Named settings of `globalcom2`: its defaults, the paper's choices, the published code's. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from globalcom2.errors import InputError, unknown_name

_PAPER = {"layer": -1, "allocation": "softmax", "alpha": 0.5}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "default": MappingProxyType({}),
        "paper": MappingProxyType({**_PAPER, "newlines": "counted"}),
        "published": MappingProxyType({**_PAPER, "exact": False, "thumbnail_order": "score"}),
    }
)
"""Arguments of `compress` and options of `globalcom2`, by name. "paper" has the paper's choices with exact budgets;
"published" also rounds as the published code does, and puts the thumbnail's best token first."""

OF_COMPRESS = ("layer", "thumbnail_order")
"""What presets set that `compress` alone can follow: `select` is given scores, and makes no prompt."""

PRESET_METHOD = "globalcom2"
"""The one method that presets are for."""


def preset_settings(preset: str, method: str = PRESET_METHOD) -> dict[str, Any]:
    """What a preset sets, for `compress(model, ratio, **settings)`.

    Raises:
        InputError: An unknown preset, or one with another method than `globalcom2`.
    """
    if not isinstance(preset, str) or preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    if method != PRESET_METHOD:
        raise InputError(
            f"preset must be left out with method {method!r}, got {preset!r}: presets are settings of {PRESET_METHOD!r}."
        )
    return dict(PRESETS[preset])


def preset_within(settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """The preset that some settings hold, the largest one, and the settings that it does not explain."""
    for name in sorted(PRESETS, key=lambda name: len(PRESETS[name]), reverse=True):
        preset = PRESETS[name]
        if preset and all(key in settings and settings[key] == value for key, value in preset.items()):
            return name, {key: value for key, value in settings.items() if key not in preset}
    return None, dict(settings)
