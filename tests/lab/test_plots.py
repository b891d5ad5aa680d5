"""Plots show what results say, in the range in which methods differ."""

import json
from pathlib import Path

import pytest
from PIL import Image

from globalcom2.lab.labels import FULL, label
from globalcom2.lab.plots import FAR, draw_analysis, draw_bench, draw_eval, draw_summary

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def evaluation():
    found = result("mini-eval")
    few = (FULL, "globalcom2", "globalcom2, paper", "uniform", "random")  # as the page's plot has
    return {**found, "runs": [row for row in found["runs"] if label(row) in few]}


def lines_of(axis):
    return {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}


def legends_over_axes(figure):
    """Pairs of a legend and axes that it covers."""
    renderer = figure.canvas.get_renderer()
    legends = [*figure.legends, *(axis.get_legend() for axis in figure.axes if axis.get_legend())]
    assert legends
    boxes = [axis.get_window_extent(renderer) for axis in figure.axes if axis.axison]
    return [(a, b) for a in (legend.get_window_extent(renderer) for legend in legends) for b in boxes if a.overlaps(b)]


def test_lines_are_those_of_the_result(evaluation, tmp_path):
    rows = evaluation["runs"]
    figure = draw_eval(rows, tmp_path / "a.png")
    axis = next(axis for axis in figure.axes if axis.get_title() == "count")
    for method, line in lines_of(axis).items():
        own = [row for row in rows if label(row) == method] + rows[:1]
        assert sorted(zip(*line.get_data(), strict=True)) == sorted(
            (r["visual_tokens"], r["kinds"]["count"]) for r in own
        )
    assert set(lines_of(axis)) == {label(row) for row in rows[1:]}
    assert Image.open(tmp_path / "a.png").width > 1000


def test_panels_end_where_the_near_methods_end(evaluation, tmp_path):
    figure = draw_eval(evaluation["runs"], tmp_path / "a.png")
    assert legends_over_axes(figure) == []
    for axis in (axis for axis in figure.axes if axis.lines):
        bottom, top = axis.get_ylim()
        near = [y for method, line in lines_of(axis).items() if method != "random" for y in line.get_ydata()]
        assert bottom < min(near) <= max(near) < top
        assert top - bottom < 2 * (max(near) - min(near)), "most of the panel is empty"
        random = lines_of(axis)["random"]
        assert random.get_color() == FAR
        lowest = min(random.get_ydata())
        notes = [text.get_text() for text in axis.texts]
        fewest = min(row["visual_tokens"] for row in evaluation["runs"])
        assert notes == ([f"random: {lowest:.0%} at {fewest:.0f} tokens"] if lowest < bottom else [])


def rows_of(values):
    """An evaluation without intervals: accuracies of each method at 10 and 50 tokens, and 1.0 at 100."""

    def row(method, tokens, accuracy):
        more = {"interval": [accuracy] * 2, "kinds": {"请": accuracy}, "kind_intervals": {"请": [accuracy] * 2}}
        return {"method": method, "visual_tokens": tokens, "accuracy": accuracy, **more}

    return [
        row("all tokens", 100, 1.0),
        *(row(method, tokens, own[i]) for method, own in values.items() for i, tokens in enumerate((10, 50))),
    ]


@pytest.mark.parametrize(
    "values",
    [{"a": (0.5, 0.9)}, {"a": (1.0, 1.0), "b": (1.0, 1.0)}, {"a": (0.0, 0.0)}, {"a": (0.2, 0.9), "b": (0.1, 0.3)}],
)
def test_odd_results_have_a_plot(values, tmp_path):
    figure = draw_eval(rows_of(values), tmp_path / "a.svg")
    low, high = figure.axes[0].get_ylim()
    assert low < high
    assert low <= values["a"][0]


def test_the_summary_has_accuracy_and_time(evaluation, tmp_path):
    benches = [result("bench-7b-h200"), result("bench-86m-cpu")]
    figure = draw_summary(evaluation, benches, tmp_path / "a.png")
    assert legends_over_axes(figure) == []
    left, right = figure.axes
    rows = evaluation["runs"]
    at = dict(zip(*lines_of(left)["globalcom2"].get_data(), strict=True))
    for row in (row for row in rows if label(row) == "globalcom2"):
        assert at[row["visual_tokens"]] == pytest.approx(row["accuracy"] / rows[0]["accuracy"])
    for bench in benches:
        for size in {row["batch_size"] for row in bench["rows"]}:
            own = {row["retention_ratio"]: row["ttft_seconds"] for row in bench["rows"] if row["batch_size"] == size}
            name = f"{bench['model']}, {bench['hardware']}, batch of {size}: "
            (line,) = [line for text, line in lines_of(right).items() if text.startswith(name)]
            shares = dict(zip(*line.get_data(), strict=True))
            assert shares == pytest.approx({ratio: seconds / own[1.0] for ratio, seconds in own.items()})
    assert "random weights" in right.get_title()


def test_bars_of_a_benchmark_are_its_seconds(tmp_path):
    rows = result("bench-7b-h200")["rows"]
    figure = draw_bench(rows, tmp_path / "a.png")
    assert legends_over_axes(figure) == []
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["batch of 1", "batch of 4", "batch of 16"]
    for axis, size in zip(figure.axes, (1, 4, 16), strict=True):
        own = [row for row in rows if row["batch_size"] == size]
        ends = [text.get_position()[0] for text in axis.texts]
        assert ends == pytest.approx([row["ttft_seconds"] for row in own], rel=0.05)  # phases add up to it
        assert [text.get_text().split()[-1] for text in axis.texts] == [f"{row['speedup']:.2f}x" for row in own]


def test_bars_of_an_analysis_are_its_accuracies(tmp_path):
    rows = result("mini-analysis")["runs"]
    figure = draw_analysis(rows, tmp_path / "a.png")
    (axis,) = figure.axes
    assert [bar.get_width() for bar in axis.patches] == [row["accuracy"] for row in rows]
    box = axis.get_window_extent()
    assert all(text.get_window_extent().x1 <= box.x1 for text in axis.texts)
