"""What `compress` was asked for, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Checked arguments of `compress`."""

    retention_ratio: float
    method: str
    exact: bool
    score: str | None
    layer: int | None
    newlines: str | None
    thumbnail_weight: float
    positions: str
    thumbnail_order: str
    logits: str
    options: dict[str, Any]
