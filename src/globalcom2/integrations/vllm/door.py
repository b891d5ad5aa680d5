"""What requests may set of image processing where they may choose a ratio: our keys, and nothing else."""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from globalcom2.errors import unknown_name
from globalcom2.integrations.vllm.options import ASKED

READERS = ("vllm.renderers.online_renderer", "vllm.entrypoints.pooling.base.serving")
"""vLLM's modules that check a request's arguments."""
CHECK = "validate_request_mm_kwargs"


@cache
def let_ours_through() -> None:
    """Let `mm_processor_kwargs` of requests to this process hold our keys.

    vLLM lets through either nothing or, with --trust-request-mm-kwargs, whatever a client sends: sizes that change answers,
    and some that end the server. This stands before its check, which judges all other requests as before.
    """
    for name in READERS:
        module = importlib.import_module(name)
        setattr(module, CHECK, _ours_or(getattr(module, CHECK)))


def _ours_or(stock: Any) -> Any:
    def check(
        *, mm_processor_kwargs: dict[str, Any] | None, media_io_kwargs: Any, trust_request_mm_kwargs: bool
    ) -> None:
        given = mm_processor_kwargs
        if not trust_request_mm_kwargs:
            for name in given or ():
                if name not in ASKED:
                    raise unknown_name("a key of mm_processor_kwargs", name, ASKED)
            given = None
        stock(
            mm_processor_kwargs=given,
            media_io_kwargs=media_io_kwargs,
            trust_request_mm_kwargs=trust_request_mm_kwargs,
        )

    return check
