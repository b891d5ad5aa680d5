"""The running page, asked by a program that means it ill."""

import http.server
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from contextlib import contextmanager

import httpx
import pytest
from visitors import QUEUE, UPLOAD_MB

import globalcom2
from globalcom2 import InputError
from globalcom2.web.examples import EXAMPLES
from globalcom2.web.uploads import Limits


@pytest.fixture(scope="module")
def client(server):
    address, *_ = server
    with httpx.Client(base_url=address, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def functions(client):
    """Number of the function that answers, and of the one that checks an upload."""
    config = client.get("/config").json()
    by_inputs = {len(one["inputs"]): one["id"] for one in config["dependencies"] if one["backend_fn"]}
    return by_inputs[6], by_inputs[1]


def upload(client, content, name="a.png"):
    return client.post("/gradio_api/upload", files={"files": (name, content)})


def join(client, function, data, session=None):
    body = {"data": data, "fn_index": function, "session_hash": session or uuid.uuid4().hex[:10]}
    return client.post("/gradio_api/queue/join", json=body)


def outcome(client, function, data):
    """What a visitor is told at the end: (success, output)."""
    session = uuid.uuid4().hex[:10]
    assert join(client, function, data, session).status_code == 200
    return awaited(client, session)


def awaited(client, session):
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as events:
        for line in events.iter_lines():
            message = json.loads(line[6:]) if line.startswith("data: ") else {}
            if message.get("msg") == "process_completed":
                return message["success"], message["output"]
    raise AssertionError("the question was never answered")


def asked(file, question="what is the total?", ratio=0.1, first="globalcom2", second="", model="mini"):
    return [file, question, ratio, first, second, model]


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


@pytest.fixture(scope="module")
def mine(client):
    return file_data(upload(client, EXAMPLES[1].path.read_bytes(), "bill.jpg").json()[0])


def test_an_answer(client, functions, mine):
    success, output = outcome(client, functions[0], asked(mine))
    assert success
    assert "The right answer is" in output["data"][0]
    assert "<iframe" in output["data"][1]


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", globalcom2.__file__, "../../etc/passwd", "/proc/self/environ", "%2e%2e/%2e%2e/etc/passwd",
     "http://127.0.0.1:1/x.png", "file:///etc/passwd", "/gradio_api/file=/etc/passwd"],
)  # fmt: skip
def test_no_file_but_uploads(client, server, name):
    assert client.get(f"/gradio_api/file={name}").status_code in (403, 404)
    assert client.get(f"/gradio_api/file={server[1]}/../..{name}").status_code in (403, 404)


def test_uploads_are_read_back_and_lie_in_a_private_folder(client, server, mine):
    _, folder, _ = server
    assert client.get(f"/gradio_api/file={mine['path']}").content == EXAMPLES[1].path.read_bytes()
    assert mine["path"].startswith(str(folder))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert client.get(f"/gradio_api/file={folder}").status_code == 403


@contextmanager
def listener():
    """A server that must not be asked."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x.png", seen
    server.shutdown()
    server.server_close()


def test_crafted_files_are_neither_read_nor_fetched(client, functions, mine):
    with listener() as (address, seen):
        for foreign in (
            file_data("/etc/passwd"),
            file_data(globalcom2.__file__, url=address),
            file_data(address),
            file_data(None, url=address),
            {"url": address, "meta": {"_type": "gradio.FileData"}},
            {"url": "data:image/png;base64,AAAA", "path": None},
            {"path": mine["path"] + "/../../../etc/passwd", "meta": {"_type": "gradio.FileData"}},
            {"__type__": "update", "value": file_data("/etc/passwd")},
        ):
            for function, data in ((functions[0], asked(foreign)), (functions[1], [foreign])):
                assert join(client, function, data).status_code == 403, foreign
        success, output = outcome(client, functions[0], asked({**mine, "url": address}))
        assert success, output
        assert not seen


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (asked(None), "A picture must be given"),
        (asked("MINE", question=""), "A question must be given"),
        (asked("MINE", question=["x"]), "A question must be given"),
        (asked("MINE", ratio=7), "retention_ratio must be in"),
        (asked("MINE", ratio="a"), "retention_ratio must be a number"),
        (asked("MINE", first="globalcom2:alpha=0.3"), "Method must be one of"),
        (asked("MINE", first={"a": 1}), "Method must be one of"),
        (asked("MINE", model="owner/name"), "Model must be &#x27;mini&#x27; here"),
        (asked("MINE", question="<image>"), "Question must be text without &#x27;&lt;image&gt;&#x27;"),
    ],
)
def test_wrong_questions_get_a_message(client, functions, mine, data, message):
    success, output = outcome(client, functions[0], [mine if item == "MINE" else item for item in data])
    assert not success
    assert message in output["error"]
    assert "Traceback" not in json.dumps(output)


def test_our_own_faults_tell_nothing(client, functions, mine, answering, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("secret /srv/path")

    monkeypatch.setattr(answering, "ask", broken)
    success, output = outcome(client, functions[0], asked(mine))
    assert not success
    assert "Something failed on the server" in output["error"]
    assert "secret" not in json.dumps(output)


def test_what_is_no_picture_is_told_and_cleared(client, functions):
    path = upload(client, b"no picture", "x.png").json()[0]
    success, output = outcome(client, functions[1], [file_data(path)])
    assert success
    assert output["data"] == [None]
    success, output = outcome(client, functions[0], asked(file_data(path)))
    assert not success
    assert "which is none" in output["error"]


def test_larger_uploads_are_refused(client, server):
    before = sum(1 for _ in server[1].rglob("*"))
    for files in ([("files", ("a.png", bytes(UPLOAD_MB * 1024 * 1024 + 1)))],
                  [("files", (f"{n}.png", bytes(UPLOAD_MB * 1024 * 1024))) for n in range(3)]):  # fmt: skip
        assert client.post("/gradio_api/upload", files=files).status_code == 413
    assert sum(1 for _ in server[1].rglob("*")) <= before + 2
    assert upload(client, bytes(UPLOAD_MB * 1024 * 1024)).status_code == 200


def test_names_of_uploads_lead_nowhere(client, server):
    for name in ("../../../escaped.png", "/etc/escaped.png", "..\\escaped.png", "a" * 500 + ".png", "\u202egnp.exe"):
        (path,) = upload(client, b"x", name).json()
        assert path.startswith(str(server[1])), name


def test_a_picture_that_is_no_file_tells_nothing(client, functions):
    for odd in ("/etc/passwd", ["/etc/passwd"], 7):
        success, output = outcome(client, functions[0], asked(odd))
        assert not success
        assert output["error"] is None


def test_a_full_queue_refuses(client, functions, mine, answering, monkeypatch):
    begun, free = threading.Event(), threading.Event()

    def busy(*args):
        begun.set()
        free.wait(60)
        raise InputError("Done")

    monkeypatch.setattr(answering, "ask", busy)
    sessions = [uuid.uuid4().hex[:10] for _ in range(QUEUE + 3)]
    first = join(client, functions[0], asked(mine), sessions[0])
    assert begun.wait(60)  # it has left the queue
    others = [join(client, functions[0], asked(mine), session) for session in sessions[1:]]
    free.set()
    assert [answer.status_code for answer in (first, *others)] == [200] * (QUEUE + 1) + [503] * 2
    assert "Queue is full" in others[-1].text
    for session in sessions[: QUEUE + 1]:
        assert "Done" in awaited(client, session)[1]["error"]


@pytest.mark.parametrize(
    "path", ["/docs", "/openapi.json", "/monitoring", "/gradio_api/info", "/gradio_api/runs", "/gradio_api/mcp/"]
)
def test_other_routes_of_gradio_are_closed(client, path):
    assert client.get(path).status_code == 404


def test_no_endpoint_for_programs(client):
    config = client.get("/config").json()
    assert {one["api_visibility"] for one in config["dependencies"]} == {"private"}
    assert client.post("/gradio_api/call/ask", json={"data": []}).status_code == 404


def test_a_page_of_another_site_is_kept_out(client):
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    answer = client.get("/config", headers={"origin": "https://evil.example"})
    assert answer.headers.get("access-control-allow-origin") != "https://evil.example"


def test_nothing_is_kept_once_it_is_delivered(client, server, functions, mine):
    kept, session = server[2].app.state_holder.session_data, uuid.uuid4().hex[:10]
    join(client, functions[0], asked(mine), session)
    assert awaited(client, session)[0]
    for _ in range(100):
        if session not in kept:
            return
        time.sleep(0.1)
    pytest.fail("gradio still has the visitor's answer")


def test_old_pictures_are_deleted(mini):
    from globalcom2.web.answering import Answering, Models
    from globalcom2.web.app import build

    page = build(Answering(Models("mini", *mini), Limits(minutes=5)))
    assert page.delete_cache == (60, 300)


def test_the_folder_is_deleted_at_the_end():
    from globalcom2.web.serving import private_folder

    with private_folder() as folder:
        (folder / "a.png").write_bytes(b"x")
    assert not folder.exists()


def test_the_command_opens_and_stops(tmp_path):
    command = [sys.executable, "-m", "globalcom2", "web", "--port", "18960", "--host", "0.0.0.0"]
    quiet = {**os.environ, "TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=quiet, cwd=tmp_path
    ) as process:
        try:
            address = process.stdout.readline().split()[-1]
            with urllib.request.urlopen(address) as answer:
                assert b"globalcom2" in answer.read()
            (folder,) = tmp_path.glob("globalcom2-web-*")
            assert folder.is_dir()
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
        errors = process.stderr.read()
    assert "There is no password" in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.glob("globalcom2-web-*"))
    assert not [path for path in tmp_path.iterdir() if "gradio" in path.name]
