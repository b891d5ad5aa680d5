"""`globalcom2 estimate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer
from rich import box, filesize
from rich.table import Table

from globalcom2.cli.options import Debug, Json, MaxTokens, Retentions, TextTokens, read_counts, read_ratios
from globalcom2.cli.output import figures_console, flops_unit, notes
from globalcom2.errors import InputError

RATIOS = (1.0, 0.75, 0.5, 0.25, 0.1)
Model = Annotated[
    str,
    typer.Option(
        help="llava-next-7b, llava-next-13b, qwen2.5-vl-7b, qwen3-vl-8b, mini, mini-native, a folder with config.json, "
        "or a name on the hub."
    ),
]
MinPixels = Annotated[
    int | None, typer.Option(min=1, help="Smallest area in px that an image is read at, where it keeps its resolution.")
]
MaxPixels = Annotated[int | None, typer.Option(min=1, help="Its largest area in px.")]
LongestEdge = Annotated[int | None, typer.Option(min=1, help="Its longest edge in px, for mistral3.")]
MaxPatches = Annotated[int | None, typer.Option(min=1, help="Its most patches, for kimi_k25.")]
Guide = Annotated[
    str | None,
    typer.Option(help="pooled, or thumbnail, which the tower reads, too; where images keep their resolution."),
]


def estimate(
    model: Model = "llava-next-7b",
    image: Annotated[str, typer.Option(help="Size of the image, WIDTHxHEIGHT in px.")] = "672x672",
    retention: Retentions = None,
    max_visual_tokens: MaxTokens = None,
    convention: Annotated[str, typer.Option(help="ours, or paper: what the paper's tables count.")] = "ours",
    text_tokens: TextTokens = 40,
    min_pixels: MinPixels = None,
    max_pixels: MaxPixels = None,
    longest_edge: LongestEdge = None,
    max_patches: MaxPatches = None,
    guide: Guide = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Estimate what an image costs at several ratios, in closed form, without weights.

    --max-visual-tokens tells the ratio that a limit in tokens comes to for an image of that size.

    Where the processor decides how an image is cut, its files are read too, of a folder or from the hub.

    Images that keep their resolution (Qwen-VL, GLM-V) are read within limits of the processor: those of its file, or as
    published where there is none. Flags set others.
    """
    limits = read_counts("--max-visual-tokens", max_visual_tokens, ())
    ratios = read_ratios(retention, (1.0,) if limits else RATIOS)
    if limits and convention == "paper":
        raise InputError("--max-visual-tokens must be left out with --convention paper, which counts no newlines.")
    with notes.status("Loading torch and transformers"):
        from globalcom2.lab import estimates as lab  # noqa: PLC0415

    size = lab.parse_size(image)
    config, processor = lab.opened(model)
    named = {
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "longest_edge": longest_edge,
        "max_patches": max_patches,
    }
    given = {name: value for name, value in named.items() if value is not None}
    more = {"processor": processor, "limits": limits, "size_limits": given, "guide": guide, "text_tokens": text_tokens}
    costs = partial(lab.estimate_costs, config, size, ratios, **more)
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
    paper, rows = result["convention"] == "paper", result["rows"]
    unit, size = flops_unit(min(row["prefill_flops"] for row in rows))

    def flops(value: int) -> str:
        return f"{value / size:,.2f}"

    title = (
        f"{result['model']}, {result['image']} image, 16-bit weights {filesize.decimal(result['weight_bytes'])}; {unit}"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns, lines = _in_papers_units(result, flops) if paper else _in_ours(rows, flops)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    console = figures_console()
    console.print(table)
    if paper:
        console.print(
            "The paper counts ratio x all tokens of the views in the language model: no text, no newlines, no vision "
            f"tower and no projector ({flops(rows[0]['left_out_flops'])} {unit} at every ratio, added in 'whole'). From "
            "'ours' on, columns count the real prompt."
        )
        return
    fewer = len({row["projector_flops"] for row in rows}) > 1 and "read_as" not in rows[0]
    console.print(
        f"'whole' adds the vision tower ({flops(rows[-1]['tower_flops'])}) and the projector"
        f"{' on the tokens that stay' if fewer else ''}. "
        "'speed-up' of the first token leaves out masked attention, which sdpa and flash kernels skip."
    )
    if "read_as" in rows[0]:
        console.print(_reading(rows[-1]))


def _in_papers_units(result: dict[str, Any], flops: Callable[[int], str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the paper's figures beside ours."""
    lines = []
    for row, own in zip(result["rows"], result["ours"], strict=True):
        whole = row["total_flops"] + row["left_out_flops"]
        cells = [
            *_first(row, flops, f"{row['kv_cache_mb_as_printed']:g}"),
            flops(whole),
            _percent(row["share_of_whole"]),
        ]
        cells += [str(own["visual_tokens"]), flops(own["total_flops"]), _percent(own["share_of_whole"])]
        lines.append(cells)
    return ["ratio", "tokens", "prefill", "KV MB", "whole", "share", "ours", "whole", "share"], lines


def _in_ours(rows: list[dict[str, Any]], flops: Callable[[int], str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the real prompt; with the tower's part where images keep their resolution."""
    unit, size = flops_unit(min(row["decode_flops"] for row in rows))
    native, lines = "read_as" in rows[0], []
    for row in rows:
        cells = [*_first(row, flops, _mebibytes(row["kv_cache_bytes"])), flops(row["total_flops"])]
        cells += [_percent(row["tower_share"])] if native else []
        cells += [_percent(row["share_of_whole"]), f"{row['speedup']:.2f}x"]
        cells += [] if native else [f"{row['decode_flops'] / size:.2f}"]
        lines.append(cells)
    last = ["tower", "share", "speed-up"] if native else ["share", "speed-up", f"{unit}/token"]
    return ["ratio", "tokens", "prefill", "KV MiB", "whole", *last], lines


def _first(row: dict[str, Any], flops: Callable[[int], str], cache: str) -> list[str]:
    return [f"{row['retention_ratio']:.4g}", str(row["visual_tokens"]), flops(row["prefill_flops"]), cache]


def _reading(row: dict[str, Any]) -> str:
    """How a native image is read, and what its tower takes."""
    height, width = row["token_grid"]
    by_source: dict[str, list[str]] = {}
    for name, source in row["size_limits_from"].items():
        by_source.setdefault(source, []).append(f"{name} {row['size_limits'][name]}")
    limits = "; ".join(f"{', '.join(named)} ({source})" for source, named in by_source.items())
    guide = ", the guide's pass with it" if row["guide"] == "thumbnail" and row["retention_ratio"] < 1 else ""
    return (
        f"Read as {row['read_as']} px, {width} x {height} tokens. Limits: {limits}. 'tower' is the part "
        f"of 'whole' that tower and merger take{guide}: no ratio makes it less work."
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _mebibytes(size: int) -> str:
    value = size / 2**20
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
