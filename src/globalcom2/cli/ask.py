"""`globalcom2 ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from globalcom2.cli.options import (
    Attention,
    Debug,
    Device,
    Dtype,
    Json,
    Method,
    Model,
    Retention,
    check_drawing,
    read_ratio,
)
from globalcom2.cli.output import notes
from globalcom2.core.methods import parse_method
from globalcom2.errors import InputError


def ask(
    image: Annotated[
        str | None, typer.Argument(help="Image file. Default: the demo's image.", show_default=False)
    ] = None,
    question: Annotated[str | None, typer.Argument(help="Default: the demo's question.", show_default=False)] = None,
    retention: Retention = None,
    method: Method = "globalcom2",
    model: Model = "mini",
    picture: Annotated[
        Path | None, typer.Option(help="Draw what was kept into this file (png, jpg, pdf, svg).", show_default=False)
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a question about an image with all visual tokens and with a part of them."""
    ratio = read_ratio(retention)
    parse_method(method)
    if image is not None and question is None:
        raise InputError("QUESTION must be given with an image, got none. Put it in quotes after the image.")
    check_drawing("--picture", picture)
    with notes.status("Loading torch and transformers"):
        from globalcom2.lab.comparison import Asked, compare_answers  # noqa: PLC0415
        from globalcom2.lab.images import open_image  # noqa: PLC0415
        from globalcom2.mini import DEMO_PICTURE, DEMO_QUESTION  # noqa: PLC0415

        loaded = open_image(DEMO_PICTURE if image is None else image)
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
    if model != "mini":
        notes.print(f"Loading {model}")
    network, processor = load_model(model, dtype, device, attn)
    asked = Asked(DEMO_QUESTION if question is None else question, ratio, method, picture, max_new_tokens)
    with notes.status("Answering with all tokens and with a part of them"):
        result = compare_answers(network, processor, loaded, asked)
    result = {"model": model, "image": "demo.png" if image is None else image, **result}
    if picture is not None and result["picture"] is None:
        notes.print("No picture drawn: nothing was dropped.")
    if as_json:
        typer.echo(json.dumps(result))
        return
    _print_answers(result)


def _print_answers(result: dict[str, Any]) -> None:
    full, short = result["full"], result["compressed"]
    table = Table(
        title=result["question"], title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False
    )
    # Two lines each, so that all of it fits 80 columns.
    for column in ("", "answer", "visual\ntokens", "prompt\ntokens", "prefill\nGFLOPs", "seconds"):
        left = column in ("", "answer")
        table.add_column(column, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for name, row in (("all tokens", full), (f"{result['method']} {result['retention_ratio']:g}", short)):
        cells = (
            row["visual_tokens"],
            row["prompt_tokens"],
            f"{row['prefill_flops'] / 1e9:,.2f}",
            f"{row['seconds']:.3f}",
        )
        table.add_row(name, row["answer"], *map(str, cells))
    console = Console()
    console.print(table)
    ratios = ", ".join(f"{ratio:.0%}" for ratio in short["crop_ratios"])
    tower = f"{full['tower_flops'] / 1e9:,.2f}"
    console.print(f"Kept per crop: {ratios or '-'}. Selection: {short['selection_seconds'] * 1e3:.1f} ms.")
    console.print(f"Vision tower, in both calls: {tower} GFLOPs.")
    if result["picture"]:
        console.print(f"Picture: {result['picture']}")
