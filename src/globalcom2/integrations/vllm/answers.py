"""A header by which clients see how many visual tokens their images kept. Middleware of vLLM's server."""

from __future__ import annotations

from typing import Any

from globalcom2.integrations.vllm.metrics import TALLY, Tally

HEADER = b"x-globalcom2-visual-tokens"
"""Kept tokens and all tokens of a request's images: `66/664`."""


class Answers:
    """Adds `HEADER` to answers about images.

    An ASGI application around the server's own. A streamed answer begins before the engine knows of the request, so the
    first line of every answer waits here for its first bytes.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request. See the ASGI specification for the arguments."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        tally, held = Tally(), []
        token = TALLY.set(tally)

        async def send_with_header(message: Any) -> None:
            if message["type"] == "http.response.start":
                held.append(message)
                return
            while held:
                await send(_with_header(held.pop(), tally))
            await send(message)

        try:
            await self.app(scope, receive, send_with_header)
        finally:
            TALLY.reset(token)


def _with_header(start: dict[str, Any], tally: Tally) -> dict[str, Any]:
    if not tally.before:
        return start
    value = f"{tally.after}/{tally.before}".encode()
    return {**start, "headers": [*start.get("headers", ()), (HEADER, value)]}
