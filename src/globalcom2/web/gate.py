"""Lets in only the requests that the page needs, and looks at what they carry before gradio does.

gradio has many more routes than the page uses: proxies, histories, monitors. What is not listed here is not there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

READ = re.compile(
    r"/|/(assets|static)/.+|/theme\.css|/favicon\.ico|/manifest\.json|/robots\.txt|/config/?"
    r"|/gradio_api/(startup-events|app_id|upload_progress|queue/data|heartbeat/\w+|theme\.css|file=.+)"
)
WRITTEN = re.compile(r"/gradio_api/(upload|queue/join|cancel|reset)/?")
FILE = "/gradio_api/file="
UPLOAD = "/gradio_api/upload"
RESULTS = "/gradio_api/queue/data"
FORM = 64 * 1024
"""Bytes of a form around its file, and of any other request's body."""
UPLOADS_KEPT = 32
"""How many of the largest pictures fit on the server at once."""
HEADERS = (
    # Nothing from outside is loaded, whatever the page's parts may ask for; gradio compiles templates, hence eval.
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"SAMEORIGIN"),
)


class Refused(Exception):
    """A request that goes no further: status and a text for who sent it."""

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


class Gate:
    """ASGI middleware around gradio's app."""

    def __init__(
        self,
        app: App,
        folder: str,
        upload_bytes: int,
        hosts: tuple[str, ...] = (),
        delivered: Callable[[str], object] | None = None,
    ):
        """Wrap an app.

        Args:
            app: What to guard.
            folder: Where uploads lie. No other file may be read or named.
            upload_bytes: Largest file of an upload.
            hosts: Names that a request may use for this server; empty lets all through. A page of another site that
                points its own name at this machine is kept out by it.
            delivered: Called with a visitor's session when their results are sent, or when they left before.
        """
        self.app = app
        self.folder = Path(folder).resolve()
        self.upload_bytes = upload_bytes
        self.hosts = hosts
        self.delivered = delivered

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def sending(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *HEADERS]
            await send(message)

        try:
            await self.app(scope, await self._checked(scope, receive), sending)
        except Refused as refused:
            if started:
                raise
            await _answer(sending, refused)
        finally:
            if self.delivered is not None and scope["path"] == RESULTS:
                for session in parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", ()):
                    self.delivered(session)

    async def _checked(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """The body of a request that may pass; raises `Refused` for any other."""
        path, method = str(scope["path"]), str(scope["method"])
        if self.hosts and _host(scope) not in self.hosts:
            raise Refused(403, "This server is asked for under a name that is not its own.")
        known = READ if method in ("GET", "HEAD") else WRITTEN if method == "POST" else None
        if known is None or not known.fullmatch(path) or b"deep_link" in scope["query_string"]:
            raise Refused(404, "Not found.")
        if path.startswith(FILE):
            self._own_file(path[len(FILE) :])
        if method != "POST":
            return receive
        if path.startswith(UPLOAD):
            self._check_room()
            return _limited(receive, self.upload_bytes + FORM)
        return await self._without_foreign_files(scope, receive)

    def _own_file(self, name: object) -> str:
        """A path within the folder of uploads; raises `Refused` for any other."""
        if isinstance(name, str) and "\0" not in name:
            path = Path(name)
            if path.is_absolute() and path.resolve().is_relative_to(self.folder) and path.is_file():
                return name
        raise Refused(403, "This file is not one that was uploaded here, or it was deleted.")

    def _check_room(self) -> None:
        kept = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())
        if kept > UPLOADS_KEPT * self.upload_bytes:
            raise Refused(503, "The server holds as many pictures as it may. Try again in a while.")

    async def _without_foreign_files(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """The JSON body, in which every file is one that was uploaded here and no address is left."""
        body, limited, more = b"", _limited(receive, FORM), True
        while more:
            message = await limited()
            body += message.get("body", b"")
            more = message["type"] == "http.request" and message.get("more_body", False)
        try:
            content = json.loads(body or b"{}")
        except (ValueError, RecursionError):
            raise Refused(400, "The request must be JSON.") from None
        try:
            body = json.dumps(self._cleaned(content)).encode()
        except RecursionError:
            raise Refused(400, "The request must be flat JSON.") from None
        length = (b"content-length", str(len(body)).encode())
        scope["headers"] = [pair for pair in scope["headers"] if pair[0].lower() != b"content-length"] + [length]
        return _replay(body, receive)

    def _cleaned(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._cleaned(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "path" in value or "url" in value:  # what gradio takes for a file, and may read or fetch
            path = self._own_file(value.get("path"))
            return {"path": path, "url": None, "orig_name": Path(path).name, "meta": {"_type": "gradio.FileData"}}
        return {key: self._cleaned(item) for key, item in value.items()}


def _host(scope: MutableMapping[str, Any]) -> str:
    """The name that a request has for this server, without its port."""
    given = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
    return str(re.sub(r":\d+$", "", given))


def _limited(receive: Receive, most: int) -> Receive:
    """A body that is cut off with `Refused` where it becomes longer than `most` bytes."""
    read = 0

    async def receiving() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise Refused(413, "This is larger than this server takes.")
        return message

    return receiving


def _replay(body: bytes, receive: Receive) -> Receive:
    """A body that was read already, then whatever comes."""
    first = True

    async def receiving() -> Message:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receiving


async def _answer(send: Send, refused: Refused) -> None:
    body = json.dumps({"detail": str(refused)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
