"""`globalcom2 estimate`."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import typer
from rich import box, filesize
from rich.table import Table

from globalcom2.cli.options import Debug, Json, MaxTokens, Retentions, TextTokens, read_counts, read_ratios
from globalcom2.cli.output import figures_console, flops_unit, notes
from globalcom2.errors import InputError

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1)


def estimate(
    model: Annotated[
        str, typer.Option(help="llava-next-7b, llava-next-13b, mini, a folder with config.json, or a name on the hub.")
    ] = "llava-next-7b",
    image: Annotated[str, typer.Option(help="Size of the image, WIDTHxHEIGHT in px.")] = "672x672",
    retention: Retentions = None,
    max_visual_tokens: MaxTokens = None,
    convention: Annotated[str, typer.Option(help="ours, or paper: what the paper's tables count.")] = "ours",
    text_tokens: TextTokens = 40,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Estimate what an image costs at several ratios, in closed form, without weights.

    --max-visual-tokens tells the ratio that a limit in tokens comes to for an image of that size.

    Where the processor decides how an image is cut, its files are read too, of a folder or from the hub.
    """
    limits = read_counts("--max-visual-tokens", max_visual_tokens, ())
    ratios = read_ratios(retention, (1.0,) if limits else RATIOS)
    if limits and convention == "paper":
        raise InputError("--max-visual-tokens must be left out with --convention paper, which counts no newlines.")
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_config, load_processor  # noqa: PLC0415
        from globalcom2.lab import estimates as lab  # noqa: PLC0415

    size = lab.parse_size(image)
    named = lab.named_configs()
    config = named.get(model) or load_config(model, named)
    cutter = load_processor(model) if lab.needs_processor(config) else None
    costs = partial(lab.estimate_costs, config, size, ratios, text_tokens=text_tokens, processor=cutter, limits=limits)
    rows = costs(convention=convention)
    result: dict[str, Any] = {"model": model, "image": image, "convention": convention, "rows": rows}
    if convention == "paper":
        result["ours"] = costs()
    result["weight_bytes"] = lab.weight_bytes(config)
    if as_json:
        typer.echo(json.dumps(result))
        return
    _print_estimate(result)


def _print_estimate(result: dict[str, Any]) -> None:
    paper, rows, ours = result["convention"] == "paper", result["rows"], result.get("ours", result["rows"])
    wholes = [row["total_flops"] + row.get("left_out_flops", 0) for row in rows]
    unit, size = flops_unit(min(row["prefill_flops"] for row in rows))

    def flops(value: int) -> str:
        return f"{value / size:,.2f}"

    title = (
        f"{result['model']}, {result['image']} image, 16-bit weights {filesize.decimal(result['weight_bytes'])}; {unit}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ["ratio", "tokens", "prefill", "KV MB" if paper else "KV MiB", "whole", "share"]
    if paper:
        columns += ["ours", "whole", "share"]
    else:
        token_unit, token_size = flops_unit(min(row["decode_flops"] for row in rows))
        columns += ["speed-up", f"{token_unit}/token"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row, own, whole in zip(rows, ours, wholes, strict=True):
        cache = f"{row['kv_cache_mb_as_printed']:g}" if paper else _mebibytes(row["kv_cache_bytes"])
        cells = [f"{row['retention_ratio']:.4g}", str(row["visual_tokens"]), flops(row["prefill_flops"]), cache]
        cells += [flops(whole), f"{row['share_of_whole']:.1%}"]
        if paper:
            cells += [str(own["visual_tokens"]), flops(own["total_flops"]), f"{own['share_of_whole']:.1%}"]
        else:
            cells += [f"{row['speedup']:.2f}x", f"{row['decode_flops'] / token_size:.2f}"]
        table.add_row(*cells)
    console = figures_console()
    console.print(table)
    if paper:
        console.print(
            "The paper counts ratio x all tokens of the views in the language model: no text, no newlines, no vision "
            f"tower and no projector ({flops(rows[0]['left_out_flops'])} {unit} at every ratio, added in 'whole'). From "
            "'ours' on, columns count the real prompt."
        )
    else:
        fewer = len({row["projector_flops"] for row in rows}) > 1
        console.print(
            f"'whole' adds the vision tower ({flops(rows[0]['tower_flops'])}) and the projector"
            f"{' on the tokens that stay' if fewer else ''}. "
            "'speed-up' of the first token leaves out masked attention, which sdpa and flash kernels skip."
        )


def _mebibytes(size: int) -> str:
    value = size / 2**20
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
