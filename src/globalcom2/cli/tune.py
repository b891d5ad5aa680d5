"""`globalcom2 tune`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from globalcom2._version import __version__
from globalcom2.cli.eval import possible
from globalcom2.cli.options import (
    Attention,
    BatchSize,
    Config,
    Debug,
    Device,
    Dtype,
    Force,
    Json,
    Methods,
    Model,
    Pictures,
    Preset,
    Retentions,
    check_result,
    read_lists,
    read_result,
)
from globalcom2.cli.output import figures_console, keep_result, measured_with, notes, progress_bar
from globalcom2.errors import InputError
from globalcom2.hf.config_files import FILE

if TYPE_CHECKING:
    from globalcom2.hf.config import CompressionConfig
    from globalcom2.lab.evals import EvalSetting
    from globalcom2.lab.tuning import Tuning

RATIOS = (0.75, 0.5, 0.25, 0.1, 0.05)
METHODS = ("globalcom2", "scope", "fastervlm", "uniform")
"""Those of them that a model refuses are left out."""
NOTHING = 3
"""Exit code where no setting can be promised."""
RESULT = "tuning.json"
"""In the folder `--out`, beside the configuration."""

MaxLoss = Annotated[
    str,
    typer.Option(
        metavar="SHARE", help="Most accuracy to lose, in points: 1% is one question of a hundred.", show_default=False
    ),
]
Choosing = Annotated[float, typer.Option(metavar="SHARE", help="Share of the images that choose; the others check.")]
Out = Annotated[
    Path | None,
    typer.Option(help="Folder for the configuration and the result. A stopped run goes on there.", show_default=False),
]


def tune(
    dataset: Annotated[Path, typer.Argument(metavar="DATA", help="Parquet file with your images and questions.")],
    max_loss: MaxLoss,
    retention: Retentions = None,
    method: Methods = None,
    preset: Preset = None,
    config: Config = None,
    model: Model = "mini",
    pictures: Pictures = None,
    choosing: Choosing = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of the split. Choose it before you look.")] = 0,
    batch_size: BatchSize = 16,
    out: Out = None,
    force: Force = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Find the ratio and method that keep the loss on your own questions under a bound, with 95 % confidence.

    Half of the images choose, the other half checks. Exit code 3 says that nothing can be promised.
    """
    bound = read_share(max_loss)
    if not 0 < choosing < 1:
        raise InputError(f"--choosing must be a share in (0, 1), got {choosing:g}. Write 0.5 for half of the images.")
    ratios, methods = read_lists(retention, method, preset, config, (RATIOS, METHODS))
    if min(ratios) == 1:
        raise InputError("--retention must hold a ratio below 1, got all tokens alone. Try 0.5,0.25,0.1.")
    loading = {"model": model, "dtype": dtype, "device": device, "attn": attn}
    search = {"max_loss": bound, "choosing": choosing, "seed": seed, "ratios": ratios, "methods": methods}
    asked = {**loading, **search, "dataset": str(dataset.resolve()), "pictures": pictures, "globalcom2": __version__}
    path = None if out is None else out / RESULT
    result = None if force else read_result(path, asked)
    _check_folder(out, force)
    if path is not None and path.exists():
        check_result(path, force or result is not None)
    if result is None:
        by_default = not any((method, preset, config))
        result = _measured(asked, batch_size, path, lenient=by_default)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        print_tuning(result)
    if result["promised"] is None:
        raise typer.Exit(NOTHING)


def read_share(text: str) -> float:
    """The bound that `--max-loss` gives: a percentage, or a share below 1.

    Raises:
        InputError: Something else; a number from 1 on is taken for a percentage without its sign.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    share = float(found[1]) / (100 if found[2] else 1) if found else 0.0
    if not found or not 0 < share < 1:
        meant = f" Did you mean {found[1]}%?" if found and not found[2] and 1 <= float(found[1]) < 100 else ""
        raise InputError(f"--max-loss must be more than 0 and less than 100%, such as 1% or 0.01, got {text!r}.{meant}")
    return share


def _check_folder(out: Path | None, force: bool) -> None:
    """Raise `InputError` where `--out` is a file, or has a configuration that is not of an earlier result."""
    if out is None:
        return
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a folder, got the file {str(out)!r}. A configuration is put into it.")
    if (out / FILE).exists() and not (out / RESULT).exists() and not force:
        raise InputError(
            f"--out must be a folder without a configuration of its own, got {str(out)!r}, which has {FILE}. Choose another, "
            "or add --force to overwrite it."
        )


def _keep_config(config: CompressionConfig | None, folder: Path) -> None:
    """Write what is promised; where nothing is, what was promised before goes, so that nobody takes it for a promise."""
    if config is None:
        (folder / FILE).unlink(missing_ok=True)
    else:
        notes.print(f"Configuration: {config.save_pretrained(folder)}", highlight=False, soft_wrap=True)


def _measured(asked: dict[str, Any], batch_size: int, path: Path | None, lenient: bool) -> dict[str, Any]:
    """The result, measured now and kept. Methods that the model refuses are left out where `lenient`."""
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.lab.dataset import load_examples  # noqa: PLC0415
        from globalcom2.lab.evals import settings_of  # noqa: PLC0415
        from globalcom2.lab.journal import Journal, journal_header  # noqa: PLC0415
        from globalcom2.lab.tuning import Tuning  # noqa: PLC0415

    examples = load_examples(Path(asked["dataset"]), asked["pictures"])
    settings = settings_of(asked["methods"], asked["ratios"])
    notes.print(f"Loading {asked['model']}")
    network, processor = load_model(asked["model"], asked["dtype"], asked["device"], asked["attn"])
    if lenient:
        settings = possible(network, processor, settings, examples[0])
    journal_path = None if path is None else path.with_suffix(".partial.jsonl")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    tuning = Tuning(
        network,
        processor,
        examples,
        settings,
        asked["max_loss"],
        seed=asked["seed"],
        share=asked["choosing"],
        batch_size=batch_size,
        journal=Journal(journal_path, journal_header(network, examples, __version__)),
    )
    _warn_of_few(tuning)
    _stage("Choosing", tuning, settings)
    if tuning.steps:
        _stage("Checking", tuning, [settings[0], *tuning.chosen])
    about = {"model": asked["model"], "dataset": Path(asked["dataset"]).name, **measured_with(network)}
    result = {**about, "asked": asked, **tuning.result()}
    if path is not None:
        _keep_config(tuning.config, path.parent)
    keep_result(result, path, journal_path)
    return result


def _warn_of_few(tuning: Tuning) -> None:
    """Say where no setting, however good, can be promised on so few images."""
    from globalcom2.lab.promises import fewest_pictures  # noqa: PLC0415

    needed = fewest_pictures(tuning.max_loss, tuning.confidence)
    if len(tuning.checking) < needed:
        notes.print(
            f"A bound of {tuning.max_loss:.3g} needs {needed} images to check, even if no answer is lost. There are "
            f"{len(tuning.checking)}.",
            highlight=False,
        )


def _stage(name: str, tuning: Tuning, settings: list[EvalSetting]) -> None:
    """Choose or check, with its duration said first."""
    from globalcom2.lab.durations import seconds_left, told  # noqa: PLC0415

    examples, run = (tuning.choosing, tuning.choose) if name == "Choosing" else (tuning.checking, tuning.check)
    questions = sum(len(example.questions) for example in examples)
    what = f"{name}: {questions:,} questions about {len(examples)} images in {len(settings)} settings"
    with notes.status(f"{what}: timing a first batch"):
        seconds = seconds_left(tuning.model, tuning.processor, examples, settings, tuning.batch_size, tuning.journal)
    most = "about" if name == "Choosing" else "at most about"
    notes.print(f"{what}: {most} {told(seconds)}.", highlight=False)
    with progress_bar() as bar:
        task = bar.add_task(name, total=len(settings) * len(examples))
        run(partial(bar.advance, task))
        bar.update(task, total=bar.tasks[task].completed)


def print_tuning(result: dict[str, Any]) -> None:
    """Print what was tried on one half, what was checked on the other, and what is promised."""
    console = figures_console()
    choosing, checking = result["choosing"], result["checking"]
    title = f"{result['model']} on {result['dataset']}: {result['pictures']} images"
    console.print(title, style="bold", highlight=False)
    console.print(f"Choosing, on {choosing['pictures']} images", highlight=False)
    console.print(_table(choosing["runs"], {"chance": _chance}))
    if checking["runs"]:
        console.print(f"Checking, on {checking['pictures']} other images", highlight=False)
        console.print(_table(checking["runs"], {"loss, at most": _upper, "holds": _holds}))
    console.print("Losses in points of accuracy. chance: to pass the check. at most: of this setting by itself.")
    console.print(Text(verdict(result)))


def _table(runs: list[dict[str, Any]], more: dict[str, Callable[[dict[str, Any]], str]]) -> Table:
    """Runs of a half; columns of `more` are empty for all tokens."""
    from globalcom2.lab.labels import is_full, label  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("method", overflow="fold")
    for column in ("ratio", "tokens", "accuracy", "loss", *more):
        table.add_column(column, justify="right", no_wrap=True)
    for row in runs:
        figures = (f"{row['retention_ratio']:g}", f"{row['visual_tokens']:.0f}", f"{row['accuracy']:.1%}")
        cells = (
            ["-"] * (1 + len(more)) if is_full(row) else [_points(row["loss"]), *(cell(row) for cell in more.values())]
        )
        table.add_row(Text(label(row)), *figures, *cells)
    return table


def _chance(row: dict[str, Any]) -> str:
    return f"{row['chance']:.0%}"


def _upper(row: dict[str, Any]) -> str:
    return _points(row["upper"])


def _holds(row: dict[str, Any]) -> str:
    return "yes" if row["holds"] else "no"


def _points(share: float) -> str:
    """A share in points of accuracy, such as "0.4"."""
    return f"{100 * share:.2f}"


def verdict(result: dict[str, Any]) -> str:
    """What is promised, or what it would take, in sentences."""
    from globalcom2.lab.labels import label  # noqa: PLC0415

    promised, bound = result["promised"], f"{100 * result['max_loss']:g}"
    if promised is not None:
        name = f"{label(promised)} at {promised['retention_ratio']:g}"
        return (
            f"Promised: {name} loses less than {bound} points of accuracy on questions like these, with "
            f"{result['confidence']:.0%} confidence. It reads {promised['visual_tokens']:.0f} visual tokens per image."
        )
    needed = result["pictures_needed"]
    cure = "Allow a larger loss, or try higher ratios or other methods."
    if needed is not None and needed <= result["pictures"]:
        cure = "The check was close: a set of this size passes more often than not. A larger one is surer."
    elif needed is not None:
        cure = f"A set of about {needed:,} images like these would do. Or allow a larger loss, or try higher ratios."
    return f"Nothing can be promised: no setting is sure to lose less than {bound} points on this set. {cure}"
