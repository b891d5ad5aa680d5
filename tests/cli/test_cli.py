"""The command line as a user meets it."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from command import call
from globalcom2 import list_methods
from tiny import picture

ASK_KEYS = {"answer", "visual_tokens", "prompt_tokens", "prefill_flops", "seconds", "tower_flops"}


def test_ask_with_defaults_is_the_demo(capsys, tmp_path):
    code, out, err = call(capsys, "ask", "--json", "--picture", str(tmp_path / "kept.png"))
    assert code == 0, err
    result = json.loads(out)
    keys = {"image", "question", "retention_ratio", "method", "options", "full", "compressed", "picture"}
    assert set(result) == keys | {"model", "html", "runs"}
    assert [set(run) for run in result["runs"]] == [keys]
    assert {name: result[name] for name in keys} == result["runs"][0]
    assert set(result["full"]) == ASK_KEYS
    more = {"crop_ratios", "selection_seconds", "image_ratio", "mean_retention"}
    assert set(result["compressed"]) == ASK_KEYS | more
    full, short = result["full"], result["compressed"]
    assert short["visual_tokens"] == int(0.1 * full["visual_tokens"] + 0.5)
    assert full["prompt_tokens"] - short["prompt_tokens"] == full["visual_tokens"] - short["visual_tokens"]
    assert short["prefill_flops"] < 0.2 * full["prefill_flops"]
    assert Image.open(tmp_path / "kept.png").width > 400


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["ask", "--retention", "25"], 2, "Did you mean 0.25?"),
        (["ask", "--retention", "ten"], 2, "ten"),
        (["ask", "--method", "globlcom2"], 2, "Did you mean 'globalcom2'"),
        (["ask", "--model", "minni"], 2, "Did you mean 'mini'"),
        (["ask", "--model", "llava-hf/llava-v1.6-vicuna-7b"], 2, "Did you mean 'llava-hf/llava-v1.6-vicuna-7b-hf'"),
        (["ask", "--device", "gpu"], 2, "device must be"),
        (["ask", "--dtype", "int8"], 2, "dtype must be one of"),
        (["ask", "{tmp}/none.png", "what?"], 2, "does not exist"),
        (["ask", "{tmp}/text.png", "what?"], 1, "which is none"),
        (["ask", "{tmp}/text.png"], 2, "QUESTION must be given"),
        (["ask", "{tmp}/small.png", "{tmp}/text.png"], 2, "QUESTION must be the last word, got the file"),
        (["ask", "-", "-", "what?"], 2, "IMAGE '-' must be given once"),
        (["ask", "--html", "{tmp}/no/such/folder.html"], 2, "existing folder"),
        (["ask", "--html", "{tmp}/kept.png"], 2, ".html or .htm"),
        (["ask", "--preset", "papers"], 2, "Did you mean 'paper'"),
        (["ask", "--preset", "paper", "--method", "uniform"], 2, "preset must be left out with method 'uniform'"),
        (["ask", "--preset", "paper", "--config", "{tmp}"], 2, "--preset must be left out with --config"),
        (["ask", "--config", "{tmp}/none.json"], 2, "none.json"),
        (["batch", "{tmp}", "--csv", "{tmp}/o.csv"], 2, "--question must be given for a folder"),
        (["batch", "{tmp}/none", "--csv", "{tmp}/o.csv"], 2, "which is not there"),
        (["batch", "{tmp}", "--csv", "{tmp}/o.txt", "--question", "q"], 2, "--csv must be a .csv file"),
        (["batch", "{tmp}"], 2, "Missing option '--csv'"),
        (["ask", "--picture", "{tmp}/no/such/folder.png"], 2, "existing folder"),
        (["ask", "--picture", "{tmp}/kept.txt"], 2, ".png, .pdf, .svg or .jpg"),
        (["ask", "{tmp}", "what?"], 2, "is a folder or does not exist"),
        (["ask", "{tmp}/small.png", ""], 2, "question must be text"),
        (["ask", "", "what?"], 2, "IMAGE must be a file, got an empty word"),
        (["ask", "{tmp}/small.png", "see <image>"], 2, "question must be text without '<image>'"),
        (["ask", "--attn", "sdpaa"], 2, "Did you mean 'sdpa'"),
        (["ask", "--device", "meta"], 2, "got 'meta'"),
        (["methods", "--debug"], 2, "No such option"),
        (["ask", "--nope"], 2, "No such option"),
        (["nope"], 2, "No such command"),
    ],
)
def test_errors_are_one_line_with_a_code(capsys, tmp_path, arguments, code, message):
    (tmp_path / "text.png").write_text("no picture")
    picture(40, 40).save(tmp_path / "small.png")
    got, out, err = call(capsys, *[a.format(tmp=tmp_path) for a in arguments])
    assert got == code
    assert message in err.replace("\n", " ")
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.glob("*.csv"))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["ask", "--retention", "10%"], ("InputError", "--retention must be a fraction in (0, 1], got the percentage '10%'. Did you mean 0.1?", 2)),
        (["ask", "{tmp}/text.png", "what?"], ("DataError", "image must be a picture that Pillow can read, got 'text.png', which is none. Try PNG or JPEG.", 1)),
        (["ask", "--retentoin", "1"], ("NoSuchOption", "No such option: --retentoin", 2)),
        (["nope"], ("UsageError", "No such command 'nope'", 2)),
    ],
)  # fmt: skip
def test_errors_are_one_object_under_json(capsys, tmp_path, arguments, error):
    (tmp_path / "text.png").write_text("no picture")
    code, out, err = call(capsys, *[a.format(tmp=tmp_path) for a in arguments], "--json")
    found = json.loads(out)
    assert set(found) == {"error"}
    kind, message, exit_code = error
    assert found["error"]["type"] == kind
    assert found["error"]["message"].startswith(message)
    assert found["error"]["exit_code"] == exit_code == code
    assert found["error"]["message"][:40] in err


def test_what_nobody_expected_is_an_object_too(capsys, monkeypatch):
    from globalcom2.lab import settings

    def broken(*_):
        raise RuntimeError("boom")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(settings, "settings_of", broken)
    code, out, err = call(capsys, "ask", "--json")
    assert code == 1
    assert json.loads(out)["error"] == {"type": "RuntimeError", "message": "boom", "exit_code": 1}
    assert "Error: RuntimeError: boom" in err
    monkeypatch.setattr(settings, "settings_of", stopped)
    code, out, _ = call(capsys, "ask", "--json")
    assert code == 130
    assert json.loads(out)["error"]["exit_code"] == 130
    assert call(capsys, "ask")[1] == ""


def test_an_unsupported_family(capsys, tmp_path):
    from transformers import LlamaConfig

    LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    code, _, err = call(capsys, "ask", "--model", str(tmp_path))
    assert code == 2
    assert "llava_next, " in err
    assert "), got model_type 'llama'" in err


def test_debug_shows_the_traceback(tmp_path):
    command = [sys.executable, "-m", "globalcom2", "ask", "--retention", "25"]
    quiet = subprocess.run(command, capture_output=True, text=True)
    loud = subprocess.run([*command, "--debug"], capture_output=True, text=True)
    assert quiet.returncode == 2
    assert "Traceback" not in quiet.stderr
    assert "Traceback" in loud.stderr


def test_lists(capsys):
    code, out, _ = call(capsys, "methods", "--json")
    assert code == 0
    assert {m["name"] for m in json.loads(out)["methods"]} == set(list_methods()) >= {"globalcom2", "scope"}
    assert set(json.loads(out)["methods"][0]) == {"name", "summary", "source"}
    code, out, _ = call(capsys, "models", "--json")
    assert {"model_type", "scores", "thumbnail", "budget", "tested"} <= set(json.loads(out)["families"][0])
    assert call(capsys, "methods")[0] == call(capsys, "models")[0] == call(capsys, "--help")[0] == 0
    assert call(capsys, "--version")[1].startswith("globalcom2 0.")
