"""Fetches a picture from an address on the web, within limits. Only where the caller asks for it."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from typing import IO, Any
from urllib.parse import urlsplit

from globalcom2._version import __version__
from globalcom2.errors import DataError, InputError

SCHEMES = ("https", "http")
REDIRECTIONS = 5
SILENCE = 10.0
"""Seconds without a byte after which a server is given up."""
PATIENCE = 60.0
"""Seconds for the whole file."""
PART = 2**16


def is_address(text: str) -> bool:
    """Whether a text is an address on the web rather than a file's name."""
    return "://" in text


def fetch(address: str, most_bytes: int, patience: float = PATIENCE) -> bytes:
    """The file at an address.

    Args:
        address: Of http or https; redirections must keep to these, and https must not become http.
        most_bytes: A larger file is refused, and no more of it is read.
        patience: Seconds for the whole file.

    Raises:
        InputError: An address of another kind.
        DataError: The server cannot be reached, answers with an error, is too slow, or sends too much.
    """
    _check_address(address)
    request = urllib.request.Request(address, headers={"User-Agent": f"globalcom2/{__version__}", "Accept": "image/*"})
    deadline = time.monotonic() + patience
    try:
        with _opener().open(request, timeout=min(SILENCE, patience)) as answer:
            return _read(answer, address, most_bytes, deadline)
    except urllib.error.HTTPError as error:
        raise DataError(
            f"image must be at its address, got the answer {error.code} ({error.reason}) from {address!r}. Open it in a "
            "browser to see why."
        ) from None
    except TimeoutError:
        raise _too_slow(address) from None
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _too_slow(address) from None
        if isinstance(error, DataError | InputError):
            raise
        raise DataError(
            f"image must be at an address that can be reached, got {address!r}: {reason}. Check the address and the "
            "network, or download it yourself."
        ) from None


def _check_address(address: str, before: str | None = None) -> None:
    """Raise `InputError` for an address that is not fetched; `before` is the one that led here."""
    try:
        parts = urlsplit(address)
        known = parts.scheme in SCHEMES and bool(parts.hostname)
        known = known and (parts.port is None or parts.port > 0)
    except ValueError:
        known = False
    if not known:
        raise InputError(
            f"the address of an image must be http:// or https:// with a host, got {address!r}. Pass the file itself."
        )
    if before is not None and urlsplit(before).scheme == "https" and parts.scheme == "http":
        raise InputError(
            f"the address of an image must stay on https, got a redirection from {before!r} to {address!r}."
        )


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows few redirections, each to an address that is allowed."""

    max_redirections = REDIRECTIONS

    def redirect_request(self, req: Any, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str) -> Any:
        _check_address(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> urllib.request.OpenerDirector:
    """An opener that knows http and https alone, with the proxies of the environment."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirections(),
    ):
        opener.add_handler(handler)
    return opener


def _read(answer: Any, address: str, most_bytes: int, deadline: float) -> bytes:
    """The body of an answer, part by part."""
    told = answer.headers.get("Content-Length")
    if told is not None and told.isdigit() and int(told) > most_bytes:
        raise _too_large(address, most_bytes)
    parts, size = [], 0
    while part := answer.read1(PART):
        parts.append(part)
        size += len(part)
        if size > most_bytes:
            raise _too_large(address, most_bytes)
        if time.monotonic() > deadline:
            raise _too_slow(address)
    if told is not None and told.isdigit() and size < int(told):
        raise DataError(f"image must be complete, got {size:,} of {int(told):,} bytes from {address!r}. Try again.")
    return b"".join(parts)


def _too_large(address: str, most_bytes: int) -> DataError:
    return DataError(
        f"image must be a file of at most {most_bytes / 1e6:g} MB, got more from {address!r}. Raise --max-mb, or "
        "download it yourself."
    )


def _too_slow(address: str) -> DataError:
    return DataError(
        f"image must come within {PATIENCE:g} seconds, without a pause of {SILENCE:g}, got a slower answer from {address!r}. "
        "Download it yourself."
    )
