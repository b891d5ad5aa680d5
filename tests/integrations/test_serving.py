"""What an engine may be told and what `globalcom2 serve` starts; everything that needs no vLLM."""

import json
import shlex
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig

import toys
from globalcom2 import CompressionConfig, InputError, Ranking, UnsupportedModelError, Views, select
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.cli import main
from globalcom2.core.groups import places_of
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.integrations import vllm as plugin
from globalcom2.integrations.vllm import serving
from globalcom2.integrations.vllm.options import (
    FLOOR,
    LIMIT,
    METHOD,
    PER_REQUEST,
    RETENTION,
    Asked,
    Options,
    without_ratio,
)
from globalcom2.mini import FOLDER


def options(**settings) -> Options:
    return Options.of(SimpleNamespace(**settings))


def test_an_engine_compresses_nothing_unless_told():
    assert options() == Options(1.0, 1.0, "globalcom2")
    assert options().ratio({}) == 1.0


def test_the_environment_speaks_where_the_configuration_is_silent(monkeypatch):
    monkeypatch.setenv("GLOBALCOM2_RETENTION", "0.25")
    monkeypatch.setenv("GLOBALCOM2_FLOOR", "0.05")
    monkeypatch.setenv("GLOBALCOM2_METHOD", "uniform")
    assert options() == Options(0.25, 0.05, "uniform")
    assert options(globalcom2_retention=0.5) == Options(0.5, 0.05, "uniform")
    monkeypatch.setenv("GLOBALCOM2_RETENTION", "a quarter")
    with pytest.raises(InputError, match="globalcom2_retention must be a number"):
        options()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({RETENTION: 25}, "globalcom2_retention must be in .*Did you mean 0.25"),
        ({RETENTION: 0.1, FLOOR: 0.2}, "globalcom2_floor must be at most globalcom2_retention 0.1"),
        ({RETENTION: 0.1, METHOD: "uniforn"}, "Did you mean 'uniform'"),
        ({RETENTION: True}, "globalcom2_retention must be a number"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(InputError, match=message):
        options(**settings)


def test_a_request_asks_within_the_floor():
    engine = options(globalcom2_retention=0.25, globalcom2_floor=0.1)
    assert [engine.ratio({RETENTION: r}) for r in (1, 0.5, 0.1, 0.05, None)] == [1.0, 0.5, 0.1, 0.1, 0.25]
    assert engine.ratio({RETENTION: 1 / 3}) == 0.333333
    assert without_ratio({RETENTION: 0.1, LIMIT: 64, "size": 3}) == {"size": 3}


def test_marks_tell_ratios_and_methods_apart():
    engine = options(globalcom2_retention=0.25, globalcom2_floor=0.1)
    other = options(globalcom2_retention=0.25, globalcom2_method="uniform")
    asked = ({}, {RETENTION: 0.2501}, {RETENTION: 0.1}, {LIMIT: 64}, {LIMIT: 65}, {LIMIT: 64, RETENTION: 0.25})
    marks = {engine.mark(engine.asked(arguments)) for arguments in asked} | {other.mark(other.asked({}))}
    marks.add(Options(0.25, 0.1, "globalcom2", limit=64).mark(engine.asked({})))
    assert len(marks) == 8
    assert all("globalcom2-" in mark for mark in marks)


@pytest.mark.parametrize("version", ["0.32.0", "0.32.4+cpu", "0.32.1rc2", "0.33.0"])
def test_tested_versions(version):
    plugin.check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "1.0", "dev"])
def test_other_versions_are_refused(version):
    with pytest.raises(UnsupportedModelError, match=r"vllm must be at least 0\.32 and below 0\.34"):
        plugin.check_version(version)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(serving, "installed_version", lambda: "0.32.0")


def test_the_command_of_serve():
    made = serving.command(
        "owner/name", CompressionConfig(0.1, "uniform"), 0.05, True, ["--port", "8001", "--hf-overrides", '{"a": 1}']
    )
    settings = json.loads(made[made.index("--hf-overrides") + 1])
    assert settings == {"a": 1, RETENTION: 0.1, FLOOR: 0.05, METHOD: "uniform", PER_REQUEST: True}
    assert made[3:5] == ["serve", "owner/name"]
    assert made[-2:] == ["--port", "8001"]
    assert "--trust-request-mm-kwargs" not in made  # it would let through whatever a client sends
    assert made.count("--hf-overrides") == 1


def test_the_mini_model_gets_what_it_needs_unless_told_otherwise():
    made = serving.command("mini", CompressionConfig(), None, False, ["--dtype=bfloat16"])
    assert made[4].endswith("model")
    assert made[made.index("--served-model-name") + 1] == "mini"
    assert "--dtype" not in made
    assert "--trust-request-mm-kwargs" not in made
    native = serving.command("mini-native", CompressionConfig(), None, False, [])
    assert native[4].endswith("native")
    assert native[native.index("--served-model-name") + 1] == "mini-native"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hf-overrides", "{"], "must be a JSON object"),
        (["--hf-overrides=[1]"], "must be a JSON object"),
        (["--hf-overrides", '{"globalcom2_retention": 1}'], "globalcom2_retention belongs into the flags"),
        (["--hf_overrides.globalcom2_floor=1"], "globalcom2_floor belongs into the flags"),
        (["--hf-o", '{"retention_ratio": 1}'], "got 'retention_ratio'.* globalcom2_retention belongs into the flags"),
        (["--hf-overrides.globalcom2_retenton", "1"], "globalcom2_retention belongs into the flags"),
        (["--hf-overrides.a"], "--hf-overrides.a must have a value"),
    ],
)
def test_overrides_that_cannot_be_merged(flags, message):
    with pytest.raises(InputError, match=message):
        serving.command("mini", CompressionConfig(), None, False, flags)


def test_serve_says_what_is_wrong_before_it_starts_anything(installed, capsys):
    for arguments in (["--retention", "10"], ["--floor", "0.5"], ["--method", "unifrom"]):
        with pytest.raises(SystemExit) as stopped:
            main(["serve", "mini", *arguments])
        assert stopped.value.code == 2
        assert "must be" in capsys.readouterr().err


def test_serve_without_vllm(monkeypatch, capsys):
    monkeypatch.setattr(serving, "version", _missing)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "mini"])
    assert stopped.value.code == 2
    assert "pip install '.[vllm]'" in capsys.readouterr().err


def _missing(name):
    raise serving.PackageNotFoundError(name)


def test_a_dry_run_prints_the_command(installed, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "mini", "--dry-run", "--max-num-seqs", "4"])
    assert stopped.value.code == 0
    assert "--max-num-seqs 4" in capsys.readouterr().out


# Saved configurations


def served(*arguments, capsys):
    """The overrides in the command that `globalcom2 serve` would run, and the rest of it."""
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *arguments, "--dry-run"])
    out, err = capsys.readouterr()
    if stopped.value.code:
        return err, None
    command = shlex.split(out)
    place = command.index("--hf-overrides")
    settings = json.loads(command[place + 1])
    assert settings.pop(PER_REQUEST) is False  # none of these lets requests choose
    return settings, command[:place] + command[place + 2 :]


def test_serve_follows_a_saved_configuration(tmp_path, capsys):
    path = CompressionConfig(0.25, options={"alpha": 0.5}).save_pretrained(tmp_path)
    expected = {RETENTION: 0.25, METHOD: "globalcom2:alpha=0.5"}
    for name in (path, tmp_path):
        assert served("owner/name", "--config", str(name), capsys=capsys)[0] == expected
    flags = ("--config", str(path), "--retention", "0.3", "--method", "uniform")
    assert served("owner/name", *flags, capsys=capsys)[0] == {RETENTION: 0.3, METHOD: "uniform"}
    found, rest = served("owner/name", "--config", str(path), "--config", "vllm.yaml", "--port", "1", capsys=capsys)
    assert found == expected
    assert rest[-4:] == ["--port", "1", "--config", "vllm.yaml"]  # a YAML file is vLLM's


def test_serve_follows_what_a_models_folder_says(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava_next"}))
    plain = {RETENTION: 0.1, METHOD: "globalcom2"}
    assert served(str(tmp_path), capsys=capsys)[0] == plain
    (tmp_path / "config.json").write_text(json.dumps({RETENTION: 0.4, METHOD: "globalcom2:alpha=0.1"}))
    assert served(str(tmp_path), capsys=capsys)[0] == {RETENTION: 0.4, METHOD: "globalcom2:alpha=0.1"}
    found, _ = served(str(tmp_path), "--retention", "0.2", capsys=capsys)
    assert found == {RETENTION: 0.2, METHOD: "globalcom2:alpha=0.1"}
    assert served(str(tmp_path), "--preset", "default", capsys=capsys)[0] == plain


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "paper"], "layer must be left out for a vLLM engine, got layer=-1"),
        (["--preset", "published"], "exact=False"),
        (["--preset", "papr"], "Did you mean 'paper'"),
        (["--preset", "default", "--config", "x.json"], "--config or --preset must be given once"),
        (["--config", "x.json", "--config", "y.json"], "--config or --preset must be given once"),
        (["--config", "x.json"], "must be an existing file or folder"),
        (["--method", "globalcom2:positions=original"], "positions must be left out for a vLLM engine"),
        (["--method", "globalcom2:alfa=1"], "Did you mean 'alpha'"),
    ],
)
def test_what_cannot_be_served(arguments, message, capsys):
    err, command = served("mini", *arguments, capsys=capsys)
    assert command is None
    assert message in " ".join(err.split())


def test_a_dry_run_needs_no_vllm(monkeypatch, capsys):
    monkeypatch.setattr(serving, "version", _missing)
    assert served("mini", capsys=capsys)[0] == {RETENTION: 0.1, METHOD: "globalcom2"}


# Options of methods


def test_an_engine_follows_a_methods_options():
    engine = options(globalcom2_retention=0.3, globalcom2_method="globalcom2:preset=default,alpha=0.9")
    assert engine.method == "globalcom2:alpha=0.9"
    torch.manual_seed(0)
    views = Views(torch.randn(4, 16), grid=(2, 2), thumbnail_scores=torch.randn(16))
    ours, other = select(views, 0.3, engine.method), select(views, 0.3)  # as the plugin's model does
    assert torch.equal(ours.crops, select(views, 0.3, alpha=0.9).crops)
    assert not torch.equal(ours.crops, other.crops)
    texts = ("globalcom2:alpha=0.9", "globalcom2:alpha=0.8")
    marks = {options(globalcom2_method=text).mark(Asked(0.3)) for text in texts}
    assert len(marks) == 2


@pytest.mark.parametrize(
    "text",
    [
        "globalcom2:layer=-1",
        "globalcom2:exact=False",
        "globalcom2:preset=published",
        "globalcom2:inside=fastv,inside_layer=2,inside_share=0.5",
        "globalcom2:max_visual_tokens_per_call=64",
    ],
)
def test_what_an_engine_cannot_follow(text):
    with pytest.raises(InputError, match=f"globalcom2_method '{text}' cannot be served: .* must be left out"):
        options(globalcom2_method=text)


def test_a_ratio_by_content_cannot_be_served(tmp_path, capsys):
    with pytest.raises(InputError, match="globalcom2_retention must be a number"):
        options(globalcom2_retention="auto")
    CompressionConfig("auto").save_pretrained(tmp_path)
    err, command = served("mini", "--config", str(tmp_path), capsys=capsys)
    assert command is None
    assert "retention_ratio must be a number in (0, 1] for an engine, got 'auto'" in " ".join(err.split())


# What of `select` an engine follows


@pytest.fixture(scope="module")
def layout():
    """Of a picture of 500x600 px in the mini model."""
    return LlavaNextAdapter().layout(AutoConfig.from_pretrained(FOLDER), 600, 500)


@pytest.mark.parametrize("text", ["", "newlines=none", "newlines=all", "newlines=from_2", "thumbnail_weight=2.5"])
@pytest.mark.parametrize("ratio", [0.03, 0.1, 0.5])
def test_placeholders_are_as_many_as_tokens_stay(text, ratio, layout):
    engine = options(globalcom2_method=f"globalcom2:{text}" if text else "globalcom2")
    torch.manual_seed(0)
    views = Views.of(layout, torch.randn(3, layout.thumbnail_tokens), torch.randn(3, *layout.valid.shape), "logits")
    kept = places_of(engine.select(views, ratio), layout)
    assert kept.sum(1).tolist() == [engine.kept(layout, ratio)] * 3
    told = dict([pair.split("=") for pair in filter(None, [text])])
    told = {name: float(value) if name == "thumbnail_weight" else value for name, value in told.items()}
    direct = places_of(select(views, ratio, **told), layout)
    assert torch.equal(kept, direct)


def test_rules_for_newlines_are_felt(layout):
    torch.manual_seed(0)
    views = Views.of(layout, torch.randn(1, layout.thumbnail_tokens), torch.randn(1, *layout.valid.shape), "logits")
    texts = ("counted", "none", "all", "from_3")
    rules = {text: options(globalcom2_method=f"globalcom2:newlines={text}") for text in texts}
    newlines = {text: int(engine.select(views, 0.1).newlines.sum()) for text, engine in rules.items()}
    assert newlines["none"] == 0 < newlines["from_3"] < newlines["counted"] <= newlines["all"] == layout.line_count
    assert rules["counted"].kept(layout, 0.1) == rules["from_3"].kept(layout, 0.1) == rules["none"].kept(layout, 0.1)
    assert rules["all"].kept(layout, 0.1) > rules["none"].kept(layout, 0.1)


# Scores


def spiky(views, ratio):
    if views.score_type == "similarity":
        raise InputError("score_type must not be similarity here.")
    return Ranking(views.thumbnail_scores, views.scores)


def test_a_method_gets_the_score_that_it_is_defined_on_or_is_refused(monkeypatch):
    with_cls, without = ("logits", "attention", "similarity"), ("similarity",)
    toys.register(monkeypatch, spiky, score="attention")
    told = SimpleNamespace(globalcom2_method="toy")
    assert Options.of(told, with_cls).score(with_cls) == "attention"
    message = (
        "'toy' cannot be served: score must be one of similarity .* got 'attention', on which method 'toy' is defined"
    )
    with pytest.raises(InputError, match=message):
        Options.of(told, without)
    with pytest.raises(InputError, match="score_type must not be similarity here"):
        Options.of(SimpleNamespace(globalcom2_method="toy:score=similarity"), without)
    assert Options.of(SimpleNamespace(), without).score(without) == "similarity"
    assert options(globalcom2_method="globalcom2:score=received").score(SCORE_TYPES) == "received"
    with pytest.raises(InputError, match=r"score must be one of similarity .* got 'received'\. Leave it to the model"):
        Options.of(SimpleNamespace(globalcom2_method="globalcom2:score=received"), without)


def test_what_fits_no_score_of_the_model_is_refused(monkeypatch):
    told = SimpleNamespace(globalcom2_method="toy")
    toys.register(monkeypatch, spiky)
    assert Options.of(told).method == "toy"  # some model may suit it
    assert Options.of(told, ("logits", "similarity")).method == "toy"
    with pytest.raises(InputError, match="'toy' cannot be served: score_type must not be similarity"):
        Options.of(told, ("similarity",))


def test_a_dry_run_as_json(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["serve", "mini", "--retention", "0.3", "--dry-run", "--json", "--port", "9"])
    assert stop.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert found["command"][-2:] == ["--port", "9"]
    assert "--json" not in found["command"]
    assert CompressionConfig.from_dict(found["settings"]) == CompressionConfig(retention_ratio=0.3)
    with pytest.raises(SystemExit) as stop:
        main(["serve", "mini", "--json"])
    assert stop.value.code == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"].startswith("--json must be given with --dry-run")


def test_a_model_that_the_plugin_does_not_know_is_refused(tmp_path, capsys):
    """vLLM would serve it uncompressed, and nobody would notice."""
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Llama4ForConditionalGeneration"]}))
    for more in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as stopped:
            main(["serve", str(tmp_path), "--retention", "0.1", *more])
        assert stopped.value.code == 2
        assert "got Llama4ForConditionalGeneration" in " ".join(capsys.readouterr().err.split())
    assert served(str(tmp_path), "--retention", "1", capsys=capsys)[0][RETENTION] == 1.0
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlavaNextForConditionalGeneration"]}))
    assert served(str(tmp_path), "--retention", "0.1", capsys=capsys)[0][RETENTION] == 0.1
