"""Looks at requests before the server does: it ignores fields that it does not know, and with them what they asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from globalcom2.errors import InputError
from globalcom2.integrations.vllm.names import check_names
from globalcom2.integrations.vllm.options import ASKED, check_request

SIGNS = (b"globalcom", b"retention", b"visual_tokens")
"""A body without any of these, in small letters, is not looked at further."""
HOME = dict.fromkeys(ASKED, "mm_processor_kwargs")


class RefuseWrongNames:
    """ASGI middleware for `vllm serve --middleware`: a request with a wrong name or value of ours gets a 400.

    It reads along while the server reads the body, so that a server with a key for its API does not read what strangers
    send.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on; see the class."""
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        parts: list[bytes] = []

        async def reading() -> Any:
            message = await receive()
            if message["type"] == "http.request":
                parts.append(message.get("body", b""))
                if not message.get("more_body", False):
                    _refuse(b"".join(parts))
                    parts.clear()
            return message

        await self.app(scope, reading, send)


def _refuse(body: bytes) -> None:
    from fastapi import HTTPException  # type: ignore[import-not-found]  # noqa: PLC0415

    try:
        check_body(body)
    except InputError as error:  # FastAPI lets this kind alone through, and the server has a handler for it
        raise HTTPException(400, str(error)) from error


def check_body(body: bytes) -> None:
    """Raise `InputError` for a JSON body in which something of ours is misspelt, misplaced or out of range."""
    small = body.lower()
    if not any(sign in small for sign in SIGNS):
        return
    try:
        request = json.loads(body)
    except ValueError:  # the server says what is wrong with it
        return
    if not isinstance(request, dict):
        return
    check_names("the request", request, (), HOME)
    if isinstance(request.get("extra_body"), dict):
        _check_wrapper(request["extra_body"])
    for part in _parts(request):
        check_names("a part of a message", part, (), HOME)
    given = request.get("mm_processor_kwargs")
    if isinstance(given, dict):
        check_request(given)


def _check_wrapper(extra: Mapping[str, Any]) -> None:
    """Raise `InputError` for something of ours in `extra_body`, which OpenAI's client unpacks and a server ignores."""
    inner = extra.get("mm_processor_kwargs")
    found = [*extra, *(inner if isinstance(inner, dict) else ())]
    check_names("extra_body, which only OpenAI's client unpacks,", found, (), HOME)


def _parts(request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Parts of messages, and what they have inside: pictures with their addresses."""
    messages = request.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict):
                yield part
                yield from (inner for inner in part.values() if isinstance(inner, dict))
