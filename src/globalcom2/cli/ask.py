"""`globalcom2 ask`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from globalcom2.cli.app import Attention, Debug, Device, Dtype, Json, app, notes
from globalcom2.core.budget import check_ratio
from globalcom2.core.methods import parse_method
from globalcom2.errors import InputError


@app.command()
def ask(
    image: Annotated[
        Path | None, typer.Argument(help="Picture file. Default: the demo picture.", show_default=False)
    ] = None,
    question: Annotated[str | None, typer.Argument(help="Default: the demo question.", show_default=False)] = None,
    retention: Annotated[float, typer.Option(help="Fraction of the visual tokens to keep, in (0, 1].")] = 0.1,
    method: Annotated[
        str, typer.Option(help="Selector, with options if you like: globalcom2:alpha=0.3.")
    ] = "globalcom2",
    model: Annotated[str, typer.Option(help="'mini', a folder with a checkpoint, or a name on the hub.")] = "mini",
    picture: Annotated[Path | None, typer.Option(help="Draw what was kept into this file (png, pdf, svg).")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a question about a picture with all visual tokens and with a part of them."""
    check_ratio(retention)
    parse_method(method)
    if image is not None and question is None:
        raise InputError("QUESTION must be given with an image, got none. Put it in quotes after the image.")
    if picture is not None and (
        picture.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg") or not picture.resolve().parent.is_dir()
    ):
        raise InputError(
            f"--picture must be a .png, .pdf, .svg or .jpg file in an existing folder, got {str(picture)!r}."
        )
    with notes.status("Loading torch and transformers"):
        from globalcom2.lab.comparison import Asked, compare_answers  # noqa: PLC0415
        from globalcom2.lab.images import open_image  # noqa: PLC0415
        from globalcom2.mini import DEMO_PICTURE, DEMO_QUESTION  # noqa: PLC0415

        path = image if image is not None else DEMO_PICTURE
        loaded = open_image(path)
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
    if model != "mini":
        notes.print(f"Loading {model}")
    network, processor = load_model(model, dtype, device, attn)
    asked = Asked(DEMO_QUESTION if question is None else question, retention, method, picture, max_new_tokens)
    with notes.status("Answering with all tokens and with a part of them"):
        result = compare_answers(network, processor, loaded, asked)
    result = {"model": model, "image": str(image) if image is not None else "demo.png", **result}
    if picture is not None and result["picture"] is None:
        notes.print("No picture drawn: nothing was dropped.")
    if as_json:
        typer.echo(json.dumps(result))
        return
    _print_answers(result)


def _print_answers(result: dict[str, Any]) -> None:
    full, short = result["full"], result["compressed"]
    table = Table(title=result["question"], title_justify="left", title_style="bold")
    for column in ("", "answer", "visual tokens", "prompt tokens", "prefill GFLOPs", "seconds"):
        table.add_column(column, justify="left" if column in ("", "answer") else "right")
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
    console.print(
        f"Kept per crop: {ratios or '-'}. Selection: {short['selection_seconds'] * 1e3:.1f} ms. Vision tower, both: {tower} GFLOPs."
    )
    if result["picture"]:
        console.print(f"Picture: {result['picture']}")
