"""The gate lets in what the page needs and nothing else; no server, no gradio."""

import asyncio
import json

import pytest

from globalcom2.web.gate import FORM, UPLOADS_KEPT, Gate

LIMIT = 1000


def ask(gate, method, path, body=b"", query=b"", host=b"127.0.0.1:7860", pieces=1):
    """Status and body of one request; what the app behind the gate read is its answer."""
    sent = []
    size = max(1, -(-len(body) // pieces))
    parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": [(b"host", host)]}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:]), dict(sent[0]["headers"])


async def echo(scope, receive, send):
    """An app that answers with the body it was given."""
    body, more = b"", scope["method"] == "POST"
    while more:
        message = await receive()
        body += message["body"]
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def gate(tmp_path):
    (tmp_path / "uploads").mkdir()
    (tmp_path / "uploads" / "a.png").write_bytes(b"a")
    (tmp_path / "secret.txt").write_text("secret")
    return Gate(echo, str(tmp_path / "uploads"), LIMIT, ("127.0.0.1", "localhost"))


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/assets/index.js",
        "/static/a.css",
        "/theme.css",
        "/gradio_api/queue/data",
        "/gradio_api/heartbeat/abc",
    ],
)
def test_what_the_page_reads_passes(gate, path):
    assert ask(gate, "GET", path)[0] == 200


@pytest.mark.parametrize(
    "path",
    ["/docs", "/openapi.json", "/monitoring", "/gradio_api/info", "/gradio_api/openapi.json", "/gradio_api/runs", "/logout",
     "/gradio_api/run-history/records", "/gradio_api/proxy=http://169.254.169.254/", "/gradio_api/deep_link", "/login",
     "/gradio_api/stream/a/b/c/playlist-file", "/gradio_api/vibe-code", "/custom_component/a", "/gradio_api/file/etc/passwd"],
)  # fmt: skip
def test_all_else_is_not_there(gate, path):
    assert ask(gate, "GET", path)[0] == 404
    assert ask(gate, "POST", path)[0] == 404


@pytest.mark.parametrize(
    "path",
    ["/gradio_api/run/ask", "/gradio_api/api/ask", "/gradio_api/call/ask", "/gradio_api/call/v2/ask", "/gradio_api/component_server",
     "/gradio_api/process_recording", "/gradio_api/run-history/connect", "/gradio_api/vibe-edit", "/"],
)  # fmt: skip
def test_nothing_is_called_past_the_queue(gate, path):
    assert ask(gate, "POST", path, b"{}")[0] == 404


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_other_methods_are_not_there(gate, method):
    assert ask(gate, method, "/")[0] == 404


def test_deep_links_are_not_there(gate):
    assert ask(gate, "GET", "/", query=b"deep_link=../../x")[0] == 404


def test_files_of_the_folder_alone(gate, tmp_path):
    folder = tmp_path / "uploads"
    (folder / "out").symlink_to(tmp_path / "secret.txt")
    assert ask(gate, "GET", f"/gradio_api/file={folder}/a.png")[0] == 200
    for name in ("/etc/passwd", f"{tmp_path}/secret.txt", f"{folder}/../secret.txt", f"{folder}/out", "a.png", str(folder),
                 "http://127.0.0.1:1/a.png", "file:///etc/passwd", f"{folder}/none.png", f"{folder}/a.png\0.txt"):  # fmt: skip
        assert ask(gate, "GET", f"/gradio_api/file={name}")[0] == 403, name


def test_a_request_names_its_own_files_alone(gate, tmp_path):
    own = {
        "path": f"{tmp_path}/uploads/a.png",
        "url": "http://elsewhere/",
        "orig_name": "../b",
        "meta": {"_type": "gradio.FileData"},
    }
    status, body, _ = ask(
        gate,
        "POST",
        "/gradio_api/queue/join",
        json.dumps({"data": [own, "text", 0.1], "fn_index": 2}).encode(),
        pieces=3,
    )
    assert status == 200
    passed = json.loads(body)
    assert passed["data"][0] == {**own, "url": None, "orig_name": "a.png"}
    assert passed["data"][1:] == ["text", 0.1]
    for foreign in (
        {"path": "/etc/passwd"},
        {"path": "http://127.0.0.1:1/a.png"},
        {"url": "data:image/png;base64,AAAA"},
        {"path": None, "url": "http://127.0.0.1:1/a.png"},
        {"path": f"{tmp_path}/uploads/../secret.txt"},
        {"path": ["/etc/passwd"]},
    ):
        body = json.dumps({"data": [{"deep": [foreign]}]}).encode()
        assert ask(gate, "POST", "/gradio_api/queue/join", body)[0] == 403, foreign


def test_bodies_have_a_limit(gate):
    assert ask(gate, "POST", "/gradio_api/upload", b"x" * (LIMIT + FORM), pieces=50)[0] == 200
    assert ask(gate, "POST", "/gradio_api/upload", b"x" * (LIMIT + FORM + 1), pieces=50)[0] == 413
    assert ask(gate, "POST", "/gradio_api/queue/join", b'{"a": "' + b"x" * FORM + b'"}', pieces=5)[0] == 413


def test_bodies_that_are_no_json(gate):
    for body in (b"{", b"\xff\xfe", b"[" * 50_000):
        assert ask(gate, "POST", "/gradio_api/queue/join", body)[0] == 400


def test_the_folder_has_a_limit(gate, tmp_path):
    (tmp_path / "uploads" / "large").write_bytes(b"x" * (UPLOADS_KEPT * LIMIT + 1))
    assert ask(gate, "POST", "/gradio_api/upload", b"x")[0] == 503


def test_other_names_for_this_machine_are_refused(gate, tmp_path):
    assert ask(gate, "GET", "/", host=b"localhost")[0] == 200
    assert ask(gate, "GET", "/", host=b"evil.example")[0] == 403
    open_gate = Gate(echo, str(tmp_path), LIMIT)
    assert ask(open_gate, "GET", "/", host=b"any.example")[0] == 200


def test_answers_forbid_the_outside(gate):
    for path in ("/", "/nothing"):
        headers = ask(gate, "GET", path)[2]
        assert b"default-src 'self'" in headers[b"content-security-policy"]
        assert headers[b"x-content-type-options"] == b"nosniff"


def test_delivered_results_are_told(tmp_path):
    told = []
    gate = Gate(echo, str(tmp_path), LIMIT, delivered=told.append)
    ask(gate, "GET", "/gradio_api/queue/data", query=b"session_hash=abc")
    ask(gate, "GET", "/gradio_api/heartbeat/abc", query=b"session_hash=x")
    assert told == ["abc"]
