"""What several commands print: notes on stderr, results on stdout, and the tables of evaluations."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from globalcom2.lab.labels import FULL

if TYPE_CHECKING:
    from globalcom2.lab.comparison import Comparison

UNITS = (("TFLOPs", 1e12), ("GFLOPs", 1e9), ("MFLOPs", 1e6))
NARROWEST = 80
notes = Console(stderr=True)
"""Progress and remarks; stdout is for results."""


def measured_with(network: Any) -> dict[str, Any]:
    """The command, a model's number format, and the machine, for a result."""
    from globalcom2.lab.machine import machine  # noqa: PLC0415

    command = shlex.join(["globalcom2", *sys.argv[1:]])
    return {"command": command, "dtype": str(network.dtype).removeprefix("torch."), **machine(network.device)}


def progress_bar() -> Progress:
    """A progress bar on stderr."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=notes)


def figures_console() -> Console:
    """Where tables of figures go: 80 columns wide at least. A narrow terminal breaks the lines, and no digit is cut off."""
    console = Console()
    return console if console.width >= NARROWEST else Console(width=NARROWEST)


def print_list(name: str, rows: list[dict[str, str]], as_json: bool) -> None:
    """Print rows of texts, each as a heading with its other texts below, or as a JSON object with the one key `name`.

    A table would be too wide: texts are sentences, and 80 columns are usual.
    """
    if as_json:
        typer.echo(json.dumps({name: rows}))
        return
    console = Console(highlight=False)
    for row in rows:
        (_, heading), *others = row.items()
        console.print(heading, style="bold")
        below = Table.grid(padding=(0, 2, 0, 0))
        below.add_column(min_width=max(map(len, row)) + 2)
        below.add_column(overflow="fold")
        for column, text in others:
            below.add_row(f"  {column}", text)
        console.print(below)


def keep_result(result: dict[str, Any], out: Path | None, journal: Path | None = None) -> None:
    """Write a result into `out` if there is one; the journal is no longer needed then."""
    if out is None:
        return
    out.write_text(json.dumps(result, indent=1) + "\n")
    if journal is not None:
        journal.unlink(missing_ok=True)
    notes.print(f"Result: {out}")


def print_runs(result: dict[str, Any], heads: Sequence[str], cells: Callable[[dict[str, Any]], list[str]]) -> None:
    """Print runs: accuracy with its interval, and accuracy per kind of question.

    Args:
        result: What `analyze` found.
        heads: Names of the columns that say what a run is.
        cells: A run's texts in these columns.
    """
    from globalcom2.lab.labels import percent  # noqa: PLC0415

    rows, console = result["runs"], figures_console()
    title = f"{result['model']} on {result['dataset']}: {result['pictures']} images, {rows[0]['questions']} questions"
    console.print(title, style="bold", highlight=False)
    kinds = list(rows[0]["kinds"])
    whole, by_kind = runs_table(heads, ["tokens", "accuracy", "95 % interval", "of full"]), runs_table(heads, kinds)
    for row in rows:
        low, high = row["interval"]
        figures = (f"{row['visual_tokens']:.0f}", percent(row["accuracy"]), f"{percent(low)} to {percent(high)}")
        whole.add_row(*cells(row), *figures, percent(row["relative"]))
        by_kind.add_row(*cells(row), *(f"{100 * row['kinds'][kind]:.1f}" for kind in kinds))
    console.print(whole)
    console.print("Accuracy per kind of question, %", highlight=False)
    console.print(by_kind)
    console.print("Tokens per image, newlines included; intervals over images.")


def print_answers(found: Comparison, name: str | None = None) -> None:
    """Print the answers to one question about one image as a table of at most 80 columns.

    Args:
        found: All tokens' answer and those of the runs.
        name: What the image is called; None leaves it out.
    """
    from globalcom2.drawing.panel import Panel  # noqa: PLC0415

    console = Console(highlight=False)
    title = found.question if name is None else f"{name}: {found.question}"
    table = Table(title=_shown(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    counts = [answer.prefill_flops for answer in (found.full, *found.runs) if answer.prefill_flops is not None]
    unit, size = flops_unit(min(counts, default=0))
    # Two lines each, so that all of it fits 80 columns.
    for column in ("method", "ratio", "answer", "visual\ntokens", "prompt\ntokens", f"prefill\n{unit}", "seconds"):
        left = column in ("method", "answer")
        table.add_column(column, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    heads = [(FULL, "1", found.full), *((run.label, run.budget.replace(" tokens", ""), run) for run in found.runs)]
    for method, ratio, answer in heads:
        operations = "-" if answer.prefill_flops is None else f"{answer.prefill_flops / size:,.2f}"
        figures = (str(answer.visual_tokens), str(answer.prompt_tokens), operations, f"{answer.seconds:.3f}")
        table.add_row(Text(method), ratio, _shown(answer.answer), *figures)
    console.print(table)
    for run in found.runs:
        ratios = ", ".join(f"{ratio:.0%}" for ratio in run.crop_ratios)
        which = f" by {run.setting}" if len(found.runs) > 1 else ""
        if ratios or not which:
            took = f"Selection: {run.selection_seconds * 1e3:.1f} ms."
            kind = "crop" if run.entry is None else Panel(run.entry).crop_kind
            console.print(Text(f"Kept per {kind}{which}: {ratios or '-'}. {took}"))
    if found.full.tower_flops is not None:
        unit, size = flops_unit(found.full.tower_flops)
        console.print(f"Vision tower, in every call: {found.full.tower_flops / size:,.2f} {unit}.")
        for run in found.runs:
            if run.tower_flops not in (None, found.full.tower_flops):
                console.print(Text(f"With its guide, by {run.setting}: {run.tower_flops / size:,.2f} {unit}."))


def _shown(text: str) -> Text:
    """A text from elsewhere, its control characters replaced, since a terminal would obey them."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text))


def flops_unit(smallest: float) -> tuple[str, float]:
    """The largest unit in which `smallest` operations still show a digit, and its size."""
    return next((unit for unit in UNITS if smallest >= 0.05 * unit[1]), UNITS[-1])


def runs_table(left: Sequence[str], right: Sequence[str]) -> Table:
    """An empty table: columns on the left, whose texts may break, and columns of figures."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right", no_wrap=True)
    return table
