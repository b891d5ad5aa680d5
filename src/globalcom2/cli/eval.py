"""`globalcom2 eval`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from globalcom2._version import __version__
from globalcom2.cli.options import (
    Attention,
    BatchSize,
    Config,
    Dataset,
    Debug,
    Device,
    Dtype,
    Force,
    Json,
    Methods,
    Model,
    Pictures,
    Plot,
    Preset,
    Retentions,
    check_drawing,
    check_result,
    read_lists,
    read_result,
)
from globalcom2.cli.output import keep_result, measured_with, notes, print_runs, progress_bar

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)
METHODS = ("globalcom2", "globalcom2:layer=-1", "globalcom2:preset=paper", "uniform", "random")
"""The third one has all of the paper's choices, the second only its layer."""
QUICK_RATIOS = (1.0, 0.25, 0.1)
QUICK_METHODS = ("globalcom2", "globalcom2:preset=paper", "uniform")
QUICK_PICTURES = 60


def evaluate(
    retention: Retentions = None,
    method: Methods = None,
    preset: Preset = None,
    config: Config = None,
    model: Model = "mini",
    dataset: Dataset = None,
    pictures: Pictures = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="A first impression: 60 images, 3 ratios, 3 methods, unless you say otherwise."),
    ] = False,
    batch_size: BatchSize = 16,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the result into this .json file. A stopped run goes on there.", show_default=False),
    ] = None,
    force: Force = False,
    plot: Plot = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how well a model answers with fewer visual tokens: methods x ratios on an evaluation set.

    How long it will take is said first. A result that --out holds already is shown again if it is of the same run.
    """
    default = (QUICK_RATIOS, QUICK_METHODS) if quick else (RATIOS, METHODS)
    ratios, methods = read_lists(retention, method, preset, config, default)
    first = QUICK_PICTURES if quick and pictures is None else pictures
    asked = _asked(model, dataset, first, (ratios, methods), (dtype, device, attn))
    result = None if force else read_result(out, asked)
    check_result(out, force or result is not None)
    check_drawing("--plot", plot)
    if result is None:
        result = _measured(asked, ratios, methods, batch_size, out)
        keep_result(result, out, unfinished(out))
    if plot is not None:
        from globalcom2.lab.plots import draw_eval  # noqa: PLC0415

        draw_eval(result["runs"], plot)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        from globalcom2.lab.labels import label  # noqa: PLC0415

        print_runs(result, ["method", "ratio"], lambda row: [label(row), f"{row['retention_ratio']:g}"])


def _asked(
    model: str,
    dataset: Path | None,
    pictures: int | None,
    settings: tuple[list[float], list[str]],
    loading: tuple[str, str, str | None],
) -> dict[str, Any]:
    """What a result depends on, as it is kept in the result to be recognised."""
    dtype, device, attn = loading
    return {
        "model": model,
        "dataset": None if dataset is None else str(dataset.resolve()),
        "pictures": pictures,
        "ratios": settings[0],
        "methods": settings[1],
        "dtype": dtype,
        "device": device,
        "attn": attn,
        "globalcom2": __version__,
    }


def unfinished(out: Path | None) -> Path | None:
    """Where a run that was stopped left what it had."""
    return None if out is None else out.with_suffix(".partial.jsonl")


def _measured(
    asked: dict[str, Any], ratios: list[float], methods: list[str], batch_size: int, out: Path | None
) -> dict[str, Any]:
    """The result, measured now."""
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.lab import evals  # noqa: PLC0415
        from globalcom2.lab.dataset import load_examples  # noqa: PLC0415
        from globalcom2.lab.durations import seconds_left, told  # noqa: PLC0415
        from globalcom2.mini import EVALUATION_SET  # noqa: PLC0415

    path = EVALUATION_SET if asked["dataset"] is None else Path(asked["dataset"])
    examples = load_examples(path, asked["pictures"])
    notes.print(f"Loading {asked['model']}")
    network, processor = load_model(asked["model"], asked["dtype"], asked["device"], asked["attn"])
    settings = evals.settings_of(methods, ratios)
    questions = sum(len(example.questions) for example in examples)
    journal = evals.Journal(unfinished(out), evals.journal_header(network, examples, __version__))
    what = f"{questions:,} questions about {len(examples)} images in {len(settings)} settings"
    with notes.status(f"{what}: timing a first batch"):
        seconds = seconds_left(network, processor, examples, settings, batch_size, journal)
    notes.print(f"{what}: about {told(seconds)}.", highlight=False)
    with progress_bar() as bar:
        task = bar.add_task("Answering", total=len(settings) * len(examples))
        rows = evals.evaluate(
            network,
            processor,
            examples,
            settings,
            batch_size=batch_size,
            journal=journal,
            progress=partial(bar.advance, task),
        )
    about = {"model": asked["model"], "dataset": path.name, "pictures": len(examples), **measured_with(network)}
    return {**about, "asked": asked, "runs": rows}
