"""The command line. Checks arguments before anything heavy is imported; `--json` prints one object on stdout."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box, filesize
from rich.console import Console
from rich.progress import track
from rich.table import Table

from globalcom2._version import __version__
from globalcom2.budget import check_ratio
from globalcom2.errors import DataError, GlobalCom2Error, InputError
from globalcom2.families import get_family, list_models
from globalcom2.methods import get_method, list_methods

app = typer.Typer(
    help="Visual-token compression for high-resolution vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
notes = Console(stderr=True)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"globalcom2 {__version__}")
        raise typer.Exit


@app.command()
def ask(
    image: Annotated[
        Path | None, typer.Argument(help="Picture file. Default: the demo picture.", show_default=False)
    ] = None,
    question: Annotated[str | None, typer.Argument(help="Default: the demo question.", show_default=False)] = None,
    retention: Annotated[float, typer.Option(help="Fraction of the visual tokens to keep, in (0, 1].")] = 0.1,
    method: Annotated[str, typer.Option(help="Selector, see `globalcom2 methods`.")] = "globalcom2",
    model: Annotated[str, typer.Option(help="'mini', a folder with a checkpoint, or a name on the hub.")] = "mini",
    picture: Annotated[Path | None, typer.Option(help="Draw what was kept into this file (png, pdf, svg).")] = None,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    attn: Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2, ...", show_default=False)] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 32,
    as_json: Json = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Answer a question about a picture with all visual tokens and with a part of them."""
    check_ratio(retention)
    get_method(method)
    if image is not None and question is None:
        raise InputError("QUESTION must be given with an image, got none. Put it in quotes after the image.")
    if picture is not None and (
        picture.suffix.lower() not in (".png", ".pdf", ".svg", ".jpg") or not picture.resolve().parent.is_dir()
    ):
        raise InputError(
            f"--picture must be a .png, .pdf, .svg or .jpg file in an existing folder, got {str(picture)!r}."
        )
    with notes.status("Loading torch and transformers"):
        from globalcom2.comparison import Asked, compare_answers  # noqa: PLC0415
        from globalcom2.images import open_image  # noqa: PLC0415
        from globalcom2.mini import DEMO_PICTURE, DEMO_QUESTION  # noqa: PLC0415

        path = image if image is not None else DEMO_PICTURE
        loaded = open_image(path)
        from globalcom2.loading import load_model  # noqa: PLC0415
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
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """What an image costs at several ratios, in closed form, without weights."""
    ratios = [check_ratio(ratio) for ratio in retention or [1.0, 0.75, 0.5, 0.25, 0.1]]
    with notes.status("Loading torch and transformers"):
        from globalcom2.estimation import estimate_costs, named_configs, parse_size, weight_bytes  # noqa: PLC0415
        from globalcom2.loading import load_config  # noqa: PLC0415

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
    columns += ["ours: tokens", "whole", "share"] if paper else ["GFLOPs/token"]
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
            cells.append(f"{row['decode_flops'] / 1e9:.2f}")
        table.add_row(*cells)
    console = Console()
    console.print(table)
    first = result["rows"][0]
    if paper:
        console.print(
            "The paper counts ratio x all tokens of the views in the language model: no text, no newlines, no vision "
            f"tower and no projector ({_tera(first['left_out_flops'])} TFLOPs at every ratio, added in 'whole'). 'ours' "
            "counts the real prompt."
        )
    else:
        console.print(
            f"'whole' adds the vision tower ({_tera(first['tower_flops'])}) and the projector on the tokens that stay."
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
    method: Annotated[list[str] | None, typer.Option(help="Method; repeat for several.", show_default=False)] = None,
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
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    attn: Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2, ...", show_default=False)] = None,
    as_json: Json = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Measure time to first token by phase, decoding and memory, with and without compression."""
    ratios = [check_ratio(ratio) for ratio in retention or [0.5, 0.25, 0.1]]
    names = [get_method(name).name for name in method or ["globalcom2"]]
    if compare not in (None, "eager"):
        raise InputError(f"--compare must be 'eager', got {compare!r}.")
    with notes.status("Loading torch and transformers"):
        from globalcom2 import bench as benchmarking  # noqa: PLC0415
        from globalcom2.estimation import named_configs, parse_size  # noqa: PLC0415
        from globalcom2.loading import load_config, load_model, random_model  # noqa: PLC0415

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
        "dtype": str(network.dtype).removeprefix("torch."),
        "attn": network.config._attn_implementation,
        "image": f"{plan.image[0]}x{plan.image[1]}",
        "rounds": rounds,
        **benchmarking.machine(network.device),
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
    table = Table(
        title=f"{result['model']} on {result['device']}, {result['dtype']}, {result['image']}", title_justify="left"
    )
    columns = (
        "method",
        "batch",
        "tokens",
        "TTFT ms",
        "tower",
        "select",
        "prefill",
        "ms/token",
        "MiB",
        "speed-up",
        "predicted",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in result["rows"]:
        memory = "-" if row["peak_memory_bytes"] is None else f"{row['peak_memory_bytes'] / 2**20:,.0f}"
        milliseconds = [f"{1e3 * row[f'{name}_seconds']:.1f}" for name in ("ttft", "tower", "selection", "prefill")]
        table.add_row(
            f"{row['method']} {row['retention_ratio']:g}",
            str(row["batch_size"]),
            str(row["visual_tokens"]),
            *milliseconds,
            f"{1e3 * row['decode_seconds_per_token']:.1f}",
            memory,
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


@app.command()
def models(as_json: Json = False) -> None:
    """List the supported model families."""
    found = [get_family(name) for name in list_models()]
    columns = ("model_type", "scores", "thumbnail", "tested")
    _print_rows("families", [{column: getattr(family, column) for column in columns} for family in found], as_json)


@app.command()
def methods(as_json: Json = False) -> None:
    """List the selectors."""
    found = [get_method(name) for name in list_methods()]
    _print_rows("methods", [{"name": m.name, "summary": m.summary, "source": m.source} for m in found], as_json)


def _print_rows(name: str, rows: list[dict[str, str]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({name: rows}))
        return
    table = Table()
    for column in rows[0]:
        table.add_column(column.replace("_", " "))
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 2 for a wrong call, 1 for a failure."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        code = app(given, standalone_mode=False)
    except typer.Exit as stop:
        code = stop.exit_code
    except (KeyboardInterrupt, typer.Abort):
        notes.print("Stopped.")
        code = 130
    except Exception as error:
        if debug and not hasattr(error, "show"):
            raise
        code = _explain(error)
    raise SystemExit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """Print one error on stderr; returns the exit code."""
    if hasattr(error, "show") and hasattr(error, "exit_code"):  # a usage error found by typer itself
        error.show()
        return int(error.exit_code)
    if isinstance(error, GlobalCom2Error):
        print(f"Error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DataError) else 2
    print(f"Error: {type(error).__name__}: {error}\nRun again with --debug for the traceback.", file=sys.stderr)
    return 1
