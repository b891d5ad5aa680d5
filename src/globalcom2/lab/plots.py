"""Plots of evaluations, analyses and benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from globalcom2.lab.labels import label

COLORS = ("#c44e52", "#4c72b0", "#8c8c8c", "#55a868", "#dd8452", "#8172b3")
PHASES = {"tower": "#4c72b0", "selection": "#c44e52", "projection": "#55a868", "prefill": "#dd8452"}
"""What a time to first token is made of, in order, with the colours of the plot."""


def draw_eval(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against visual tokens, one line per method with its 95 % band.

    The first panel shows all questions, the others one kind of question each.

    Args:
        rows: Rows of `evals.evaluate`, the uncompressed run first.
        path: Where to save the plot; the ending decides the format.
    """
    kinds = list(rows[0]["kinds"])
    counts = sorted({round(row["visual_tokens"]) for row in rows})
    # The counts that were measured, as far as they do not crowd each other.
    ticks = [a for a, b in zip(counts, [*counts[1:], 2 * counts[-1]], strict=True) if b > 1.4 * a]
    figure, axes = _figure(len(kinds) + 1)
    for axis, kind in zip(axes, [None, *kinds], strict=False):
        for number, method in enumerate(dict.fromkeys(label(row) for row in rows[1:])):
            points = [rows[0], *(row for row in rows if label(row) == method)]
            color = COLORS[number % len(COLORS)]
            tokens = [row["visual_tokens"] for row in points]
            low, high = zip(*(_interval(row, kind) for row in points), strict=True)
            axis.plot(tokens, [_accuracy(row, kind) for row in points], "o-", color=color, label=method, markersize=3)
            axis.fill_between(tokens, low, high, color=color, alpha=0.15, linewidth=0)
        axis.axhline(_accuracy(rows[0], kind), color="black", linewidth=0.8, linestyle=":")
        axis.set_xscale("log")
        axis.minorticks_off()
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set_title(kind or "all questions", fontsize=10)
        axis.set_xlabel("visual tokens per image", fontsize=8)
    _finish(figure, axes, path)


def draw_analysis(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy, one bar per condition with its 95 % interval.

    Args:
        rows: Rows of `analysis.analyze_views`.
        path: Where to save the plot; the ending decides the format.
    """
    figure = Figure(figsize=(7, 0.8 + 0.45 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = [f"{row['condition']} ({row['visual_tokens']:.0f} tokens)" for row in rows]
    values = [row["accuracy"] for row in rows]
    errors = [[value - row["interval"][0] for value, row in zip(values, rows, strict=True)]]
    errors += [[row["interval"][1] - value for value, row in zip(values, rows, strict=True)]]
    axis.barh(names, values, xerr=[[max(0.0, e) for e in side] for side in errors], color=COLORS[1], capsize=3)
    axis.invert_yaxis()
    axis.set_xlabel("accuracy")
    figure.savefig(path, dpi=110)


def draw_bench(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw the time to first token by phase as stacked bars, one bar per row.

    Args:
        rows: Rows of `lab.bench.measure`, also of an older file; a phase without a figure has no bar.
        path: Where to save the plot; the ending decides the format.
    """
    figure = Figure(figsize=(7, 1.2 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    names = [f"{label(r)} {r['retention_ratio']:g}, batch {r['batch_size']}" for r in rows]
    left = [0.0] * len(rows)
    for phase, color in PHASES.items():
        values = [row[f"{phase}_seconds"] or 0.0 for row in rows]
        axis.barh(names, values, left=left, label=phase, color=color)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for y, row in enumerate(rows):
        axis.text(left[y], y, f" {row['speedup']:.2f}x", va="center", fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("seconds to the first token")
    axis.set_xlim(0, 1.12 * max(left))
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=110)


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    cols = min(4, panels)
    rows = -(-panels // cols)
    figure = Figure(figsize=(3.1 * cols, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, cols, squeeze=False).flat)


def _finish(figure: Figure, axes: list[Axes], path: Path) -> None:
    for axis in axes:
        if not axis.lines:
            axis.set_axis_off()
        axis.set_ylim(0, 1.02)
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("accuracy")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8)
    figure.savefig(path, dpi=110)


def _accuracy(row: dict[str, Any], kind: str | None) -> float:
    return float(row["accuracy"] if kind is None else row["kinds"][kind])


def _interval(row: dict[str, Any], kind: str | None) -> tuple[float, float]:
    low, high = row["interval"] if kind is None else row["kind_intervals"][kind]
    return low, high
