"""Counters beside vLLM's own on `/metrics`, of requests that an engine has taken on."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

from vllm.multimodal.inputs import PlaceholderRange
from vllm.v1.engine.output_processor import OutputProcessor


@dataclass(frozen=True, eq=False)
class CountedRange(PlaceholderRange):
    """Where an image stands in a prompt, with its visual tokens before and after compression."""

    before: int = 0
    after: int = 0


@dataclass
class Tally:
    """Visual tokens of one HTTP request's images."""

    before: int = 0
    after: int = 0


TALLY: ContextVar[Tally | None] = ContextVar("globalcom2_tally", default=None)
"""Of the HTTP request that is being answered, see `answers`."""


@cache
def _counters() -> tuple[Any, Any]:
    from prometheus_client import Counter  # noqa: PLC0415

    return (
        Counter("globalcom2_visual_tokens_before", "Image placeholders that requests would have had uncompressed."),
        Counter("globalcom2_visual_tokens_after", "Image placeholders that requests had."),
    )


def count(request: Any) -> None:
    """Count the images of a request that an engine has taken on."""
    places = [feature.mm_position for feature in request.mm_features or ()]
    images = [place for place in places if isinstance(place, CountedRange)]
    if not images:
        return
    before, after = sum(place.before for place in images), sum(place.after for place in images)
    counters, tally = _counters(), TALLY.get()
    counters[0].inc(before)
    counters[1].inc(after)
    if tally is not None:
        tally.before += before
        tally.after += after


@cache
def watch_requests() -> None:
    """Count every request that an engine of this process takes on, once per prompt.

    vLLM processes images before it knows whether it takes a request, and for `/tokenize` alone. It has no hook that is called
    afterwards and knows the images, so this wraps the method to which all ways lead.
    """
    _counters()
    stock = OutputProcessor.add_request

    @wraps(stock)
    def counting(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        told = stock(self, request, *args, **kwargs)
        if (args[2] if len(args) > 2 else kwargs.get("request_index", 0)) == 0:
            count(request)
        return told

    OutputProcessor.add_request = counting
