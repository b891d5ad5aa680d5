"""`globalcom2 batch`."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from globalcom2.cli.options import (
    Attention,
    Budgets,
    Config,
    Debug,
    Device,
    Dtype,
    Json,
    MaxTokens,
    Methods,
    Model,
    NewTokens,
    Preset,
    check_table,
    read_settings,
)
from globalcom2.cli.output import notes, progress_bar

if TYPE_CHECKING:
    from globalcom2.lab.batches import Batch, Table


def batch(
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|FILE.jsonl", help='Pictures; or lines {"image": ..., "question": ...}.')
    ],
    csv: Annotated[Path, typer.Option(help="Write one row per answer. A stopped run goes on there.")],
    question: Annotated[
        str | None, typer.Option(help="Asked about every picture, or where a line has none.", show_default=False)
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Answer with all visual tokens, too.")] = False,
    retention: Budgets = None,
    max_visual_tokens: MaxTokens = None,
    method: Methods = None,
    preset: Preset = None,
    config: Config = None,
    model: Model = "mini",
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    max_new_tokens: NewTokens = 32,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer questions about many pictures into a table.

    What goes wrong with a picture stands in its row's column "error"; the exit code is 1 then. A row that is there is not
    asked again, one with an error neither: delete it to try again.
    """
    settings = read_settings(retention, method, preset, config, max_visual_tokens)
    check_table(csv)
    from globalcom2.lab.batches import Batch, Table, read_items  # noqa: PLC0415

    asked = Batch(read_items(source, question), settings, model, full, max_new_tokens)
    table = Table(csv, asked.all_keys)
    start = time.perf_counter()
    counts = _answer(asked, table, dtype, device, attn)
    seconds = time.perf_counter() - start
    result = {"model": model, "source": str(source), "csv": str(csv), "pictures": len({item.image for item in asked.items}),
              "rows": len(asked.all_keys), **counts, "seconds": seconds}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(result))
    else:
        Console(highlight=False).print(
            f"{counts['answered']} answers in {seconds:.1f} s, {counts['skipped']} were there, {counts['failed']} failed: {csv}",
            soft_wrap=True,
        )
    if counts["failed"]:
        raise typer.Exit(1)


def _answer(asked: Batch, table: Table, dtype: str, device: str, attn: str | None) -> dict[str, int]:
    """Answer what is missing; a table without a gap needs no model."""
    if all(key in table.done for key in asked.all_keys):
        failed = sum(not table.done[key] for key in asked.all_keys)
        return {"answered": 0, "skipped": len(asked.all_keys), "failed": failed}
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.lab.batches import answer_batch  # noqa: PLC0415
    notes.print(f"Loading {asked.model_name}")
    network, processor = load_model(asked.model_name, dtype, device, attn)
    with progress_bar() as bar:
        task = bar.add_task("Answering", total=len(asked.all_keys))
        return answer_batch(network, processor, asked, table, partial(bar.advance, task))
