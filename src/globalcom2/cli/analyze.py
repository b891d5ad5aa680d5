"""`globalcom2 analyze`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from globalcom2.cli.options import (
    Attention,
    BatchSize,
    Dataset,
    Debug,
    Device,
    Dtype,
    Force,
    Json,
    Model,
    Pictures,
    Plot,
    check_drawing,
    check_result,
)
from globalcom2.cli.output import keep_result, measured_with, notes, print_runs, progress_bar


def analyze(
    model: Model = "mini",
    dataset: Dataset = None,
    pictures: Pictures = None,
    batch_size: BatchSize = 16,
    out: Annotated[Path | None, typer.Option(help="Write the result into this .json file.", show_default=False)] = None,
    force: Force = False,
    plot: Plot = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure what the thumbnail and the crops are worth: each alone, and without the most or least important crop."""
    check_result(out, force)
    check_drawing("--plot", plot)
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.lab.analysis import CONDITIONS, analyze_views  # noqa: PLC0415
        from globalcom2.lab.dataset import load_examples  # noqa: PLC0415
        from globalcom2.mini import EVALUATION_SET  # noqa: PLC0415

    path = dataset or EVALUATION_SET
    examples = load_examples(path, pictures)
    notes.print(f"Loading {model}")
    network, processor = load_model(model, dtype, device, attn)
    with progress_bar() as bar:
        task = bar.add_task("Answering", total=(1 + len(CONDITIONS)) * len(examples))
        rows = analyze_views(
            network, processor, examples, batch_size=batch_size, progress=lambda done: bar.advance(task, done)
        )
    result = {"model": model, "dataset": path.name, "pictures": len(examples), **measured_with(network), "runs": rows}
    keep_result(result, out)
    if plot is not None:
        from globalcom2.lab.plots import draw_analysis  # noqa: PLC0415

        draw_analysis(rows, plot)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_runs(result, ["condition"], lambda row: [row["condition"]])
