"""Counters beside vLLM's own on `/metrics`."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def _counters() -> tuple[Any, Any]:
    from prometheus_client import Counter  # noqa: PLC0415

    return (
        Counter("globalcom2_visual_tokens_before", "Image placeholders that requests would have had uncompressed."),
        Counter("globalcom2_visual_tokens_after", "Image placeholders that requests had."),
    )


def count_tokens(before: int, after: int) -> None:
    """Count the images of one request."""
    counters = _counters()
    counters[0].inc(before)
    counters[1].inc(after)
