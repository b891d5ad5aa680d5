"""`globalcom2 web`: arguments come first, the folder of uploads goes last."""

import importlib.util
import socket

import pytest

from command import call
from globalcom2 import InputError
from globalcom2.web.addresses import free_port, is_loopback


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-pixels", "0"], "--max-pixels must be positive, got 0"),
        (["--max-upload-mb", "-1"], "--max-upload-mb must be positive, got -1.0"),
        (["--max-upload-mb", "nan"], "--max-upload-mb must be positive, got nan"),
        (["--port", "0"], "Invalid value for '--port'"),
        (["--queue", "0"], "Invalid value for '--queue'"),
        (["--host", "203.0.113.7"], "--host must be an address of this machine"),
        (["--nope"], "No such option"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    code, out, err = call(capsys, "web", *arguments)
    assert code == 2
    assert message in err
    assert out == ""


def test_without_gradio(capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else find(name, *more)
    )
    code, _, err = call(capsys, "web")
    assert code == 2
    assert "gradio must be installed for the page, got none. Run: pip install '.[web]' in a clone" in err


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("::", False),
     ("192.168.0.1", False), ("example.org", False)],
)  # fmt: skip
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_the_next_free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) > port
    with pytest.raises(InputError, match="--host must be an address of this machine"):
        free_port("no-such-host.invalid", 7860)
