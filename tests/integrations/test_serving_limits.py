"""Limits in tokens of an engine and of its requests: exact counts, within floor and ceiling. Needs no vLLM."""

import json
import logging
from types import SimpleNamespace

import pytest
from transformers import AutoConfig

from globalcom2 import CompressionConfig, InputError
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.adapters.windows import windows
from globalcom2.cli import main
from globalcom2.core.layout import unpacked
from globalcom2.integrations.vllm import door, serving
from globalcom2.integrations.vllm.options import LIMIT, METHOD, PARTS, PER_REQUEST, RETENTION, Options, in_parts
from globalcom2.mini import FOLDER


def options(**settings) -> Options:
    return Options.of(SimpleNamespace(**settings))


@pytest.fixture(scope="module")
def layouts():
    mini = AutoConfig.from_pretrained(FOLDER)
    made = [LlavaNextAdapter().layout(mini, *size) for size in ((336, 336), (100, 900), (2000, 3))]
    made += [unpacked(grid, (4, 4), thumbnail_last=True) for grid in ((0, 0), (2, 3))]
    return [*made, windows(20, 31)]


def kept(engine: Options, layout, **asked) -> int:
    """What a prompt holds and what the model keeps, which hears of the ratio in whole parts."""
    ratio = engine.ratio_of(layout, engine.asked(asked))
    assert engine.kept(layout, in_parts(ratio) / PARTS) == engine.kept(layout, ratio)
    return engine.kept(layout, ratio)


@pytest.mark.parametrize("rule", ["globalcom2", "globalcom2:newlines=none", "globalcom2:newlines=from_2"])
def test_limits_are_exact(layouts, rule):
    open_, engine_wide = options(globalcom2_floor=0.0001, globalcom2_method=rule), {}
    for layout in layouts:
        whole = len(layout.slots)
        most = open_.kept(layout, 1 - 1e-9)  # less than whole where newlines end no token
        for limit in {1, 2, 7, 64, most // 3, most - 1, most, whole - 1, whole, whole + 1, 10**6} - {0}:
            expected = limit if limit < most else (most if limit < whole else whole)
            assert kept(open_, layout, globalcom2_max_visual_tokens=limit) == expected
            engine = engine_wide.setdefault(limit, options(globalcom2_max_visual_tokens=limit, globalcom2_method=rule))
            assert kept(engine, layout) == expected


def test_ratios_come_through_in_parts_as_they_were():
    assert [in_parts(ratio / 10**6) / PARTS for ratio in (1, 333333, 999999, 10**6)] == [1e-6, 0.333333, 0.999999, 1.0]
    assert in_parts(1 - 1e-16) < PARTS


def test_a_requests_limit_stays_within_floor_and_ceiling(layouts, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    engine = options(globalcom2_retention=0.25, globalcom2_floor=0.1, globalcom2_max_visual_tokens=200)
    layout = layouts[0]
    assert (len(layout.slots), engine.kept(layout, 0.25), engine.kept(layout, 0.1)) == (664, 166, 66)
    assert kept(engine, layout) == 166
    asked = {limit: kept(engine, layout, globalcom2_max_visual_tokens=limit) for limit in (1, 65, 67, 180, 201, 5000)}
    assert asked == {1: 66, 65: 66, 67: 67, 180: 180, 201: 200, 5000: 200}
    assert [line for line in caplog.messages if "ask for 65 visual tokens get those of the engine's floor" in line]
    assert kept(engine, layout, globalcom2_retention=1.0) == 200
    assert kept(engine, layout, globalcom2_retention=0.15, globalcom2_max_visual_tokens=180) == 100
    assert kept(options(globalcom2_retention=0.1), layout, globalcom2_max_visual_tokens=300) == 300
    assert kept(options(), layout, globalcom2_max_visual_tokens=300) == 664  # an engine that never compresses
    assert not options().may_compress
    assert options(globalcom2_max_visual_tokens=300).may_compress


@pytest.mark.parametrize("wrong", [0, -3, 2.5, True, "64 tokens", [64], 10**400 * -1])
def test_a_wrong_limit_is_told(wrong):
    for told in (
        lambda: options(globalcom2_max_visual_tokens=wrong),
        lambda: options(globalcom2_floor=0.1, globalcom2_retention=0.1).asked({LIMIT: wrong}),
    ):
        with pytest.raises(InputError, match="globalcom2_max_visual_tokens must be a whole number of tokens"):
            told()


def test_limits_from_elsewhere(monkeypatch):
    assert options(globalcom2_method="uniform:max_visual_tokens=64") == Options(1.0, 1.0, "uniform", 64)
    assert options(globalcom2_method="uniform:max_visual_tokens=64", globalcom2_max_visual_tokens=32).limit == 32
    monkeypatch.setenv("GLOBALCOM2_MAX_VISUAL_TOKENS", "48")
    monkeypatch.setenv("GLOBALCOM2_PER_REQUEST", "True")
    assert (options().limit, options().per_request) == (48, True)
    with pytest.raises(InputError, match="newlines must not be 'all'"):
        options(globalcom2_method="globalcom2:newlines=all")
    config = CompressionConfig(max_visual_tokens=64)
    assert config.vllm_overrides() == {RETENTION: 1.0, METHOD: "globalcom2", LIMIT: 64}
    assert options(**config.vllm_overrides()).limit == 64


def test_an_engine_may_let_no_request_choose():
    closed = options(globalcom2_retention=0.5, globalcom2_per_request=False)
    assert closed.asked({"size": 3}).ratio == 0.5
    for name, value in ((RETENTION, 0.5), (LIMIT, 64)):
        with pytest.raises(InputError, match=f"must be without {name}, got it: .* --per-request"):
            closed.asked({name: value})
    with pytest.raises(InputError, match=f"{PER_REQUEST} must be true or false, got 'yes'"):
        options(globalcom2_per_request="yes")


def test_a_door_that_is_not_vllms():
    """What passes it: our keys or none, whether requests may choose, and all where vLLM trusts its clients."""
    passed = []
    calls = {may: door.guarded(lambda **given: passed.append(given), may) for may in (True, False)}

    def call(may_ask, given, trust=False, media=None):
        passed.clear()
        calls[may_ask](mm_processor_kwargs=given, media_io_kwargs=media, trust_request_mm_kwargs=trust)
        return passed[0]["mm_processor_kwargs"], passed[0]["media_io_kwargs"]

    ours, other = {RETENTION: 0.5, LIMIT: 9}, {"size": 3}
    assert call(True, ours, media={"image": {}}) == (None, {"image": {}})  # vLLM has nothing left to refuse but media
    assert call(True, None) == call(False, None) == (None, None)
    assert call(False, other) == (other, None)  # for vLLM to refuse
    for may_ask in (True, False):
        assert call(may_ask, {**ours, **other}, trust=True) == ({**ours, **other}, None)
    for wrong in (other, {**ours, **other}, {"globalcom2_floor": 0.1}):
        with pytest.raises(InputError, match="a key of mm_processor_kwargs must be one of"):
            call(True, wrong)
    with pytest.raises(InputError, match=r"must be without globalcom2_retention, got it: .* --per-request"):
        call(False, ours)
    assert not passed


def overrides(*arguments: str, capsys) -> dict:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "mini", *arguments, "--dry-run", "--json"])
    out, err = capsys.readouterr()
    assert stopped.value.code == 0, err
    command = json.loads(out)["command"]
    return json.loads(command[command.index("--hf-overrides") + 1])


def test_serve_takes_a_limit_in_place_of_the_ratio_or_beside_it(tmp_path, capsys):
    rest = {METHOD: "globalcom2", PER_REQUEST: False}
    found = overrides("--max-visual-tokens", "256", capsys=capsys)
    assert found == {RETENTION: 1.0, LIMIT: 256, **rest}
    found = overrides("--max-visual-tokens", "256", "--retention", "0.25", "--per-request", capsys=capsys)
    assert found == {RETENTION: 0.25, LIMIT: 256, **rest, PER_REQUEST: True}
    path = CompressionConfig(max_visual_tokens=64).save_pretrained(tmp_path)
    assert overrides("--config", str(path), capsys=capsys) == {RETENTION: 1.0, LIMIT: 64, **rest}
    assert overrides("--config", str(path), "--max-visual-tokens", "32", capsys=capsys)[LIMIT] == 32
    for wrong in ("0", "-1", "2.5", "many"):
        with pytest.raises(SystemExit) as stopped:
            main(["serve", "mini", "--max-visual-tokens", wrong, "--dry-run"])
        assert stopped.value.code == 2
        assert "--max-visual-tokens" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--trust-request-mm-kwargs", "--trust_request_mm_kwargs", "--trust-request-mm"])
def test_whoever_opens_the_whole_processor_decides_who_may_ask(flag):
    made = serving.command("mini", CompressionConfig(), None, False, [flag])
    assert PER_REQUEST not in json.loads(made[made.index("--hf-overrides") + 1])
    assert made[-1] == flag
