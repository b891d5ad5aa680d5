"""A plot of many methods, and the page about them: nothing in them is written by hand."""

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex

from globalcom2.core.methods import list_methods
from globalcom2.lab.labels import FULL, label
from globalcom2.lab.paired import standing, with_differences
from globalcom2.lab.plots import draw_eval
from globalcom2.lab.standings import LOOKS

OWNERS = np.repeat(np.arange(50), 4)


@pytest.fixture(scope="module")
def result():
    """All methods at two ratios; each is as good as its place in the list says, and `random` is far below."""
    draw = np.random.default_rng(0).random(200)
    rows = []

    def add(method, ratio, share):
        right = draw < share
        rows.append(
            {
                "method": method,
                "retention_ratio": ratio,
                "options": {},
                "questions": 200,
                "accuracy": float(right.mean()),
                "interval": [float(right.mean()) - 0.02, float(right.mean()) + 0.02],
                "visual_tokens": 340 * ratio,
                "kinds": {"read": float(right[::2].mean()), "count": float(right[1::2].mean())},
                "selection_ms": 1.5 if ratio < 1 else None,
                "selection_share": 0.01 if ratio < 1 else None,
                "right": "".join(str(int(hit)) for hit in right),
            }
        )

    add(FULL, 1.0, 0.97)
    for ratio, best in ((0.25, 0.96), (0.1, 0.93)):
        for place, name in enumerate(list_methods()):
            add(name, ratio, 0.4 if name == "random" else best - 0.02 * place)
    return {"runs": with_differences(rows, OWNERS), "pictures": 50}


def test_every_method_has_a_line_in_every_panel(result, tmp_path):
    figure = draw_eval(result["runs"], tmp_path / "a.png")
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert sorted(names) == list_methods()
    assert [text.get_text() for text in figure.axes[0].get_yticklabels() if text.get_fontweight() == "bold"] == [
        "globalcom2"
    ]
    assert [axis.get_title() for axis in figure.axes] == ["ratio 0.25", "ratio 0.1"]
    for axis, ratio in zip(figure.axes, (0.25, 0.1), strict=True):
        own = {label(row): row for row in result["runs"] if row["retention_ratio"] == ratio}
        points = {line.get_label(): line for line in axis.lines if line.get_label() in own}
        low, high = axis.get_xlim()
        for name, row in own.items():
            assert (name in points) == (row["accuracy"] >= low)
            if name in points:
                assert points[name].get_xdata() == [row["accuracy"]]
                assert points[name].get_ydata() == [names.index(name)]
                assert to_hex(points[name].get_color()) == LOOKS[standing(row)][0]
        gone = [text for text in axis.texts if names[round(text.get_position()[1])] == "random"]
        assert [text.get_text() for text in gone] == ["\N{LEFTWARDS ARROW} " + f"{100 * own['random']['accuracy']:.0f}"]
        assert high > result["runs"][0]["accuracy"]


def test_names_do_not_cover_each_other(result, tmp_path):
    figure = draw_eval(result["runs"], tmp_path / "a.png")
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.axes[0].get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.fixture(scope="module")
def compared():
    path = Path(__file__).parents[2] / "benchmarks" / "compared.py"
    spec = importlib.util.spec_from_file_location("compared", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_names_the_winners_of_the_result(result, compared):
    at = [row for row in result["runs"] if row["retention_ratio"] == 0.1]
    default = next(row for row in at if row["method"] == "globalcom2")
    best = max(at, key=lambda row: row["accuracy"])
    place = 1 + sum(row["accuracy"] > default["accuracy"] for row in at)
    words = compared.in_words(result)
    assert f"place {place} of {len(at)}. The highest figure is that of {best['method']}" in words
    ahead = [row for row in at if standing(row) == "ahead"]
    behind = [row for row in at if standing(row) == "behind"]
    assert ahead
    (cells,) = (line for line in compared.who_wins(result).splitlines() if line.startswith("| 0.1 |"))
    _, _, named, level, count, _ = (cell.strip() for cell in cells.split("|"))
    assert named == "; ".join(f"{row['method']} {100 * row['difference']:+.1f}" for row in ahead)
    assert count == str(len(behind))
    assert not set(level.split()) & {row["method"] for row in ahead + behind}


def test_every_method_has_a_paragraph_and_a_row(result, compared):
    paragraphs, table = compared.each(result), compared.standings(result)
    for name in list_methods():
        assert f"### `{name}`" in paragraphs
        assert table.count(f"| {'**globalcom2**' if name == 'globalcom2' else name} |") == 1
    assert paragraphs.index("### `globalcom2`") < paragraphs.index("### `divprune`") < paragraphs.index("### `random`")


def test_what_reads_more_is_not_among_the_winners(result, compared):
    more = {
        **result["runs"][-1],
        "method": FULL,
        "options": {"inside": "fastv"},
        "accuracy": 1.0,
        "visual_tokens": 200.0,
    }
    found = {**result, "runs": [*result["runs"], {**more, "difference": None, "difference_interval": None}]}
    assert "fastv" not in compared.in_words(found) + compared.who_wins(found)
    assert "| all tokens, inside=fastv | - | 100.0% with 200 tokens |" in compared.standings(found)
