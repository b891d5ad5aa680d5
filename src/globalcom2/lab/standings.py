"""A plot of many methods: one panel per ratio, one line per method, with its interval and its standing."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from globalcom2.lab.labels import is_full, label
from globalcom2.lab.paired import AHEAD, BEHIND, DEFAULT, LEVEL, standing

DPI = 130
LOOKS = {
    AHEAD: ("#0072b2", "^", "ahead of the default"),
    DEFAULT: ("#d55e00", "D", "the default"),
    LEVEL: ("#555555", "o", "level with it"),
    BEHIND: ("#a8a8a8", "v", "behind it"),
    "": ("#555555", "o", "not compared"),
}
"""Colour, marker and words of a standing. They differ in the marker too, for readers who see few colours."""
SHOWN = 0.12
"""A panel begins this far below the default, or below the best method; what is further down is written at its edge."""


def draw_standings(rows: list[dict[str, Any]], path: Path) -> Figure:
    """Draw the accuracy of every method, one panel per ratio below 1.

    Methods have the same line in all panels, in the order of their mean accuracy. A panel shows the range in which good
    methods lie. Those far below are at its left edge, with their figure. A dotted line is what all tokens give.

    Args:
        rows: Rows of `evals.evaluate`, the uncompressed run first.
        path: Where to save the plot; the ending decides the format.

    Returns:
        The matplotlib figure.
    """
    full = next((row for row in rows if is_full(row)), None)
    others = [row for row in rows if not is_full(row)]
    ratios = sorted({row["retention_ratio"] for row in others}, reverse=True)
    names = _order(others)
    figure = Figure(figsize=(2.6 + 2.7 * len(ratios), 1.4 + 0.235 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(ratios), sharey=True, squeeze=False).flat)
    for axis, ratio in zip(panels, ratios, strict=True):
        _panel(axis, [row for row in others if row["retention_ratio"] == ratio], names, full)
        axis.set_title(f"ratio {ratio:g}", fontsize=10)
    _names(panels[0], names, others)
    _legend(figure, panels[0], others)
    figure.savefig(path, dpi=DPI)
    return figure


def _order(rows: list[dict[str, Any]]) -> list[str]:
    """Labels, the best first."""
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(label(row), []).append(row["accuracy"])
    return sorted(found, key=lambda name: -mean(found[name]))


def _panel(axis: Axes, rows: list[dict[str, Any]], names: list[str], full: dict[str, Any] | None) -> None:
    default = next((row for row in rows if standing(row) == DEFAULT), None)
    best = max(row["accuracy"] for row in rows)
    top = max([row["interval"][1] for row in rows] + ([] if full is None else [full["accuracy"]]))
    low = max(0.0, min(best if default is None else default["accuracy"], best) - SHOWN)
    low = max(low, min(row["interval"][0] for row in rows) - 0.01)
    if full is not None:
        axis.axvline(full["accuracy"], color="black", linewidth=0.8, linestyle=":")
    if default is not None:
        axis.axvspan(*default["interval"], color=LOOKS[DEFAULT][0], alpha=0.1, linewidth=0)
    for row in rows:
        y, stands = names.index(label(row)), standing(row)
        color, marker, _ = LOOKS[stands]
        size = 6 if stands == DEFAULT else 4.5
        if row["accuracy"] < low:
            text = f"\N{LEFTWARDS ARROW} {100 * row['accuracy']:.0f}"
            axis.text(0.015, y, text, transform=axis.get_yaxis_transform(), va="center", fontsize=7.5, color="#777777")
            continue
        axis.plot(row["interval"], [y, y], color=color, linewidth=1.6)
        axis.plot(row["accuracy"], y, marker=marker, color=color, markersize=size, label=label(row))
    axis.set_xlim(low, top + 0.04 * (top - low))
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.4g}"))
    axis.set_xlabel("accuracy, %", fontsize=9)
    axis.tick_params(labelsize=8.5)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="both", color="#e9e9e9", linewidth=0.6)
    axis.set_axisbelow(True)


def _names(axis: Axes, names: list[str], rows: list[dict[str, Any]]) -> None:
    """The methods' names beside the first panel, the best on top, the default's in bold."""
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.set_ylim(len(names) - 0.4, -0.6)
    default = {label(row) for row in rows if standing(row) == DEFAULT}
    for text in axis.get_yticklabels():
        if text.get_text() in default:
            text.set_fontweight("bold")


def _legend(figure: Figure, axis: Axes, rows: list[dict[str, Any]]) -> None:
    found = {standing(row) for row in rows}
    handles = [
        axis.plot([], [], color=color, marker=marker, linewidth=1.6, label=f"_{words}")[0]
        for stands, (color, marker, words) in LOOKS.items()
        if stands in found
    ]
    words = [words for stands, (*_, words) in LOOKS.items() if stands in found]
    handles.append(axis.plot([], [], color="black", linewidth=0.8, linestyle=":")[0])
    figure.legend(
        handles, [*words, "all tokens"], loc="outside lower center", ncols=len(handles), fontsize=9, frameon=False
    )
