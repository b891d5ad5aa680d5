"""The benchmark measures what it says; how fast this machine is, is no test."""

import json

import pytest
import torch
from PIL import Image

from command import call
from globalcom2 import compress
from globalcom2.lab import bench, plots
from globalcom2.lab.estimates import estimate_costs
from globalcom2.lab.labels import FULL, is_full, label
from tiny import footprint

PLAN = bench.Plan(image=(168, 168), text_tokens=6, new_tokens=2, rounds=2)


def test_rows(tiny):
    settings = bench.settings_of(["globalcom2", "uniform"], [1.0, 0.25], [1, 2])
    assert [(s.method, s.retention_ratio, s.batch_size) for s in settings] == [
        (FULL, 1.0, 1), ("globalcom2", 0.25, 1), ("uniform", 0.25, 1), (FULL, 1.0, 2), ("globalcom2", 0.25, 2), ("uniform", 0.25, 2),
    ]  # fmt: skip
    seen = []
    rows = bench.measure(tiny.model, settings, PLAN, lambda steps: seen.extend(steps) or seen)
    assert seen == [0, 1, 2]
    predicted = estimate_costs(tiny.model.config, (168, 168), [0.25], text_tokens=6)[0]
    for setting, row in zip(settings, rows, strict=True):
        assert (row["method"], row["batch_size"]) == (setting.method, setting.batch_size)
        assert row["visual_tokens"] == (192 if setting.method == FULL else predicted["visual_tokens"])
        phases = sum(row[f"{phase}_seconds"] for phase in ("tower", "selection", "projection", "prefill"))
        assert phases == pytest.approx(row["ttft_seconds"], rel=0.5)
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] > 1e6
        assert row["share_of_flops"] == pytest.approx(1 if setting.method == FULL else predicted["share_of_whole"])
        if setting.method != FULL:
            assert row["predicted_speedup"] == predicted["speedup"] < 1 / row["share_of_flops"]
        assert (row["predicted_speedup"] == 1) == (setting.method == FULL)


def test_phases_of_an_uncompressed_call_are_timed_inside_it(tiny, monkeypatch):
    """The tower sleeps 50 ms, everything else takes no time: figures of one call add up, whatever other calls took."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])  # the clock of reports reads it too

    def sleeping(*_):
        now[0] += 0.05 * (1 + len(calls))
        calls.append(None)

    calls = []
    hook = tiny.model.model.vision_tower.register_forward_pre_hook(sleeping)
    before = footprint(tiny.model)
    inputs = bench.random_inputs(tiny.model, PLAN, 1)
    sample = bench._sample(tiny.model, inputs, bench.BenchSetting(FULL, 1.0, 1), PLAN)
    assert footprint(tiny.model) == before
    hook.remove()
    assert len(calls) == 2  # one per generate: nothing is run a second time to be timed
    assert sample["ttft_seconds"] == pytest.approx(0.05)
    assert min(value for name, value in sample.items() if name != "decode_seconds_per_token") >= 0
    assert sample["decode_seconds_per_token"] == pytest.approx(0.05 / PLAN.new_tokens)


def test_noise_gives_no_negative_phase():
    names = ("ttft", "tower", "selection", "projection", "prefill")
    sample = dict.fromkeys((f"{name}_seconds" for name in names), 1.0) | {"visual_tokens": 3.0}
    sample |= {"prefill_seconds": -1.532, "decode_seconds_per_token": -0.001}
    row = bench._row(bench.BenchSetting(FULL, 1.0, 1), [sample], None)
    assert row["prefill_seconds"] is row["decode_seconds_per_token"] is None
    assert row["projection_seconds"] == 1.0


def test_old_results_with_another_word_are_drawn_and_labelled_alike(tmp_path):
    phases = {f"{name}_seconds": 0.1 for name in plots.PHASES} | {"prefill_seconds": None, "ttft_seconds": 0.3}
    rows = [
        {"method": name, "retention_ratio": 1.0, "batch_size": 1, "speedup": 1.0, **phases} for name in ("none", FULL)
    ]
    assert [label(row) for row in rows] == [FULL, FULL]
    assert all(map(is_full, rows))
    assert not is_full({"method": "uniform"})
    plots.draw_bench(rows[:1], tmp_path / "old.png")
    assert Image.open(tmp_path / "old.png").width > 300


def test_random_prompts_hold_the_images_that_they_say(tiny):
    inputs = bench.random_inputs(tiny.model, PLAN, 3)
    with compress(tiny.model, 0.25) as compression, torch.no_grad():
        tiny.model(**inputs)
    assert [image.row for image in compression.report] == [0, 1, 2]
    assert inputs["input_ids"].shape == (3, 192 + 6)


def test_attention_is_compared_and_restored(tiny):
    before = footprint(tiny.model)
    seconds = bench.compare_attention(tiny.model, PLAN)
    assert set(seconds) == {"plain_seconds", "tapped_seconds", "output_attentions_seconds"}
    assert tiny.model.model.vision_tower.config._attn_implementation == "sdpa"
    assert [entry[:4] for entry in footprint(tiny.model)] == [entry[:4] for entry in before]


def test_table_shows_every_figure_on_80_columns(capsys, monkeypatch):
    from globalcom2.cli.bench import print_bench

    monkeypatch.setenv("COLUMNS", "80")
    seconds = {"ttft": 23.4567, "tower": 12.3, "selection": 0.0041, "prefill": 11.2}
    row = {f"{name}_seconds": value for name, value in seconds.items()}
    row |= {"method": "globalcom2:alpha=0.5", "retention_ratio": 0.25, "visual_tokens": 2928, "ttft_spread": 0.1}
    row |= {
        "decode_seconds_per_token": 0.0415,
        "peak_memory_bytes": 99_999 * 2**20,
        "speedup": 2.14,
        "predicted_speedup": 12.61,
    }
    rows = [row | {"batch_size": size} for size in (1, 16)]
    print_bench({"model": "m", "device": "cpu", "dtype": "float32", "image": "672x672", "rounds": 5, "rows": rows})
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "noise" not in out
    for figure in ("0.25", "16", "2928", "23,457", "12,300", "4.1", "41.5", "99,999", "2.14x", "12.61x"):
        assert figure in out.replace("\n", " ").split(), out


def test_table_has_a_dash_for_a_phase_without_a_figure(capsys):
    from globalcom2.cli.bench import print_bench

    names = ("ttft_seconds", "tower_seconds", "selection_seconds", "speedup", "predicted_speedup", "ttft_spread")
    row = dict.fromkeys(names, 1.0) | {"method": "none", "retention_ratio": 1.0, "visual_tokens": 7, "batch_size": 1}
    row |= {"peak_memory_bytes": None, "prefill_seconds": None, "decode_seconds_per_token": None}
    print_bench({"model": "m", "device": "cpu", "dtype": "float32", "image": "6x6", "rounds": 1, "rows": [row]})
    out = capsys.readouterr().out
    assert "all tokens" in out
    assert out.split().count("-") == 3
    assert "noise made negative" in out


def test_command(capsys, tmp_path):
    arguments = ["bench", "--rounds", "1", "--new-tokens", "1", "--retention", "0.1", "--plot", str(tmp_path / "b.png")]
    code, out, err = call(capsys, *arguments, "--json")
    assert code == 0, err
    result = json.loads(out)
    assert {"command", "commit", "model", "device", "dtype", "rows", "versions", "hardware", "date"} <= set(result)
    keys = "method retention_ratio batch_size ttft_seconds tower_seconds selection_seconds prefill_seconds peak_memory_bytes"
    assert set(keys.split()) <= set(result["rows"][1])
    assert Image.open(tmp_path / "b.png").width > 300
    code, out, _ = call(capsys, *arguments, "--compare", "eager")
    assert code == 0
    assert "tapped" in out
    assert "{" not in out
    for wrong, message in (
        (["--compare", "flash"], "--compare must be"),
        (["--method", "x"], "method must be"),
        (["--image", "1"], "WIDTHxHEIGHT"),
    ):
        code, out, err = call(capsys, "bench", *wrong)
        assert (code, out) == (2, "")
        assert message in err
