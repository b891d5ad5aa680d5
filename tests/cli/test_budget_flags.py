"""`--max-visual-tokens` and `--retention auto` on the command line."""

import csv
import json

import pytest

from command import call
from globalcom2 import CompressionConfig
from globalcom2.cli import options
from globalcom2.lab.estimates import estimate_costs, named_configs
from globalcom2.lab.settings import Setting
from tiny import picture

FEW = ["--max-new-tokens", "2", "--json"]


@pytest.fixture
def photo(tmp_path):
    """A picture of 2 x 2 crops."""
    path = tmp_path / "photo.png"
    picture(168, 168).save(path)
    return str(path)


def test_ask_with_limits_and_auto(capsys, checkpoint, photo):
    code, out, err = call(
        capsys,
        "ask",
        photo,
        "what?",
        "--model",
        checkpoint,
        "--retention",
        "auto,0.5",
        "--max-visual-tokens",
        "20,9000",
        *FEW,
    )
    assert code == 0, err
    runs = json.loads(out)["runs"]
    asked = [(run["retention_ratio"], run["options"]) for run in runs]
    assert asked == [(ratio, {"max_visual_tokens": n}) for ratio in ("auto", 0.5) for n in (20, 9000)]
    full = runs[0]["full"]["visual_tokens"]
    tokens = [run["compressed"]["visual_tokens"] for run in runs]
    assert tokens[0] == tokens[2] == 20
    assert 0.05 * full - 1 <= tokens[1] <= 0.25 * full + 1
    assert tokens[3] == round(0.5 * full)
    for run, kept in zip(runs, tokens, strict=True):
        assert round(run["compressed"]["image_ratio"] * full) == kept


def test_a_table_of_answers_names_the_limit(capsys, checkpoint, photo):
    limits = ["--max-visual-tokens", "20,9000"]
    code, out, err = call(capsys, "ask", photo, "what?", "--model", checkpoint, *limits, *FEW[:2])
    assert code == 0, err
    assert "max 20" in out
    assert "globalcom2 at max 9000 tokens: 100%, 100%" in out


def test_a_batch_tells_its_settings_apart(capsys, checkpoint, photo, tmp_path):
    table = tmp_path / "rows.csv"
    command = ["batch", str(tmp_path), "--question", "what?", "--csv", str(table), "--model", checkpoint, *FEW]
    command += ["--retention", "auto,1", "--max-visual-tokens", "7,9"]
    for answered in (4, 0):
        code, out, err = call(capsys, *command)
        assert code == 0, err
        assert json.loads(out)["answered"] == answered
    rows = list(csv.DictReader(table.open()))
    assert [row["retention_ratio"] for row in rows] == ["auto", "auto", "1", "1"]
    assert [row["visual_tokens"] for row in rows] == ["7", "9"] * 2
    assert {row["method"] for row in rows} == {f"globalcom2, max_visual_tokens={n}" for n in (7, 9)}


def test_estimate_tells_the_ratio_of_a_limit(capsys):
    for size, everything in (("672x672", 2928), ("1344x336", 1890)):
        code, out, err = call(capsys, "estimate", "--image", size, "--max-visual-tokens", "128,100000", "--json")
        assert code == 0, err
        full, limited, whole = json.loads(out)["rows"]
        assert (limited["max_visual_tokens"], limited["visual_tokens"]) == (128, 128)
        assert limited["retention_ratio"] == pytest.approx(128 / everything)
        assert whole["visual_tokens"] == full["visual_tokens"] == everything
        (same,) = estimate_costs(named_configs()["llava-next-7b"], tuple(map(int, size.split("x"))), [128 / everything])
        assert same == {name: limited[name] for name in same}


def test_bench_measures_at_a_limit(capsys, checkpoint):
    flags = ["--max-visual-tokens", "16,9000", "--rounds", "1", "--new-tokens", "1", "--json"]
    code, out, err = call(capsys, "bench", "--model", checkpoint, *flags)
    assert code == 0, err
    assert [row["visual_tokens"] for row in json.loads(out)["rows"]][1:] == [16]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["ask", "--max-visual-tokens", "0"], "--max-visual-tokens must be whole numbers from 1 on, got '0'"),
        (["ask", "--max-visual-tokens", "0.1"], "--max-visual-tokens must be whole numbers from 1 on"),
        (["estimate", "--max-visual-tokens", "9", "--convention", "paper"], "must be left out with --convention paper"),
        (["eval", "--retention", "auto"], "--retention must be a number in (0, 1], got 'auto'. auto is for"),
        (["bench", "--retention", "auto"], "auto is for `ask` and `batch`"),
    ],
    ids=str,
)
def test_what_cannot_be(capsys, command, message):
    code, _, err = call(capsys, *command)
    assert code == 2
    assert message in err


def test_saved_limits(capsys, tmp_path):
    CompressionConfig(max_visual_tokens=50).save_pretrained(tmp_path)
    limit = {"max_visual_tokens": 50}
    assert options.read_settings(None, None, None, tmp_path) == [Setting("globalcom2", 1.0, limit)]
    assert options.read_settings(["0.5"], None, None, tmp_path) == [Setting("globalcom2", 0.5, limit)]
    assert options.read_settings(None, ["uniform"], None, tmp_path, ["60"]) == [
        Setting("uniform", 1.0, {"max_visual_tokens": 60})
    ]
    CompressionConfig(0.3).save_pretrained(tmp_path)
    assert options.read_settings(None, None, None, tmp_path, ["60"]) == [
        Setting("globalcom2", 1.0, {"max_visual_tokens": 60})
    ]
    for config in (CompressionConfig(max_visual_tokens=50), CompressionConfig("auto")):
        config.save_pretrained(tmp_path)
        code, _, err = call(capsys, "eval", "--config", str(tmp_path))
        assert code == 2
        assert "--config must have a ratio here" in err
