"""`ask` with several pictures, methods and ratios, from files, standard input and addresses."""

import io
import json
from pathlib import Path

import pytest

from command import call
from globalcom2 import CompressionConfig
from globalcom2.lab import downloads
from tiny import picture

FEW = ["--max-new-tokens", "2"]


@pytest.fixture
def pictures(tmp_path):
    """Two files, and the arguments that ask about both."""
    names = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for seed, (name, size) in enumerate(zip(names, ((168, 168), (60, 200)), strict=True)):
        picture(*size, seed).save(name)
    return names


def asked(capsys, checkpoint, *words):
    code, out, err = call(capsys, "ask", *words, "--model", checkpoint, *FEW, "--json")
    assert code == 0, err
    return json.loads(out)


def test_every_picture_method_and_ratio_is_a_run(capsys, checkpoint, pictures):
    methods = ["--method", "uniform,globalcom2:preset=paper", "--method", "random"]
    result = asked(capsys, checkpoint, *pictures, "what?", "--retention", "1,0.25", *methods)
    settings = [("uniform", 1.0), ("uniform", 0.25), ("globalcom2", 0.25), ("random", 0.25)]
    found = [(run["image"], run["method"], run["retention_ratio"]) for run in result["runs"]]
    assert found == [(name, *setting) for name in pictures for setting in settings]
    assert result["image"] == pictures[0]
    assert result["compressed"] == result["runs"][0]["compressed"]
    for first in (0, 4):  # all tokens are asked once per picture
        runs = result["runs"][first : first + 4]
        assert all(run["full"] == runs[0]["full"] for run in runs)
        assert runs[0]["compressed"]["answer"] == runs[0]["full"]["answer"]
        assert len({run["compressed"]["visual_tokens"] for run in runs[1:]}) == 1
        assert runs[2]["options"] == {"layer": -1, "allocation": "softmax", "alpha": 0.5, "newlines": "counted"}
    assert result["runs"][0]["full"]["visual_tokens"] != result["runs"][4]["full"]["visual_tokens"]


def test_numbered_pictures_and_one_page(capsys, checkpoint, pictures, tmp_path):
    kept, page = tmp_path / "kept.jpg", tmp_path / "kept.html"
    result = asked(
        capsys, checkpoint, *pictures, "a <b>?", "--retention", "1,0.25", "--picture", str(kept), "--html", str(page)
    )
    drawn = [run["picture"] for run in result["runs"]]
    assert drawn == [None, str(tmp_path / "kept-2.jpg"), None, str(tmp_path / "kept-4.jpg")]
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["kept-2.jpg", "kept-4.jpg"]
    assert result["html"] == str(page)
    text = page.read_text()
    assert text.lower().count("<!doctype html>") == text.lower().count("<html") == 1
    assert "a &lt;b&gt;?" in text
    assert "<b>?" not in text


def test_a_table_of_several_runs_fits_80_columns(capsys, checkpoint, pictures, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    methods = "globalcom2:preset=paper,temperature=0.02,uniform:score=attention"
    code, out, err = call(
        capsys, "ask", *pictures, "[bold] what? " * 9, "--method", methods, "--model", checkpoint, *FEW
    )
    assert code == 0, err
    assert max(map(len, out.split("\n"))) <= 80, [line for line in out.split("\n") if len(line) > 80]
    for text in ("a.png: [bold] what?", "all tokens", "paper,", "uniform,", "Kept per crop by uniform"):
        assert text in " ".join(out.split()), out


def test_standard_input(capsys, checkpoint, pictures, monkeypatch):
    class Stdin:
        buffer = None

    data = Path(pictures[0]).read_bytes()
    monkeypatch.setattr("sys.stdin", Stdin)
    Stdin.buffer = io.BytesIO(data)
    result = asked(capsys, checkpoint, "-", "what?")
    assert result["image"] == "-"
    of_file = asked(capsys, checkpoint, pictures[0], "what?")
    for name in ("answer", "visual_tokens", "crop_ratios"):
        assert result["compressed"][name] == of_file["compressed"][name]
    for given, message in (
        (b"", "got nothing there"),
        (b"text", "got 'standard input', which is none"),
        (data * 2, "at most 0.02 MB"),
    ):
        Stdin.buffer = io.BytesIO(given)
        code, _, err = call(capsys, "ask", "-", "what?", "--max-mb", "0.02" if given == data * 2 else "1")
        assert code == 1
        assert message in err


def test_an_address_needs_leave(capsys, checkpoint, pictures, monkeypatch):
    fetched = []

    def fetch(address, most):
        fetched.append((address, most))
        return Path(pictures[0]).read_bytes()

    monkeypatch.setattr(downloads, "fetch", fetch)
    code, _, err = call(capsys, "ask", "https://example.com/a.png", "what?")
    assert code == 2
    assert "--allow-url" in err
    assert fetched == []
    result = asked(capsys, checkpoint, "https://example.com/a.png", "what?", "--allow-url")
    assert fetched == [("https://example.com/a.png", 20_000_000)]
    assert result["image"] == "https://example.com/a.png"
    assert result["full"]["visual_tokens"] == asked(capsys, checkpoint, pictures[0], "what?")["full"]["visual_tokens"]


def test_only_pictures_of_the_web_are_read_of_an_address(capsys, monkeypatch):
    made = io.BytesIO()
    picture(60, 60).save(made, "PPM")
    monkeypatch.setattr(downloads, "fetch", lambda *_: made.getvalue())
    code, _, err = call(capsys, "ask", "https://example.com/a.png", "what?", "--allow-url")
    assert code == 1
    assert "got 'https://example.com/a.png', which is none" in err


def test_preset_and_config_are_the_same_settings(capsys, checkpoint, pictures, tmp_path):
    CompressionConfig.from_preset("paper", retention_ratio=0.3, newlines="all").save_pretrained(tmp_path)
    of_file = asked(capsys, checkpoint, pictures[0], "what?", "--config", str(tmp_path))
    text = ["--method", "globalcom2:newlines=all", "--preset", "paper", "--retention", "0.3"]
    of_flags = asked(capsys, checkpoint, pictures[0], "what?", *text)
    for result in (of_file, of_flags):
        assert (result["method"], result["retention_ratio"]) == ("globalcom2", 0.3)
        assert result["options"] == {"layer": -1, "allocation": "softmax", "alpha": 0.5, "newlines": "all"}
        assert result["compressed"]["crop_ratios"] == of_file["compressed"]["crop_ratios"]
    other = asked(
        capsys, checkpoint, pictures[0], "what?", "--config", str(tmp_path), "--method", "uniform", "--retention", "0.5"
    )
    assert (other["method"], other["retention_ratio"]) == ("uniform", 0.5)
    assert other["options"] == {"layer": -1, "newlines": "all"}  # the method's own options stay behind


def test_completion_is_light():
    import os
    import subprocess
    import sys

    code = "import sys; sys.argv[0] = 'globalcom2'; from globalcom2.cli import main\ntry: main([])\nfinally: print('HEAVY', 'torch' in sys.modules)"
    words = {"_GLOBALCOM2_COMPLETE": "complete_bash", "COMP_WORDS": "globalcom2 ask --method ", "COMP_CWORD": "3"}
    out = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **words}, capture_output=True, text=True
    ).stdout
    assert {"globalcom2", "uniform", "random"} <= set(out.split())
    assert "HEAVY False" in out


def test_standard_input_that_the_shell_closed(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    code, _, err = call(capsys, "ask", "-", "what?")
    assert code == 1
    assert "image must be on standard input for '-', got nothing there" in err
