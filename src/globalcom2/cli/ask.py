"""`globalcom2 ask`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    check_drawing,
    check_page,
    read_settings,
)
from globalcom2.cli.output import notes, print_answers
from globalcom2.cli.pictures import DEMO, read_picture, split_words

if TYPE_CHECKING:
    from globalcom2.lab.comparison import Comparison, Run


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="IMAGE... QUESTION",
        help="Image files, and a question about each of them. '-' reads an image from standard input. Default: the demo.",
        show_default=False,
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        help="Draw what was kept into this file (png, jpg, pdf, svg). Several are numbered: kept-1.png, kept-2.png.",
        show_default=False,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option(help="Write answers and all that was kept into one page to look at (html).", show_default=False),
]
AllowUrl = Annotated[
    bool, typer.Option("--allow-url", help="IMAGE may be an address (https, http), which is then fetched.")
]
MaxMegabytes = Annotated[float, typer.Option(min=0.001, help="Largest image from an address or standard input, MB.")]


def ask(
    words: Words = None,
    retention: Budgets = None,
    max_visual_tokens: MaxTokens = None,
    method: Methods = None,
    preset: Preset = None,
    config: Config = None,
    model: Model = "mini",
    picture: Picture = None,
    html: Html = None,
    allow_url: AllowUrl = False,
    max_mb: MaxMegabytes = 20,
    dtype: Dtype = "auto",
    device: Device = "auto",
    attn: Attention = None,
    max_new_tokens: NewTokens = 32,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Answer a question about images with all visual tokens and with a part of them.

    Several methods and ratios are compared: --retention 0.5,0.1 --method globalcom2,uniform.
    """
    names, question = split_words(words or [])
    settings = read_settings(retention, method, preset, config, max_visual_tokens)
    check_drawing("--picture", picture)
    check_page("--html", html)
    from globalcom2.mini import DEMO_PICTURE, DEMO_QUESTION  # noqa: PLC0415

    places = {name: name for name in names} or {DEMO: str(DEMO_PICTURE)}
    images = {name: read_picture(place, allow_url, max_mb) for name, place in places.items()}
    with notes.status("Loading torch and transformers"):
        from globalcom2.hf.loading import load_model  # noqa: PLC0415
        from globalcom2.lab.comparison import compare  # noqa: PLC0415
    if model != "mini":
        notes.print(f"Loading {model}")
    network, processor = load_model(model, dtype, device, attn)
    question = DEMO_QUESTION if question is None else question
    with notes.status("Answering with all tokens and with a part of them"):
        found = {
            name: compare(network, processor, image, question, settings, max_new_tokens=max_new_tokens)
            for name, image in images.items()
        }
    drawn = draw_runs(found, picture)
    page = None if html is None else write_page(found, html)
    if as_json:
        typer.echo(json.dumps({**described(model, found, drawn), "html": page}))
    else:
        print_all(found, drawn, page)


def print_all(found: dict[str, Comparison], drawn: Sequence[str | None], page: str | None) -> None:
    """Print a table per image, and what was drawn."""
    for name, comparison in found.items():
        print_answers(comparison, name if len(found) > 1 else None)
    for what, path in [*(("Picture", path) for path in drawn), ("Page", page)]:
        if path is not None:
            typer.echo(f"{what}: {path}")


def described(model: str, found: dict[str, Comparison], drawn: Sequence[str | None]) -> dict[str, Any]:
    """What `--json` prints: the first run under the keys that it had when there was but one, and all runs."""
    from globalcom2.lab.comparison import described as beside  # noqa: PLC0415

    runs = [
        {"image": name, "question": own.question, **beside(own, run), "picture": path}
        for (name, own, run), path in zip(all_runs(found), drawn, strict=True)
    ]
    return {"model": model, **runs[0], "runs": runs}


def all_runs(found: dict[str, Comparison]) -> Iterator[tuple[str, Comparison, Run]]:
    """Every run with its picture's name and comparison."""
    return ((name, own, run) for name, own in found.items() for run in own.runs)


def draw_runs(found: dict[str, Comparison], path: Path | None) -> list[str | None]:
    """Draw every run whose prompt is shorter; returns one path per run, None where nothing was drawn."""
    from globalcom2.lab.comparison import title  # noqa: PLC0415

    runs = list(all_runs(found))
    if path is None:
        return [None] * len(runs)
    from globalcom2.lab.picture import draw_picture  # noqa: PLC0415

    drawn: list[str | None] = []
    for number, (_, own, run) in enumerate(runs, 1):
        if run.entry is None or run.visual_tokens == own.full.visual_tokens:
            drawn.append(None)
            continue
        target = path if len(runs) == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        draw_picture(own.image, run.entry, target, title=title(own, run))
        drawn.append(str(target))
    if not any(drawn):
        notes.print("No picture drawn: every prompt keeps all visual tokens.")
    return drawn


def write_page(found: dict[str, Comparison], path: Path) -> str | None:
    """Write one page with every run's answer and what it kept; returns its path, None if no run has anything to show."""
    from globalcom2.lab.sheets import draw_page  # noqa: PLC0415

    several = len(found) > 1
    shown = [(name, own, run) for name, own, run in all_runs(found) if run.entry is not None]
    if not shown:
        notes.print("No page written: nothing was compressed.")
        return None
    draw_page(
        [own.image for _, own, _ in shown],
        [run.entry for _, _, run in shown if run.entry is not None],
        path,
        shown[0][1].question,
        names=[f"{name}: {run.setting}" if several else run.setting for name, _, run in shown],
        answers=[run.answer for _, _, run in shown],
        table=[row for name, own in found.items() for row in own.table(name if several else None)],
    )
    return str(path)
