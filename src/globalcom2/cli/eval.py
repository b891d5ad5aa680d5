"""`globalcom2 eval`."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from globalcom2._version import __version__
from globalcom2.cli.options import (
    Attention,
    BatchSize,
    Config,
    Dataset,
    Debug,
    Device,
    Dtype,
    Force,
    Json,
    Methods,
    Model,
    Pictures,
    Plot,
    Preset,
    Retentions,
    check_drawing,
    check_result,
    read_lists,
    read_result,
)
from globalcom2.cli.output import keep_result, measured_with, notes, progress_bar
from globalcom2.errors import InputError

if TYPE_CHECKING:
    from globalcom2.lab.dataset import Example
    from globalcom2.lab.evals import EvalSetting

RATIOS = (1.0, 0.25, 0.1, 0.05, 0.03)
QUICK_RATIOS = (1.0, 0.1, 0.05)
QUICK_METHODS = ("globalcom2", "globalcom2:preset=paper", "scope", "fastervlm", "uniform")
QUICK_PICTURES = 60
ALONE = "all tokens:inside="
OWN_SETS = ("mini", "mini-native")
"""Evaluation sets that ship with the package. Each is named like its model, and is that model's default."""


Quick = Annotated[
    bool,
    typer.Option("--quick", help="A first impression: 60 images, 3 ratios, 5 methods, unless you say otherwise."),
]
JournalFile = Annotated[
    Path | None,
    typer.Option(
        help="Keep every outcome in this .jsonl file, and take from it what an earlier run of this model and set "
        "found. A study with more methods then asks only what is new. A method whose code has changed needs a new file.",
        show_default=False,
    ),
]


def evaluate(
    retention: Retentions = None,
    method: Methods = None,
    preset: Preset = None,
    config: Config = None,
    model: Model = "mini",
    dataset: Dataset = None,
    pictures: Pictures = None,
    quick: Quick = False,
    batch_size: BatchSize = 16,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the result into this .json file. A stopped run goes on there.", show_default=False),
    ] = None,
    force: Force = False,
    journal: JournalFile = None,
    plot: Plot = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Measure how well a model answers with fewer visual tokens: methods x ratios on an evaluation set.

    Unless you say otherwise, every method is tried, other packages' too. How long it will take is said first. A result that
    --out holds already is shown again if it is of the same run.
    """
    ratios, methods = _lists(retention, method, preset, config, quick)
    first = QUICK_PICTURES if quick and pictures is None else pictures
    asked = _asked(model, dataset, first, (ratios, methods), (dtype, device, attn))
    result = None if force else read_result(out, asked)
    check_result(out, force or result is not None)
    check_drawing("--plot", plot)
    _check_journal(journal)
    if result is None:
        lenient = not any((method, preset, config))
        result = _measured(asked, ratios, methods, batch_size, journal or unfinished(out), lenient=lenient)
        keep_result(result, out, None if journal is not None else unfinished(out))
    if plot is not None:
        from globalcom2.lab.plots import draw_eval  # noqa: PLC0415

        draw_eval(result["runs"], plot)
    if as_json:
        typer.echo(json.dumps(result))
    else:
        from globalcom2.cli.eval_table import print_eval  # noqa: PLC0415

        print_eval(result)


def _lists(
    retention: list[str] | None, method: list[str] | None, preset: str | None, config: Path | None, quick: bool
) -> tuple[list[float], list[str]]:
    """Ratios and methods to try. A flag may also be "all tokens:inside=NAME": tokens leave inside the language model alone."""
    alone = [text for text in method or () if text.startswith(ALONE)]
    selectors = [text for text in method or () if text not in alone]
    default = (QUICK_RATIOS, QUICK_METHODS) if quick else (RATIOS, ())
    ratios, methods = read_lists(retention, selectors, preset, config, (default[0], () if alone else default[1]))
    if methods or alone:
        found = [*methods, *alone]
        if min(ratios) == 1 and any("inside=" in text for text in found):
            raise InputError(
                "--retention must hold a ratio below 1 with inside, got all tokens alone: here a ratio is the mean over the "
                "layers of the language model. Try 0.5."
            )
        return ratios, found
    with notes.status("Loading torch and transformers"):
        from globalcom2.lab.studies import study_methods  # noqa: PLC0415
    return ratios, study_methods()


def _check_journal(path: Path | None) -> None:
    """Raise `InputError` unless `path` is None or a .jsonl file that can be written."""
    if path is not None and (path.suffix != ".jsonl" or not path.resolve().parent.is_dir() or path.is_dir()):
        raise InputError(f"--journal must be a .jsonl file in an existing folder, got {str(path)!r}.")


def _asked(
    model: str,
    dataset: Path | None,
    pictures: int | None,
    settings: tuple[list[float], list[str]],
    loading: tuple[str, str, str | None],
) -> dict[str, Any]:
    """What a result depends on, as it is kept in the result to be recognised."""
    dtype, device, attn = loading
    return {
        "model": model,
        "dataset": None if dataset is None else str(dataset if str(dataset) in OWN_SETS else dataset.resolve()),
        "pictures": pictures,
        "ratios": settings[0],
        "methods": settings[1],
        "dtype": dtype,
        "device": device,
        "attn": attn,
        "globalcom2": __version__,
    }


def unfinished(out: Path | None) -> Path | None:
    """Where a run that was stopped left what it had."""
    return None if out is None else out.with_suffix(".partial.jsonl")


def _measured(
    asked: dict[str, Any],
    ratios: list[float],
    methods: list[str],
    batch_size: int,
    kept: Path | None,
    *,
    lenient: bool,
) -> dict[str, Any]:
    """The result, measured now. Methods that the model refuses are left out where `lenient`."""
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.lab import dataset as sets  # noqa: PLC0415
        from globalcom2.lab import evals  # noqa: PLC0415
        from globalcom2.lab.durations import seconds_left, told  # noqa: PLC0415
        from globalcom2.lab.journal import Journal, journal_header  # noqa: PLC0415

    chosen = asked["dataset"] or (asked["model"] if asked["model"] in OWN_SETS else "mini")
    path, shown = sets.OWN_SETS.get(chosen, (Path(chosen), None))
    examples = sets.load_examples(path, asked["pictures"], shown)
    notes.print(f"Loading {asked['model']}")
    network, processor = load_model(asked["model"], asked["dtype"], asked["device"], asked["attn"])
    journal = Journal(kept, journal_header(network, examples, __version__))
    settings = evals.settings_of(methods, ratios)
    if lenient:
        settings = possible(network, processor, settings, examples[0])
    questions = sum(len(example.questions) for example in examples)
    what = f"{questions:,} questions about {len(examples)} images in {len(settings)} settings"
    with notes.status(f"{what}: timing a first batch"):
        seconds = seconds_left(network, processor, examples, settings, batch_size, journal)
    notes.print(f"{what}: about {told(seconds)}.", highlight=False)
    with progress_bar() as bar:
        task = bar.add_task("Answering", total=len(settings) * len(examples))
        rows = evals.evaluate(
            network,
            processor,
            examples,
            settings,
            batch_size=batch_size,
            journal=journal,
            progress=partial(bar.advance, task),
        )
    about = {"model": asked["model"], "dataset": path.name, "pictures": len(examples), **measured_with(network)}
    return {**about, "batch_size": batch_size, "asked": asked, "runs": rows}


def possible(network: Any, processor: Any, settings: list[EvalSetting], example: Example) -> list[EvalSetting]:
    """The settings that the model can be in; of the others the reason is told."""
    from globalcom2.lab.studies import possible_settings  # noqa: PLC0415

    with notes.status("Trying every method"):
        found, refused = possible_settings(network, processor, settings, example)
    for name, reason in refused.items():
        notes.print(f"Left out: {name}: {reason}", highlight=False, markup=False, soft_wrap=True)
    return found
