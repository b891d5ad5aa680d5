"""Pictures from addresses, fetched from a server on this machine: within limits, and from the web alone."""

import contextlib
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from globalcom2 import DataError, InputError
from globalcom2.lab import downloads
from globalcom2.lab.downloads import fetch, is_address

BODY = b"picture" * 1000


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append((self.path, self.headers["User-Agent"]))
        name = self.path.strip("/")
        if name.startswith("to="):
            self.send_response(302)
            self.send_header("Location", name.removeprefix("to="))
            self.end_headers()
            return
        self.send_response(404 if name == "missing" else 200)
        if name in ("picture", "short"):
            self.send_header("Content-Length", str(len(BODY) + (name == "short")))
        if name == "huge":
            self.send_header("Content-Length", str(10**12))
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side hangs up on a file that it does not want
            for part in range(10 if name == "slow" else 1):
                time.sleep(0.1 * (name == "slow"))
                self.wfile.write(BODY if part == 0 else b"x")
                self.wfile.flush()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = []
    made.address = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.mark.parametrize("name", ["picture", "unannounced"])
def test_a_file_within_its_limit(server, name):
    assert fetch(f"{server.address}/{name}", len(BODY)) == BODY
    with pytest.raises(DataError, match=r"at most 0.006999 MB, got more .*--max-mb"):
        fetch(f"{server.address}/{name}", len(BODY) - 1)
    assert server.asked[0][1].startswith("globalcom2/")


def test_an_announced_size_is_enough_to_refuse(server):
    with pytest.raises(DataError, match=r"at most 0\.1 MB"):
        fetch(f"{server.address}/huge", 100_000)


@pytest.mark.parametrize(
    "address",
    ["file:///etc/passwd", "ftp://example.com/a.png", "data://text/plain,a", "http://", "https:///a.png", "http://a:b:c/",
     "http://[::1/a.png", "gopher://x/", "HTTPS//x"],
)  # fmt: skip
def test_other_addresses_are_refused(address):
    with pytest.raises(InputError, match="must be http:// or https:// with a host") as raised:
        fetch(address, 100)
    assert not isinstance(raised.value, DataError)


def test_redirections_are_checked_each(server):
    assert fetch(f"{server.address}/to=/picture", len(BODY)) == BODY
    with pytest.raises(DataError, match="'file:///etc/passwd' is not allowed"):  # urllib says so before us
        fetch(f"{server.address}/to=file:///etc/passwd", 100)
    with pytest.raises(
        InputError, match=r"must be http:// or https://.*got 'ftp://127.0.0.1/a'"
    ):  # urllib would go there
        fetch(f"{server.address}/to=ftp://127.0.0.1/a", 100)
    with pytest.raises(DataError, match="302"):
        fetch(f"{server.address}/to=" + "/to=" * downloads.REDIRECTIONS + "/picture", len(BODY))
    with pytest.raises(InputError, match="must stay on https"):
        downloads._check_address("http://example.com/a.png", "https://example.com/b.png")


def test_what_servers_do_wrong(server, monkeypatch):
    with pytest.raises(DataError, match=r"got the answer 404 \(Not Found\) from"):
        fetch(f"{server.address}/missing", 100)
    with pytest.raises(DataError, match="must be complete, got 7,000 of 7,001 bytes"):
        fetch(f"{server.address}/short", 10_000)
    with pytest.raises(DataError, match="must come within"):
        fetch(f"{server.address}/slow", 10_000, patience=0.3)
    monkeypatch.setattr(downloads, "SILENCE", 0.05)
    with pytest.raises(DataError, match="must come within"):
        fetch(f"{server.address}/slow", 10_000)


def test_nobody_there():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as free:
        port = free.server_port
    with pytest.raises(DataError, match="must be at an address that can be reached"):
        fetch(f"http://127.0.0.1:{port}/a.png", 100)


def test_files_are_no_addresses():
    assert is_address("https://example.com/a.png")
    assert not is_address("a.png")
    assert not is_address("C:\\a.png")
