"""The tables of `globalcom2 eval`: one block per ratio, the best method first, with its distance to the default."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from globalcom2.cli.output import figures_console, runs_table
from globalcom2.lab.labels import is_full, label, percent
from globalcom2.lab.paired import AHEAD, BEHIND, DEFAULT, is_default, standing

STYLES = {AHEAD: "green", BEHIND: "red", DEFAULT: "bold"}
INTERVAL = "95 % interval"
DIFFERENCE = ("minus default", "")
WIDE = 100
"""Columns of a terminal that has room for the interval of the accuracy, too."""


def print_eval(result: dict[str, Any]) -> None:
    """Print the runs of an evaluation.

    Args:
        result: What `globalcom2 eval` found, also by an older version.
    """
    rows, console = result["runs"], figures_console()
    title = f"{result['model']} on {result['dataset']}: {result['pictures']} images, {rows[0]['questions']} questions"
    console.print(title, style="bold", highlight=False)
    compared = any(row.get("difference") is not None for row in rows)
    for block in blocks(rows):
        console.print(_block(block, console.width >= WIDE, compared))
    console.print("Accuracy per kind of question, %", highlight=False)
    for block in blocks(rows):
        console.print(_kinds(block))
    console.print(" ".join(_remarks(rows, compared)), highlight=False)


def _remarks(rows: list[dict[str, Any]], compared: bool) -> list[str]:
    """What the columns say, as far as these rows need it."""
    inside = any(row.get("options", {}).get("inside") for row in rows)
    mean = ", the mean over the language model's layers" if inside else ""
    found = [f"tokens: per image, newlines included{mean}.", "all: accuracy, %."]
    if compared:
        found.append(
            "minus default: paired difference to the default method at this ratio in points, 95 % interval over images; "
            "level where that holds 0; empty where more tokens were read."
        )
    elif not all(is_full(row) or is_default(row) for row in rows):
        found.append("For differences to the default add --method globalcom2.")
    found.append("ms: selection per image. share: its part of the time to the first token.")
    return [*found, "nl: newlines."] if any("nl=" in short_label(row) for row in rows) else found


def blocks(rows: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows of each ratio, in the order of the result, the best first."""
    ratios = dict.fromkeys(row["retention_ratio"] for row in rows)
    own = ([row for row in rows if row["retention_ratio"] == ratio] for ratio in ratios)
    return [sorted(block, key=lambda row: -row["accuracy"]) for block in own]


def _block(rows: list[dict[str, Any]], wide: bool, compared: bool) -> Table:
    columns = ["tokens", "all", *([INTERVAL] if wide else []), *(DIFFERENCE if compared else ()), "ms", "share"]
    table = runs_table([_heading(rows)], columns)
    for row in rows:
        stands = standing(row)
        low, high = (f"{100 * end:.1f}" for end in row["interval"])
        figures = [f"{row['visual_tokens']:.0f}", f"{100 * row['accuracy']:.1f}"]
        figures += [f"{low} to {high}"] if wide else []
        figures += [difference(row), stands] if compared else []
        table.add_row(Text(short_label(row)), *figures, *_times(row), style=STYLES.get(stands))
    return table


def _kinds(rows: list[dict[str, Any]]) -> Table:
    kinds = list(rows[0]["kinds"])
    table = runs_table([_heading(rows)], kinds)
    for row in rows:
        table.add_row(Text(short_label(row)), *(f"{100 * row['kinds'][kind]:.1f}" for kind in kinds))
    return table


def _heading(rows: list[dict[str, Any]]) -> str:
    return f"ratio {rows[0]['retention_ratio']:g}"


def short_label(row: dict[str, Any]) -> str:
    """What a row is called where there is little room."""
    return label(row).replace("newlines=", "nl=").replace("inside=", "")


def difference(row: dict[str, Any]) -> str:
    """A row's paired difference to the default with its interval, in points."""
    if row.get("difference") is None:
        return ""
    low, high = row["difference_interval"]
    return f"{_points(row['difference'])} ({_points(low)}, {_points(high)})"


def _points(share: float) -> str:
    points = 100 * share
    return f"{points:+.1f}" if abs(points) < 9.95 else f"{points:+.0f}"


def _times(row: dict[str, Any]) -> tuple[str, str]:
    if row.get("selection_ms") is None:
        return "", ""
    return f"{row['selection_ms']:.1f}", percent(row["selection_share"])
