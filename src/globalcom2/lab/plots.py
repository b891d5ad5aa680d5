"""Plots of evaluations, analyses and benchmarks. Axes show the range in which methods differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from globalcom2.lab.labels import is_full, label
from globalcom2.lab.lettering import lettering
from globalcom2.lab.standings import draw_standings

DPI = 130
COLORS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
"""Methods differ in both, for readers who see few colours."""
FAR = "#8c8c8c"
"""Colour of methods that lie far below the others."""
FAR_BELOW = 0.85
"""A method is far below where it has less than this part of the best one's accuracy, at a middle number of tokens."""
PHASES = {"tower": "#0072b2", "selection": "#d55e00", "projection": "#009e73", "prefill": "#e69f00"}
"""What a time to first token is made of, in order, with the colours of the plot."""


def draw_eval(rows: list[dict[str, Any]], path: Path) -> Figure:
    """Draw accuracy against visual tokens, one line per method with its 95 % band.

    The first panel shows all questions, the others one kind of question each. A panel ends just below the lowest point of
    the methods that are near each other; one that lies far below them leaves it, and a note tells where to. More methods than
    there are colours are drawn by `draw_standings`.

    Args:
        rows: Rows of `evals.evaluate`, the uncompressed run first.
        path: Where to save the plot; the ending decides the format.

    Returns:
        The matplotlib figure.
    """
    if len(_lines(rows, None)) > len(COLORS):
        return draw_standings(rows, path)
    kinds = list(rows[0]["kinds"])
    figure, axes = _figure(len(kinds) + 1)
    far = _far_below(_lines(rows, None))
    for axis, kind in zip(axes, [None, *kinds], strict=False):
        lines = _lines(rows, kind)
        for number, (method, points) in enumerate(lines.items()):
            color = FAR if method in far else COLORS[number % len(COLORS)]
            tokens, values, low, high = zip(*points, strict=True)
            marker = MARKERS[number % len(MARKERS)]
            axis.plot(tokens, values, color=color, marker=marker, markersize=3.5, linewidth=1.4, label=method)
            axis.fill_between(tokens, low, high, color=color, alpha=0.15, linewidth=0)
        full = _accuracy(rows[0], kind)
        axis.axhline(full, color="black", linewidth=0.8, linestyle=":")
        _zoom(axis, lines, far, full)
        _token_axis(axis, rows)
        heading, font = lettering(kind or "all questions", 34)
        axis.set_title(heading, size=10, **font)
    for axis in axes[len(kinds) + 1 :]:
        axis.set_axis_off()
    _legend_below(figure, axes[0])
    figure.savefig(path, dpi=DPI)
    return figure


def draw_summary(evaluation: dict[str, Any], benches: Sequence[dict[str, Any]], path: Path) -> Figure:
    """Draw accuracy against visual tokens, and beside it the time to the first token against the ratio.

    Args:
        evaluation: A result of `globalcom2 eval`: its `model`, and its `runs` with the uncompressed one first.
        benches: Results of `globalcom2 bench`, each with its `rows`, `model`, `weights` and `hardware`.
        path: Where to save the plot; the ending decides the format.

    Returns:
        The matplotlib figure.
    """
    rows = evaluation["runs"]
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    lines = _lines(rows, None)
    far, full = _far_below(lines), _accuracy(rows[0], None)
    for number, (method, points) in enumerate(lines.items()):
        color = FAR if method in far else COLORS[number % len(COLORS)]
        kept = [(tokens, value / full) for tokens, value, _, _ in points]
        left.plot(*zip(*kept, strict=True), color=color, marker=MARKERS[number % len(MARKERS)], label=method)
    relative = {m: [(t, v / full, low / full, high / full) for t, v, low, high in p] for m, p in lines.items()}
    _zoom(left, relative, far, 1.0)
    _token_axis(left, rows)
    left.axhline(1, color="black", linewidth=0.8, linestyle=":")
    left.set_title(f"Accuracy kept, model: {evaluation['model']}", fontsize=11)
    left.set_ylabel("of the accuracy with all tokens")
    for number, (name, times) in enumerate(_times(benches).items()):
        ratios = sorted(times)
        share = [times[ratio] / times[1.0] for ratio in ratios]
        text = f"{name}: {_seconds(times[1.0])} to {_seconds(times[ratios[0]])}"
        right.plot(ratios, share, color=COLORS[number % len(COLORS)], marker=MARKERS[number % len(MARKERS)], label=text)
    random = all(bench.get("weights") == "random" for bench in benches)
    right.set_title("Time to the first token" + (", random weights" if random else ""), fontsize=11)
    _ratio_axis(right, sorted({ratio for times in _times(benches).values() for ratio in times}))
    for axis in (left, right):
        axis.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4 if axis is left else 1, fontsize=8.5, frameon=False
        )
    figure.savefig(path, dpi=DPI)
    return figure


def draw_analysis(rows: list[dict[str, Any]], path: Path) -> Figure:
    """Draw accuracy, one bar per condition with its 95 % interval.

    Args:
        rows: Rows of `analysis.analyze_views`.
        path: Where to save the plot; the ending decides the format.

    Returns:
        The matplotlib figure.
    """
    figure = Figure(figsize=(7.4, 0.9 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = [f"{row['condition']} ({row['visual_tokens']:.0f} tokens)" for row in rows]
    values = [row["accuracy"] for row in rows]
    errors = [[value - row["interval"][0] for value, row in zip(values, rows, strict=True)]]
    errors += [[row["interval"][1] - value for value, row in zip(values, rows, strict=True)]]
    axis.barh(names, values, xerr=[[max(0.0, e) for e in side] for side in errors], color=COLORS[1], capsize=3)
    for y, row in enumerate(rows):
        axis.text(row["interval"][1] + 0.015, y, f"{row['accuracy']:.1%}", va="center", fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.12)
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axis.set_xlabel("accuracy, with 95 % intervals")
    _plain(axis, "x")
    figure.savefig(path, dpi=DPI)
    return figure


def draw_bench(rows: list[dict[str, Any]], path: Path) -> Figure:
    """Draw the time to first token by phase as stacked bars, one bar per row and one panel per batch size.

    Args:
        rows: Rows of `lab.bench.measure`, also of an older file; a phase without a figure has no bar.
        path: Where to save the plot; the ending decides the format.

    Returns:
        The matplotlib figure.
    """
    sizes = list(dict.fromkeys(row["batch_size"] for row in rows))
    panels = [[row for row in rows if row["batch_size"] == size] for size in sizes]
    figure = Figure(figsize=(7.4, 0.7 + sum(0.75 + 0.3 * len(panel) for panel in panels)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[1.5 + len(panel) for panel in panels])[:, 0]
    for axis, size, panel in zip(axes, sizes, panels, strict=True):
        names = [label(row) if is_full(row) else f"{label(row)}, {row['retention_ratio']:g}" for row in panel]
        left = [0.0] * len(panel)
        places = range(len(panel))  # not the names: two rows may have the same
        for phase, color in PHASES.items():
            values = [row[f"{phase}_seconds"] or 0.0 for row in panel]
            axis.barh(places, values, left=left, label=phase, color=color)
            left = [a + b for a, b in zip(left, values, strict=True)]
        for y, row in enumerate(panel):
            axis.text(left[y], y, f" {_seconds(row['ttft_seconds'])}, {row['speedup']:.2f}x", va="center", fontsize=8.5)
        axis.set_yticks(places, names, fontsize=9)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.25 * max(left))
        axis.set_title(f"batch of {size}", loc="left", fontsize=10)
        _plain(axis, "x")
    axes[-1].set_xlabel("seconds to the first token; how many times as fast as with all tokens")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(PHASES), fontsize=9, frameon=False)
    figure.savefig(path, dpi=DPI)
    return figure


Point = tuple[float, float, float, float]
"""Visual tokens, accuracy, and the ends of its interval."""


def _lines(rows: list[dict[str, Any]], kind: str | None) -> dict[str, list[Point]]:
    """The points of each method by rising tokens, the uncompressed run last in all of them."""
    lines: dict[str, list[Point]] = {}
    for row in rows[1:]:
        lines.setdefault(label(row), []).append((row["visual_tokens"], _accuracy(row, kind), *_interval(row, kind)))
    full = (rows[0]["visual_tokens"], _accuracy(rows[0], kind), *_interval(rows[0], kind))
    return {method: sorted({*points, full}) for method, points in lines.items()}


def _far_below(lines: dict[str, list[Point]]) -> set[str]:
    """Methods whose line lies far below the best one, judged at the middle of the measured numbers of tokens."""
    counts = sorted({point[0] for points in lines.values() for point in points})
    if len(lines) < 2:
        return set()
    middle = counts[(len(counts) - 1) // 2]
    values = {method: point[1] for method, points in lines.items() for point in points if point[0] == middle}
    best = max(values.values())
    return {method for method, value in values.items() if value < FAR_BELOW * best}


def _zoom(axis: Axes, lines: dict[str, list[Point]], far: set[str], full: float) -> None:
    """End the panel just below the lowest interval that matters, and tell where lines go that leave it."""
    near = [point for method, points in lines.items() if method not in far for point in points]
    low, high = min(point[2] for point in near), max(full, *(point[3] for point in near))
    margin = max(0.08 * (high - low), 0.005)
    axis.set_ylim(max(0.0, low - margin), min(high + margin, 1.02 * max(high, 1.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}%"))
    gone = [(method, min(lines[method])) for method in far if min(lines[method])[1] < low - margin]
    if gone:
        note = "\n".join(f"{method}: {point[1]:.0%} at {point[0]:.0f} tokens" for method, point in sorted(gone))
        axis.text(0.97, 0.04, note, transform=axis.transAxes, ha="right", va="bottom", fontsize=8, color="#555555",
                  bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5})  # fmt: skip


def _token_axis(axis: Axes, rows: list[dict[str, Any]]) -> None:
    counts = sorted({round(row["visual_tokens"]) for row in rows})
    # The counts that were measured, as far as they do not crowd each other.
    ticks = [a for a, b in zip(counts, [*counts[1:], 2 * counts[-1]], strict=True) if b > 1.4 * a]
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xlabel("visual tokens per image", fontsize=9)
    _plain(axis)


def _ratio_axis(axis: Axes, ratios: list[float]) -> None:
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(ratios, [f"{ratio:g}" for ratio in ratios])
    axis.set_xlabel("retention_ratio", fontsize=9)
    axis.set_ylabel("of the time with all tokens")
    axis.set_ylim(0, 1.05)
    axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _plain(axis)


def _times(benches: Sequence[dict[str, Any]]) -> dict[str, dict[float, float]]:
    """Seconds to the first token by ratio, for each model, machine and batch size."""
    times: dict[str, dict[float, float]] = {}
    for bench in benches:
        for row in bench["rows"]:
            name = f"{bench['model']}, {bench['hardware']}, batch of {row['batch_size']}"
            times.setdefault(name, {})[row["retention_ratio"]] = row["ttft_seconds"]
    return times


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def _plain(axis: Axes, grid: Literal["x", "both"] = "both") -> None:
    axis.tick_params(labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=grid, color="#e3e3e3", linewidth=0.6)
    axis.set_axisbelow(True)


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    cols = min(4, panels)
    rows = -(-panels // cols)
    figure = Figure(figsize=(3.1 * cols, 2.7 * rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, cols, squeeze=False).flat)


def _legend_below(figure: Figure, axis: Axes) -> None:
    axis.set_ylabel("accuracy")
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), fontsize=9, frameon=False)


def _accuracy(row: dict[str, Any], kind: str | None) -> float:
    return float(row["accuracy"] if kind is None else row["kinds"][kind])


def _interval(row: dict[str, Any], kind: str | None) -> tuple[float, float]:
    low, high = row["interval"] if kind is None else row["kind_intervals"][kind]
    return low, high
