"""`globalcom2 eval` and `globalcom2 analyze`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from globalcom2._version import __version__
from globalcom2.cli.app import Attention, Debug, Device, Dtype, Json, app, measured_with, notes
from globalcom2.core.budget import check_ratio
from globalcom2.core.methods import parse_method
from globalcom2.errors import InputError

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)
METHODS = (
    "globalcom2",
    "globalcom2:layer=-1",
    "globalcom2:layer=-1,allocation=softmax,alpha=0.5",
    "uniform",
    "random",
)
"""The third one has all of the paper's choices, the second only its layer."""
Dataset = Annotated[
    Path | None, typer.Option(help="Parquet file. Default: the set that ships with the package.", show_default=False)
]
Pictures = Annotated[
    int | None, typer.Option(min=2, help="Only the set's first pictures. Default: all.", show_default=False)
]
BatchSize = Annotated[int, typer.Option(min=1, help="Pictures per batch.")]
Plot = Annotated[Path | None, typer.Option(help="Draw a plot into this file (png, pdf, svg).", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option(help="Write the result into this .json file; a stopped run goes on there.", show_default=False),
]


@app.command(name="eval")
def evaluation(
    retention: Annotated[
        list[float] | None, typer.Option(help="Ratio; repeat for several.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="Method, with options if you like: globalcom2:alpha=0.3; repeat for several.", show_default=False
        ),
    ] = None,
    model: Annotated[str, typer.Option(help="'mini', a folder with a checkpoint, or a name on the hub.")] = "mini",
    dataset: Dataset = None,
    pictures: Pictures = None,
    batch_size: BatchSize = 16,
    out: Out = None,
    plot: Plot = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how well a model answers with fewer visual tokens: methods x ratios on an evaluation set."""
    ratios = [check_ratio(ratio) for ratio in retention or RATIOS]
    names = method or METHODS
    for name in names:
        parse_method(name)
    _check_file("--out", out, (".json",))
    _check_file("--plot", plot, (".png", ".pdf", ".svg"))
    with notes.status("Loading torch and transformers"):
        from globalcom2.lab import evals  # noqa: PLC0415

    shown, path = _load_set(dataset, pictures)
    network, processor = _load_model(model, dtype, device, attn)
    settings = evals.settings_of(names, ratios)
    partial = None if out is None else out.with_suffix(".partial.jsonl")
    journal = evals.Journal(partial, evals.journal_header(network, shown, __version__))
    with _bar() as bar:
        task = bar.add_task("Answering", total=len(settings) * len(shown))
        rows = evals.evaluate(
            network,
            processor,
            shown,
            settings,
            batch_size=batch_size,
            journal=journal,
            progress=lambda done: bar.advance(task, done),
        )
    result = {"model": model, "dataset": path, "pictures": len(shown), **measured_with(network), "runs": rows}
    _finish(result, out, partial, as_json)
    if plot is not None:
        from globalcom2.lab.plots import draw_eval  # noqa: PLC0415

        draw_eval(rows, plot)
    if not as_json:
        _print_rows(result, ["method", "ratio"], lambda row: [evals.label(row), f"{row['retention_ratio']:g}"])


@app.command()
def analyze(
    model: Annotated[str, typer.Option(help="'mini', a folder with a checkpoint, or a name on the hub.")] = "mini",
    dataset: Dataset = None,
    pictures: Pictures = None,
    batch_size: BatchSize = 16,
    out: Annotated[Path | None, typer.Option(help="Write the result into this .json file.")] = None,
    plot: Plot = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what the thumbnail and the crops are worth: each alone, and without the most or least important crop."""
    _check_file("--out", out, (".json",))
    _check_file("--plot", plot, (".png", ".pdf", ".svg"))
    with notes.status("Loading torch and transformers"):
        from globalcom2.lab import analysis  # noqa: PLC0415

    shown, path = _load_set(dataset, pictures)
    network, processor = _load_model(model, dtype, device, attn)
    with _bar() as bar:
        task = bar.add_task("Answering", total=(1 + len(analysis.CONDITIONS)) * len(shown))
        rows = analysis.analyze_views(
            network, processor, shown, batch_size=batch_size, progress=lambda done: bar.advance(task, done)
        )
    result = {"model": model, "dataset": path, "pictures": len(shown), **measured_with(network), "runs": rows}
    _finish(result, out, None, as_json)
    if plot is not None:
        from globalcom2.lab.plots import draw_analysis  # noqa: PLC0415

        draw_analysis(rows, plot)
    if not as_json:
        _print_rows(result, ["condition"], lambda row: [row["condition"]])


def _check_file(name: str, path: Path | None, endings: tuple[str, ...]) -> None:
    if path is not None and (path.suffix.lower() not in endings or not path.resolve().parent.is_dir()):
        raise InputError(f"{name} must be a {' or '.join(endings)} file in an existing folder, got {str(path)!r}.")


def _load_set(dataset: Path | None, pictures: int | None) -> tuple[list[Any], str]:
    from globalcom2.lab.dataset import load_pictures  # noqa: PLC0415
    from globalcom2.mini import EVALUATION_SET  # noqa: PLC0415

    path = EVALUATION_SET if dataset is None else dataset
    return load_pictures(path, pictures), path.name


def _load_model(model: str, dtype: str, device: str, attn: str | None) -> tuple[Any, Any]:
    from globalcom2.hf.loading import load_model  # noqa: PLC0415

    notes.print(f"Loading {model}")
    return load_model(model, dtype, device, attn)


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=notes)


def _finish(result: dict[str, Any], out: Path | None, partial: Path | None, as_json: bool) -> None:
    if out is not None:
        out.write_text(json.dumps(result, indent=1) + "\n")
        if partial is not None:
            partial.unlink(missing_ok=True)
        notes.print(f"Result: {out}")
    if as_json:
        typer.echo(json.dumps(result))


def _print_rows(result: dict[str, Any], heads: list[str], cells: Callable[[dict[str, Any]], list[str]]) -> None:
    from globalcom2.lab.evals import percent  # noqa: PLC0415

    rows, console = result["runs"], Console()
    title = f"{result['model']} on {result['dataset']}: {result['pictures']} pictures, {rows[0]['questions']} questions"
    console.print(title, style="bold", highlight=False)
    kinds = list(rows[0]["kinds"])
    whole, by_kind = _table(heads, ["tokens", "accuracy", "95 % interval", "of full"]), _table(heads, kinds)
    for row in rows:
        low, high = row["interval"]
        figures = (f"{row['visual_tokens']:.0f}", percent(row["accuracy"]), f"{percent(low)} to {percent(high)}")
        whole.add_row(*cells(row), *figures, percent(row["relative"]))
        by_kind.add_row(*cells(row), *(f"{100 * row['kinds'][kind]:.1f}" for kind in kinds))
    console.print(whole)
    console.print("Accuracy per kind of question, %", highlight=False)
    console.print(by_kind)
    console.print("Tokens per picture, newlines included; intervals over pictures.")


def _table(left: list[str], right: list[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in (*left, *right):
        left_column = column in left
        justify: Any = "left" if left_column else "right"
        table.add_column(
            column, justify=justify, no_wrap=not left_column, overflow="fold" if left_column else "ellipsis"
        )
    return table
