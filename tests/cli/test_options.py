"""Options that several commands share are read alike everywhere."""

import inspect
import json
from pathlib import Path

import pytest

from command import call
from globalcom2 import CompressionConfig, InputError
from globalcom2.cli import analyze, ask, batch, bench, estimate, eval, options, serve
from globalcom2.cli.app import app
from globalcom2.core.methods import parse_method
from globalcom2.hf.loading import load_config, load_model

COMMANDS = ("ask", "batch", "eval", "tune", "analyze", "bench", "estimate", "models", "methods", "serve", "web")
WITH_RATIO = ("ask", "batch", "eval", "tune", "bench", "estimate", "serve")
NEEDED = {
    "serve": ["mini"],
    "batch": ["pictures", "--csv", "answers.csv"],
    "tune": ["mine.parquet", "--max-loss", "1%"],
}
"""Words without which a command does not read its options."""


def test_every_command_stands_in_a_file_of_its_name():
    found = {command.name or command.callback.__name__: command.callback for command in app.registered_commands}
    assert tuple(found) == COMMANDS
    for name, function in found.items():
        assert function.__module__ == f"globalcom2.cli.{name}"


@pytest.mark.parametrize("flag", ["--help", "-h"])
@pytest.mark.parametrize("command", COMMANDS)
def test_help(capsys, command, flag):
    code, out, err = call(capsys, command, flag)
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: globalcom2 {command}") or f" {command} [OPTIONS]" in out.splitlines()[0]
    assert ("--retention" in out) == ("--retention-ratio" in out) == (command in WITH_RATIO)


@pytest.mark.parametrize("command", WITH_RATIO)
@pytest.mark.parametrize("flag", ["--retention", "--retention-ratio"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("10%", "got the percentage '10%'. Did you mean 0.1?"),
        ("7.5 %", "Did you mean 0.075?"),
        (".5%", "Did you mean 0.005?"),
        ("25", "Did you mean 0.25?"),
        ("a tenth", "must be a number in (0, 1], got 'a tenth'"),
        ("0", "must be in (0, 1], got 0"),
        ("nan", "must be in (0, 1], got nan"),
        ("0.5,", "must be a number in (0, 1], got ''"),
    ],
)
def test_what_is_no_ratio_is_refused_in_every_command(capsys, command, flag, text, message):
    code, out, err = call(capsys, command, *NEEDED.get(command, []), flag, text)
    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("flags", [["--retention", "0.5,0.1"], ["--retention", "0.5", "--retention-ratio", "0.1"]])
def test_a_second_ratio_is_not_dropped_where_one_is_wanted(capsys, flags):
    code, _, err = call(capsys, "serve", "mini", *flags)
    assert code == 2
    assert "must be one ratio here, got 2" in err


def test_lists_of_ratios(capsys):
    lists = (["--retention", "1,0.25, 0.1"], ["--retention-ratio", "1", "--retention", "0.25,0.1"])
    for flags in lists:
        code, out, err = call(capsys, "estimate", "--model", "mini", "--json", *flags)
        assert code == 0, err
        assert [row["retention_ratio"] for row in json.loads(out)["rows"]] == [1.0, 0.25, 0.1]
    assert options.read_ratios(None, (0.5,)) == [0.5]
    assert options.read_ratio(None) == 0.1


def test_lists_of_batch_sizes(capsys):
    assert options.read_counts("--batch-size", ["1,4", "16"], [2]) == [1, 4, 16]
    assert options.read_counts("--batch-size", None, [2]) == [2]
    for text in ("0", "1,", "a", "-1", "1.5"):
        code, _, err = call(capsys, "bench", f"--batch-size={text}")
        assert code == 2
        assert "--batch-size must be whole numbers from 1 on" in err


def test_lists_of_methods():
    texts = ["uniform,globalcom2:alpha=0.3,newlines=none,random", "globalcom2:layer=-1,uniform:newlines=all"]
    expected = [
        "uniform",
        "globalcom2:alpha=0.3,newlines=none",
        "random",
        "globalcom2:layer=-1",
        "uniform:newlines=all",
    ]
    assert options.read_methods(texts, []) == expected
    assert options.read_methods(None, ["random"]) == ["random"]
    for text, message in (
        ("uniform,globlcom2", "Did you mean 'globalcom2'"),
        ("globalcom2:alpha", "must be NAME=VALUE, got 'alpha'"),
        ("globalcom2:alpha=0.3,newlines", "method must be one of .*got 'newlines'"),
        ("alpha=0.3", "method must be one of"),
    ):
        with pytest.raises(InputError, match=message):
            options.read_methods([text], [])


def test_shared_options_have_one_definition():
    commands = [m.__dict__[n] for m, n in ((ask, "ask"), (eval, "evaluate"), (analyze, "analyze"), (bench, "bench"),
                                           (estimate, "estimate"), (serve, "serve"), (batch, "batch"))]  # fmt: skip
    shared = {"as_json", "debug", "dtype", "device", "attn", "dataset", "pictures", "force", "plot", "text_tokens"}
    shared |= {"preset", "max_new_tokens"}
    for name in shared:
        texts = {
            str(inspect.signature(c).parameters[name].annotation)
            for c in commands
            if name in inspect.signature(c).parameters
        }
        assert len(texts) == 1, name


def test_a_finished_result_is_overwritten_by_force_alone(capsys, tmp_path):
    path = tmp_path / "result.json"
    path.write_text("{}")
    for command in ("eval", "analyze"):
        code, _, err = call(capsys, command, "--out", str(path))
        assert code == 2
        assert "which holds a result" in err
        assert "--force" in err
        assert path.read_text() == "{}"
    few = ["--pictures", "2", "--retention", "0.1", "--method", "uniform"]
    code, _, err = call(capsys, "eval", "--out", str(path), "--force", *few)
    assert code == 0, err
    assert len(json.loads(path.read_text())["runs"]) == 2


def test_ask_says_what_to_do_with_an_address(capsys):
    code, _, err = call(capsys, "ask", "https://example.com/a.png", "what?")
    assert code == 2
    assert "got the address 'https://example.com/a.png'. Download it first" in err


@pytest.mark.parametrize("command", ["ask", "eval", "analyze", "bench"])
def test_drawings_are_checked_before_anything_runs(capsys, command):
    flag = "--picture" if command == "ask" else "--plot"
    code, _, err = call(capsys, command, flag, "nowhere/kept.png")
    assert code == 2
    assert f"{flag} must be a .png, .pdf, .svg or .jpg file in an existing folder" in err


@pytest.mark.parametrize("device", ["mps", "xpu", "meta"])
def test_other_devices_are_refused_by_us(device):
    with pytest.raises(InputError, match=f"device must be auto, cpu, cuda or cuda:N, got '{device}'.*use cpu"):
        load_model("mini", device=device)


def test_a_cuda_device_that_is_not_there():
    with pytest.raises(InputError, match="device must be available, got 'cuda:99' on a machine with"):
        load_model("mini", device="cuda:99")


def test_a_hub_name_that_is_right_is_not_suggested(monkeypatch):
    from transformers import AutoConfig

    def offline(name):
        raise OSError("We couldn't connect")

    monkeypatch.setattr(AutoConfig, "from_pretrained", offline)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set: unset it") as raised:
        load_config("llava-hf/llava-v1.6-vicuna-7b-hf")
    assert "Did you mean" not in str(raised.value)
    with pytest.raises(InputError, match=r"Did you mean 'llava-hf/llava-v1.6-vicuna-7b-hf'"):
        load_config("llava-hf/llava-v1.6-vicuna-7b")


def test_the_estimate_of_a_small_model_shows_digits(capsys):
    code, out, _ = call(capsys, "estimate", "--model", "mini", "--retention", "1,0.1")
    assert code == 0
    assert "GFLOPs" in out.splitlines()[0]
    figures = [line.split() for line in out.splitlines() if line.split()[:1] in (["1"], ["0.1"])]
    assert len(figures) == 2
    assert all(float(row[2]) > 0.1 and float(row[-1]) > 0.1 for row in figures)
    assert "TFLOPs" in call(capsys, "estimate")[1].splitlines()[0]


def test_lists_part_no_address_on_80_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = call(capsys, "methods")[1]
    assert "https://arxiv.org/abs/2501.05179" in out.split()
    out += call(capsys, "models")[1]
    assert "llava_next" in out.split()
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize("command", ["eval", "analyze"])
def test_tables_of_runs_fit_80_columns(capsys, monkeypatch, command):
    from globalcom2.cli.eval_table import print_eval
    from globalcom2.cli.output import print_runs
    from globalcom2.lab.analysis import CONDITIONS
    from globalcom2.lab.evals import settings_of
    from globalcom2.lab.studies import study_methods

    monkeypatch.setenv("COLUMNS", "80")
    kinds = dict.fromkeys(("read", "exists", "count", "color", "left", "largest", "document"), 1.0)
    figures = {
        "questions": 4800,
        "interval": [0.999, 1.0],
        "relative": 1.044,
        "visual_tokens": 2928,
        "accuracy": 1.0,
        "kinds": kinds,
    }
    about = {"model": "llava-hf/llava-v1.6-vicuna-7b-hf", "dataset": "evaluation.parquet", "pictures": 600}
    if command == "eval":
        settings = settings_of(study_methods(), eval.RATIOS)
        more = {
            "difference": -0.998,
            "difference_interval": [-1.0, -0.0999],
            "selection_ms": 199.9,
            "selection_share": 0.999,
        }
        runs = [
            {"method": s.method, "retention_ratio": s.retention_ratio, "options": s.options, **figures, **more}
            for s in settings
        ]
        print_eval({**about, "runs": runs})
    else:
        runs = [{"condition": name, **figures} for name in ("all tokens", *CONDITIONS)]
        print_runs({**about, "runs": runs}, ["condition"], lambda row: [row["condition"]])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80, out
    assert "…" not in out
    assert out.split().count("2928") == len(runs)


@pytest.mark.parametrize("words", [[], ["--model", "mini"], ["--convention", "paper"], ["--image", "4032x3024"]])
def test_the_table_of_an_estimate_fits_80_columns(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    out = call(capsys, "estimate", *words)[1]
    assert max(map(len, out.splitlines())) <= 80, out
    assert "…" not in out


def test_a_folder_is_no_file_to_write_into(capsys, tmp_path):
    """Found before anything runs, also where its name ends as a file's does."""
    for command, flag, ending in (
        ("ask", "--picture", "png"),
        ("ask", "--html", "html"),
        ("eval", "--out", "json"),
        ("eval", "--plot", "png"),
        ("batch", "--csv", "csv"),
    ):
        folder = tmp_path / f"folder.{ending}"
        folder.mkdir(exist_ok=True)
        words = ["pictures", "--question", "q"] if command == "batch" else []
        code, out, err = call(capsys, command, *words, flag, str(folder))
        assert (code, out) == (2, "")
        assert f"{flag} must be a file, got the folder" in err


@pytest.mark.parametrize("command", ["models", "methods"])
def test_json_and_markdown_are_not_mixed(capsys, command):
    code, out, _ = call(capsys, command, "--json", "--markdown")
    assert code == 2
    assert json.loads(out)["error"]["message"].startswith("--markdown must be left out with --json")


@pytest.mark.parametrize("command", ["eval", "analyze"])
def test_a_plot_that_fails_leaves_one_object(capsys, monkeypatch, tmp_path, command):
    from globalcom2.lab import plots

    def fails(rows, path):
        raise OSError("disk is full")

    monkeypatch.setattr(plots, f"draw_{'eval' if command == 'eval' else 'analysis'}", fails)
    few = ["--pictures", "2", *(["--retention", "0.1", "--method", "uniform"] if command == "eval" else [])]
    kept = tmp_path / "kept.json"
    code, out, _ = call(capsys, command, *few, "--plot", str(tmp_path / "p.png"), "--out", str(kept), "--json")
    assert code == 1
    assert json.loads(out)["error"]["message"] == "disk is full"
    assert json.loads(kept.read_text())["runs"]  # what was measured is not lost


def test_presets_of_studies():
    assert options.read_lists(None, None, "paper", None, ((0.5,), ("uniform",))) == ([0.5], ["globalcom2:preset=paper"])
    ratios, methods = options.read_lists(["0.3"], ["globalcom2,globalcom2:alpha=0.4"], "paper", None, ((), ()))
    assert (ratios, methods) == ([0.3], ["globalcom2:preset=paper", "globalcom2:preset=paper,alpha=0.4"])
    assert parse_method(methods[1])[1] == {"layer": -1, "allocation": "softmax", "newlines": "counted", "alpha": 0.4}
    for given, message in (
        ((["uniform"], "paper", None), "preset must be left out with method 'uniform'"),
        ((None, "papers", None), "Did you mean 'paper'"),
        ((None, "paper", Path("settings")), "--preset must be left out with --config"),
    ):
        with pytest.raises(InputError, match=message):
            options.read_lists(None, *given, ((), ()))


@pytest.mark.parametrize("words", [["estimate", "--model", "mini"], ["estimate", "--convention", "paper"]])
def test_a_narrow_terminal_costs_no_digit(capsys, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    wide = call(capsys, *words)[1]
    monkeypatch.setenv("COLUMNS", "50")
    assert call(capsys, *words)[1] == wide


def test_attention_implementations_that_are_named_are_those_to_choose_from():
    with pytest.raises(InputError, match=r"attn must be one of .*eager") as raised:
        load_model("mini", attn="nope")
    assert "|" not in str(raised.value)


def test_a_configuration_means_the_same_in_answers_and_studies(tmp_path):
    """Its settings of every method go to other methods, too; those of its own method do not."""
    CompressionConfig.from_preset("paper", retention_ratio=0.3).save_pretrained(tmp_path)
    for methods in (None, ["uniform,globalcom2:alpha=0.1"]):
        ratios, texts = options.read_lists(None, methods, None, tmp_path, ((), ()))
        settings = options.read_settings(None, methods, None, tmp_path)
        assert [(s.retention_ratio, (s.method, s.options)) for s in settings] == [
            (0.3, parse_method(text)) for text in texts
        ]
        assert ratios == [0.3]
    assert texts[0] == "uniform:layer=-1,newlines=counted"
    CompressionConfig(retention_ratio=1.0).save_pretrained(tmp_path)
    asked = options.read_lists(["0.5"], ["uniform,globalcom2"], None, tmp_path, ((), ()))
    assert asked == ([0.5], ["uniform", "globalcom2"])
