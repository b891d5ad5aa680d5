"""`globalcom2 eval`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from globalcom2._version import __version__
from globalcom2.cli.options import (
    Attention,
    BatchSize,
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
    Retentions,
    check_drawing,
    check_result,
    read_methods,
    read_ratios,
)
from globalcom2.cli.output import finish, measured_with, notes, print_runs, progress_bar

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1, 0.05)
METHODS = (
    "globalcom2",
    "globalcom2:layer=-1",
    "globalcom2:layer=-1,allocation=softmax,alpha=0.5",
    "uniform",
    "random",
)
"""The third one has all of the paper's choices, the second only its layer."""


def evaluate(
    retention: Retentions = None,
    method: Methods = None,
    model: Model = "mini",
    dataset: Dataset = None,
    pictures: Pictures = None,
    batch_size: BatchSize = 16,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the result into this .json file; a stopped run goes on there.", show_default=False),
    ] = None,
    force: Force = False,
    plot: Plot = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how well a model answers with fewer visual tokens: methods x ratios on an evaluation set."""
    ratios, methods = read_ratios(retention, RATIOS), read_methods(method, METHODS)
    check_result(out, force)
    check_drawing("--plot", plot)
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.lab import evals  # noqa: PLC0415
        from globalcom2.lab.dataset import load_examples  # noqa: PLC0415
        from globalcom2.lab.labels import label  # noqa: PLC0415
        from globalcom2.mini import EVALUATION_SET  # noqa: PLC0415

    path = dataset or EVALUATION_SET
    examples = load_examples(path, pictures)
    notes.print(f"Loading {model}")
    network, processor = load_model(model, dtype, device, attn)
    settings = evals.settings_of(methods, ratios)
    unfinished = None if out is None else out.with_suffix(".partial.jsonl")
    journal = evals.Journal(unfinished, evals.journal_header(network, examples, __version__))
    with progress_bar() as bar:
        task = bar.add_task("Answering", total=len(settings) * len(examples))
        told = partial(bar.advance, task)
        rows = evals.evaluate(
            network, processor, examples, settings, batch_size=batch_size, journal=journal, progress=told
        )
    result = {"model": model, "dataset": path.name, "pictures": len(examples), **measured_with(network), "runs": rows}
    finish(result, out, as_json, unfinished)
    if plot is not None:
        from globalcom2.lab.plots import draw_eval  # noqa: PLC0415

        draw_eval(rows, plot)
    if not as_json:
        print_runs(result, ["method", "ratio"], lambda row: [label(row), f"{row['retention_ratio']:g}"])
