"""`globalcom2 bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.progress import track
from rich.table import Table

from globalcom2.cli.options import (
    Attention,
    Config,
    Debug,
    Device,
    Dtype,
    Json,
    MaxTokens,
    Methods,
    Plot,
    Preset,
    Retentions,
    TextTokens,
    check_drawing,
    read_counts,
    read_lists,
)
from globalcom2.cli.output import figures_console, measured_with, notes
from globalcom2.errors import InputError

if TYPE_CHECKING:
    from globalcom2.lab.bench import Plan

RATIOS = (0.5, 0.25, 0.1)


Benched = Annotated[
    str,
    typer.Option(
        help="mini, mini-native, a checkpoint or hub name; or llava-next-86m, -500m, -7b, -13b with random weights."
    ),
]
BatchSizes = Annotated[
    list[str] | None,
    typer.Option(metavar="SIZES", help="Images per batch: 1,4, or one per flag. Default: 1.", show_default=False),
]


def bench(
    model: Benched = "mini",
    retention: Retentions = None,
    max_visual_tokens: MaxTokens = None,
    method: Methods = None,
    preset: Preset = None,
    config: Config = None,
    batch_size: BatchSizes = None,
    image: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in px. Default: 2 x 2 crops or windows.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds after one warm-up.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 16,
    text_tokens: TextTokens = 40,
    compare: Annotated[
        str | None, typer.Option(help="'eager': what output_attentions would cost.", show_default=False)
    ] = None,
    plot: Plot = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure time to first token by phase, decoding and memory, with and without compression."""
    limits = read_counts("--max-visual-tokens", max_visual_tokens, ())
    ratios, methods = read_lists(retention, method, preset, config, (() if limits else RATIOS, ["globalcom2"]))
    sizes = read_counts("--batch-size", batch_size, [1])
    if compare not in (None, "eager"):
        raise InputError(f"--compare must be 'eager', got {compare!r}.")
    check_drawing("--plot", plot)
    with notes.status("Loading torch and transformers"):
        from globalcom2.lab import bench as lab  # noqa: PLC0415
        from globalcom2.lab.estimates import parse_size  # noqa: PLC0415

    size = None if image is None else parse_size(image)
    notes.print(f"Loading {model}")
    network, weights = _load(model, dtype, device, attn)
    if compare == "eager":
        lab.check_comparable(network.config)
    plan = lab.Plan(size or lab.default_image(network.config), text_tokens, new_tokens, rounds)
    settings = lab.settings_of(methods, [*ratios, *lab.limit_ratios(network, plan, limits)], sizes)
    rows = lab.measure(network, settings, plan, lambda steps: track(steps, "Measuring", console=notes))
    result = {"model": model, "weights": weights, **_described(network, plan), "rows": rows}
    if compare == "eager":
        result["compare"] = lab.compare_attention(network, plan)
    _show(result, plot, as_json)


def _show(result: dict[str, Any], plot: Path | None, as_json: bool) -> None:
    """Draw and print what was measured."""
    if plot is not None:
        from globalcom2.lab.plots import draw_bench  # noqa: PLC0415

        draw_bench(result["rows"], plot)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_bench(result)


def _load(model: str, dtype: str, device: str, attn: str | None) -> tuple[Any, str]:
    """The model, and whether its weights are "loaded" or "random"."""
    from globalcom2.hf.loading import load_config, load_model, random_model  # noqa: PLC0415
    from globalcom2.lab.estimates import named_configs  # noqa: PLC0415

    config = named_configs().get(model)
    if config is not None:
        return random_model(config, dtype, device, attn), "random"
    load_config(model, named_configs())
    return load_model(model, dtype, device, attn)[0], "loaded"


def _described(network: Any, plan: Plan) -> dict[str, Any]:
    """How and on what the rows were measured."""
    return {
        "device": str(network.device),
        "attn": network.config._attn_implementation,
        "image": f"{plan.image[0]}x{plan.image[1]}",
        "rounds": plan.rounds,
        **measured_with(network),
    }


def print_bench(result: dict[str, Any]) -> None:
    """Print what `globalcom2 bench` measured as a table of at most 80 columns."""
    rows, console = result["rows"], figures_console()
    console.print(_table(result))
    spread = max(row["ttft_spread"] for row in rows)
    console.print(
        f"Medians of {result['rounds']} interleaved rounds; largest spread of a time to first token: {spread:.0%}."
    )
    if any(row["prefill_seconds"] is None or row["decode_seconds_per_token"] is None for row in rows):
        console.print("'-': the difference of two times, which noise made negative. Measure more --rounds.")
    if "compare" in result:
        times = ", ".join(f"{name.removesuffix('_seconds')} {1e3 * s:.1f} ms" for name, s in result["compare"].items())
        console.print(f"Vision tower, one image: {times}.")


def _table(result: dict[str, Any]) -> Table:
    from globalcom2.lab.labels import label  # noqa: PLC0415

    what = f"{result['model']} on {result['device']}, {result['dtype']}, {result['image']}"
    table = Table(
        title=f"{what}; milliseconds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        pad_edge=False,
    )
    one_batch = len({row["batch_size"] for row in result["rows"]}) == 1
    # Two lines each, so that all of it fits 80 columns.
    columns = ("tok-\nens", "TTFT", "tower", "sel-\nect", "pre-\nfill", "a\ntoken", "MiB", "speed-\nup", "pre-\ndicted")
    table.add_column("method", min_width=10, overflow="fold")
    for column in ("ratio", *columns) if one_batch else ("ratio", "batch", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    for row in result["rows"]:
        phases = ("ttft_seconds", "tower_seconds", "selection_seconds", "prefill_seconds", "decode_seconds_per_token")
        table.add_row(
            label(row),
            f"{row['retention_ratio']:.4g}",
            *([] if one_batch else [str(row["batch_size"])]),
            str(row["visual_tokens"]),
            *(_milliseconds(row[name]) for name in phases),
            "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            f"{row['speedup']:.2f}x",
            f"{row['predicted_speedup']:.2f}x",
        )
    return table


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.{0 if seconds >= 0.1 else 1}f}"
