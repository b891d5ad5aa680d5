"""The command line as a user meets it."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from command import call
from tiny import llava_next, picture

ASK_KEYS = {"answer", "visual_tokens", "prompt_tokens", "prefill_flops", "seconds", "tower_flops"}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A LLaVA-NeXT with random weights, saved as any hub checkpoint is."""
    folder = tmp_path_factory.mktemp("checkpoint")
    made = llava_next()
    made.model.save_pretrained(folder)
    made.processor.save_pretrained(folder)
    return str(folder)


def test_ask_with_defaults_is_the_demo(capsys, tmp_path):
    code, out, err = call(capsys, "ask", "--json", "--picture", str(tmp_path / "kept.png"))
    assert code == 0, err
    result = json.loads(out)
    keys = {"model", "image", "question", "retention_ratio", "method", "options", "full", "compressed", "picture"}
    assert set(result) == keys
    assert set(result["full"]) == ASK_KEYS
    assert set(result["compressed"]) == ASK_KEYS | {"crop_ratios", "selection_seconds"}
    full, short = result["full"], result["compressed"]
    assert short["visual_tokens"] == int(0.1 * full["visual_tokens"] + 0.5)
    assert full["prompt_tokens"] - short["prompt_tokens"] == full["visual_tokens"] - short["visual_tokens"]
    assert short["prefill_flops"] < 0.2 * full["prefill_flops"]
    assert Image.open(tmp_path / "kept.png").width > 400


def test_ask_prints_a_table(capsys):
    code, out, _ = call(capsys, "ask", "--retention", "0.5", "--method", "uniform")
    assert code == 0
    assert "all tokens" in out
    assert "uniform 0.5" in out
    assert "Kept per crop:" in out


def test_ask_with_a_checkpoint_folder(capsys, tmp_path, checkpoint):
    picture(200, 150).save(tmp_path / "a.jpg")
    code, out, err = call(capsys, "ask", str(tmp_path / "a.jpg"), "what?", "--model", checkpoint, "--json", "--max-new-tokens", "3",
                          "--dtype", "bfloat16", "--attn", "eager", "--device", "cpu")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)["compressed"]["visual_tokens"] > 0


def test_ratio_one_answers_the_same(capsys):
    code, out, err = call(capsys, "ask", "--retention", "1", "--json", "--picture", "unused.png")
    assert "No picture drawn" in err
    result = json.loads(out)
    assert code == 0
    assert result["full"]["answer"] == result["compressed"]["answer"]
    assert result["full"]["visual_tokens"] == result["compressed"]["visual_tokens"]


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
        (["ask", "--picture", "{tmp}/no/such/folder.png"], 2, "existing folder"),
        (["ask", "--picture", "{tmp}/kept.txt"], 2, ".png, .pdf, .svg or .jpg"),
        (["ask", "{tmp}", "what?"], 2, "is a folder or does not exist"),
        (["ask", "{tmp}/small.png", ""], 2, "question must be text"),
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
    assert {m["name"] for m in json.loads(out)["methods"]} == {"globalcom2", "uniform", "random"}
    assert set(json.loads(out)["methods"][0]) == {"name", "summary", "source"}
    code, out, _ = call(capsys, "models", "--json")
    assert set(json.loads(out)["families"][0]) == {"model_type", "scores", "thumbnail", "budget", "tested"}
    assert call(capsys, "methods")[0] == call(capsys, "models")[0] == call(capsys, "--help")[0] == 0
    assert call(capsys, "--version")[1].startswith("globalcom2 0.")
