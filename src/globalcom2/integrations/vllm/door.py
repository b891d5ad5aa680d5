"""What requests may set of image processing: our keys where they may choose, and nothing else."""

from __future__ import annotations

import importlib
from typing import Any

from globalcom2.errors import InputError, unknown_name
from globalcom2.integrations.vllm.options import ASKED

READERS = ("vllm.renderers.online_renderer", "vllm.entrypoints.pooling.base.serving")
"""vLLM's modules that check a request's arguments."""
CHECK = "validate_request_mm_kwargs"


def guard(may_ask: bool) -> None:
    """Stand before vLLM's check of the arguments that requests to this process bring.

    vLLM lets through either nothing or, with --trust-request-mm-kwargs, whatever a client sends: sizes that change answers,
    and some that end the server.

    Args:
        may_ask: Whether requests may have our keys in their `mm_processor_kwargs`.
    """
    for name in READERS:
        module = importlib.import_module(name)
        stock = getattr(module, CHECK)
        setattr(module, CHECK, guarded(getattr(stock, "globalcom2_stock", stock), may_ask))


def guarded(stock: Any, may_ask: bool) -> Any:
    """vLLM's check with ours before it, see `guard`."""

    def check(
        *, mm_processor_kwargs: dict[str, Any] | None, media_io_kwargs: Any, trust_request_mm_kwargs: bool
    ) -> None:
        given = mm_processor_kwargs
        if not trust_request_mm_kwargs and given:
            ours = [name for name in given if name in ASKED]
            others = [name for name in given if name not in ASKED]
            if may_ask and others:
                raise unknown_name("a key of mm_processor_kwargs", others[0], ASKED)
            if ours and not may_ask:
                raise InputError(
                    f"mm_processor_kwargs must be without {ours[0]}, got it: this server lets no request choose. Start it "
                    "with `globalcom2 serve --per-request`."
                )
            given = None if may_ask else given
        stock(
            mm_processor_kwargs=given,
            media_io_kwargs=media_io_kwargs,
            trust_request_mm_kwargs=trust_request_mm_kwargs,
        )

    check.globalcom2_stock = stock  # type: ignore[attr-defined]
    return check
