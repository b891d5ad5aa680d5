"""`globalcom2 estimate` and `globalcom2 bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box, filesize
from rich.console import Console
from rich.progress import track
from rich.table import Table

from globalcom2.cli.app import Attention, Debug, Device, Dtype, Json, app, measured_with, notes
from globalcom2.core.budget import check_ratio
from globalcom2.core.methods import parse_method
from globalcom2.errors import InputError


@app.command()
def estimate(
    model: Annotated[
        str, typer.Option(help="llava-next-7b, llava-next-13b, mini, a folder with config.json, or a name on the hub.")
    ] = "llava-next-7b",
    image: Annotated[str, typer.Option(help="Size of the picture, WIDTHxHEIGHT in px.")] = "672x672",
    retention: Annotated[
        list[float] | None, typer.Option(help="Ratio; repeat for several.", show_default=False)
    ] = None,
    convention: Annotated[str, typer.Option(help="ours, or paper: what the paper's tables count.")] = "ours",
    text_tokens: Annotated[int, typer.Option(min=0, help="Length of the prompt without its image.")] = 40,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """What an image costs at several ratios, in closed form, without weights."""
    ratios = [check_ratio(ratio) for ratio in retention or [1.0, 0.75, 0.5, 0.25, 0.1]]
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_config  # noqa: PLC0415
        from globalcom2.lab.estimates import estimate_costs, named_configs, parse_size, weight_bytes  # noqa: PLC0415

    size = parse_size(image)
    config = named_configs().get(model) or load_config(model, named_configs())
    rows = estimate_costs(config, size, ratios, convention=convention, text_tokens=text_tokens)
    ours = estimate_costs(config, size, ratios, text_tokens=text_tokens) if convention == "paper" else None
    result: dict[str, Any] = {"model": model, "image": image, "convention": convention, "rows": rows}
    if ours is not None:
        result["ours"] = ours
    result["weight_bytes"] = weight_bytes(config)
    if as_json:
        typer.echo(json.dumps(result))
        return
    _print_estimate(result)


def _print_estimate(result: dict[str, Any]) -> None:
    paper = result["convention"] == "paper"
    weights = filesize.decimal(result["weight_bytes"])
    title = f"{result['model']}, {result['image']} image, 16-bit weights {weights}; TFLOPs"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    columns = ["ratio", "tokens", "prefill", "KV MB" if paper else "KV MiB", "whole", "share"]
    columns += ["ours", "whole", "share"] if paper else ["speed-up", "GFLOPs/token"]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for row, own in zip(result["rows"], result.get("ours", result["rows"]), strict=True):
        cache = f"{row['kv_cache_mb_as_printed']:g}" if paper else f"{row['kv_cache_bytes'] / 2**20:,.0f}"
        whole = row["total_flops"] + row.get("left_out_flops", 0)
        cells = [f"{row['retention_ratio']:g}", str(row["visual_tokens"]), _tera(row["prefill_flops"]), cache]
        cells += [_tera(whole), f"{row['share_of_whole']:.1%}"]
        if paper:
            cells += [str(own["visual_tokens"]), _tera(own["total_flops"]), f"{own['share_of_whole']:.1%}"]
        else:
            cells += [f"{row['speedup']:.2f}x", f"{row['decode_flops'] / 1e9:.2f}"]
        table.add_row(*cells)
    console = Console()
    console.print(table)
    first = result["rows"][0]
    if paper:
        console.print(
            "The paper counts ratio x all tokens of the views in the language model: no text, no newlines, no vision "
            f"tower and no projector ({_tera(first['left_out_flops'])} TFLOPs at every ratio, added in 'whole'). From "
            "'ours' on, columns count the real prompt."
        )
    else:
        console.print(
            f"'whole' adds the vision tower ({_tera(first['tower_flops'])}) and the projector on the tokens that stay. "
            "'speed-up' of the first token leaves out masked attention, which sdpa and flash kernels skip."
        )


def _tera(flops: int) -> str:
    return f"{flops / 1e12:,.2f}"


@app.command()
def bench(
    model: Annotated[
        str,
        typer.Option(help="mini, a checkpoint or hub name; or llava-next-86m, -500m, -7b, -13b with random weights."),
    ] = "mini",
    retention: Annotated[
        list[float] | None, typer.Option(help="Ratio; repeat for several.", show_default=False)
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(help="Method, as in eval; repeat for several.", show_default=False)
    ] = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Repeat for several.", show_default=False)] = None,
    image: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in px. Default: 2 x 2 crops.", show_default=False)
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measured rounds after one warm-up.")] = 5,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to decode.")] = 16,
    text_tokens: Annotated[int, typer.Option(min=0, help="Length of the prompt without its image.")] = 40,
    compare: Annotated[
        str | None, typer.Option(help="'eager': what output_attentions would cost.", show_default=False)
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the phases into this file.")] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure time to first token by phase, decoding and memory, with and without compression."""
    ratios = [check_ratio(ratio) for ratio in retention or [0.5, 0.25, 0.1]]
    names = method or ["globalcom2"]
    for name in names:
        parse_method(name)
    if compare not in (None, "eager"):
        raise InputError(f"--compare must be 'eager', got {compare!r}.")
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_config, load_model, random_model  # noqa: PLC0415
        from globalcom2.lab import bench as benchmarking  # noqa: PLC0415
        from globalcom2.lab.estimates import named_configs, parse_size  # noqa: PLC0415

    size = None if image is None else parse_size(image)
    notes.print(f"Loading {model}")
    config = named_configs().get(model)
    if config is None:
        load_config(model, named_configs())
    network = load_model(model, dtype, device, attn)[0] if config is None else random_model(config, dtype, device, attn)
    side = network.config.vision_config.image_size
    plan = benchmarking.Plan(size or (2 * side, 2 * side), text_tokens, new_tokens, rounds)
    rows = benchmarking.measure(
        network,
        benchmarking.settings_of(names, ratios, batch_size or [1]),
        plan,
        lambda steps: track(steps, "Measuring", console=notes),
    )
    result: dict[str, Any] = {
        "model": model,
        "weights": "random" if config is not None else "loaded",
        "device": str(network.device),
        "attn": network.config._attn_implementation,
        "image": f"{plan.image[0]}x{plan.image[1]}",
        "rounds": rounds,
        **measured_with(network),
        "rows": rows,
    }
    if compare == "eager":
        result["compare"] = benchmarking.compare_attention(network, plan)
    if plot is not None:
        benchmarking.draw_bench(rows, plot)
    if not as_json:
        _print_bench(result)
    typer.echo(json.dumps(result))


def _print_bench(result: dict[str, Any]) -> None:
    rows = result["rows"]
    one_batch = len({row["batch_size"] for row in rows}) == 1
    what = f"{result['model']} on {result['device']}, {result['dtype']}, {result['image']}"
    table = Table(
        title=f"{what}; milliseconds",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        pad_edge=False,
    )
    # Two lines each, so that all of it fits 80 columns.
    columns = ("tok-\nens", "TTFT", "tower", "sel-\nect", "pre-\nfill", "a\ntoken", "MiB", "speed-\nup", "pre-\ndicted")
    table.add_column("method", min_width=10, overflow="fold")
    for column in ("ratio", *columns) if one_batch else ("ratio", "batch", *columns):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        phases = ("ttft", "tower", "selection", "prefill", "decode")
        seconds = [row["decode_seconds_per_token" if name == "decode" else f"{name}_seconds"] for name in phases]
        table.add_row(
            row["method"],
            f"{row['retention_ratio']:g}",
            *([] if one_batch else [str(row["batch_size"])]),
            str(row["visual_tokens"]),
            *(f"{1e3 * value:,.{0 if value >= 0.1 else 1}f}" for value in seconds),
            "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f}",
            f"{row['speedup']:.2f}x",
            f"{row['predicted_speedup']:.2f}x",
        )
    console = Console()
    console.print(table)
    spread = max(row["ttft_spread"] for row in result["rows"])
    console.print(
        f"Medians of {result['rounds']} interleaved rounds; largest spread of a time to first token: {spread:.0%}."
    )
    if "compare" in result:
        times = ", ".join(f"{name.removesuffix('_seconds')} {1e3 * s:.1f} ms" for name, s in result["compare"].items())
        console.print(f"Vision tower, one image: {times}.")
