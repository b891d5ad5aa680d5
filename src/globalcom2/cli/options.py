"""Options that several commands take: one definition each, and how their texts are read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from globalcom2.cli.output import notes
from globalcom2.core.budget import AUTO, check_ratio
from globalcom2.core.methods import list_methods, method_text, parse_method
from globalcom2.core.presets import PRESETS, preset_settings
from globalcom2.errors import InputError

if TYPE_CHECKING:
    from globalcom2.lab.settings import Setting

_RETENTION = ("--retention", "--retention-ratio")
Retention = Annotated[
    list[str] | None,
    typer.Option(
        *_RETENTION,
        metavar="RATIO",
        help="Fraction of the visual tokens to keep, in (0, 1]. Default: 0.1.",
        show_default=False,
    ),
]
"""One ratio; a list only so that a second one is refused instead of replacing the first."""
Retentions = Annotated[
    list[str] | None,
    typer.Option(
        *_RETENTION,
        metavar="RATIOS",
        help="Fractions of the visual tokens to keep: 0.5,0.25,0.1, or one per flag.",
        show_default=False,
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option(
        *_RETENTION,
        metavar="RATIOS",
        help="Fractions of the visual tokens to keep: 0.5,0.1, or one per flag; or auto, by what the image shows.",
        show_default=False,
    ),
]
MaxTokens = Annotated[
    list[str] | None,
    typer.Option(
        "--max-visual-tokens",
        metavar="TOKENS",
        help="The most visual tokens of an image, exact: 128, or 64,128. Takes the place of the ratio, or limits it.",
        show_default=False,
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="METHODS",
        help="Selectors, with options if you like: uniform,globalcom2:alpha=0.3, or one per flag.",
        show_default=False,
        autocompletion=list_methods,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Named settings of globalcom2: default, paper, published.",
        show_default=False,
        autocompletion=lambda: list(PRESETS),
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(help="A saved CompressionConfig: its .json file, or the folder that has it.", show_default=False),
]
NewTokens = Annotated[int, typer.Option(min=1, help="Longest answer.")]
Model = Annotated[str, typer.Option(help="'mini', 'mini-native', a folder with a checkpoint, or a name on the hub.")]
Dtype = Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Attention = Annotated[str | None, typer.Option(help="eager, sdpa, flash_attention_2, ...", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, nothing else.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
TextTokens = Annotated[int, typer.Option(min=0, help="Length of the prompt without its image.")]
Dataset = Annotated[
    Path | None, typer.Option(help="Parquet file. Default: the set that ships with the package.", show_default=False)
]
Pictures = Annotated[
    int | None, typer.Option(min=2, help="Only the set's first images. Default: all.", show_default=False)
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images per batch.")]
Plot = Annotated[Path | None, typer.Option(help="Draw a plot into this file (png, jpg, pdf, svg).", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Overwrite the result that --out already holds.")]


def read_ratio(texts: Sequence[str] | None, default: float = 0.1) -> float:
    """The one ratio that `--retention` gives.

    Raises:
        InputError: Not a ratio, or several.
    """
    ratios = read_ratios(texts, [default])
    if len(ratios) != 1:
        raise InputError(f"--retention must be one ratio here, got {len(ratios)}. `globalcom2 eval` compares several.")
    return ratios[0]


def read_ratios(texts: Sequence[str] | None, default: Sequence[float]) -> list[float]:
    """The ratios that `--retention` gives, each flag with one or several between commas.

    Raises:
        InputError: Not a ratio; a percentage is recognised and the message names the ratio meant.
    """
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    return [_ratio(part) for part in parts] if parts else list(default)


def read_budgets(texts: Sequence[str] | None, default: Sequence[float | str]) -> list[float | str]:
    """The ratios that `--retention` gives where "auto" is one, too.

    Raises:
        InputError: Neither a ratio nor "auto".
    """
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    return [part if part == AUTO else _ratio(part) for part in parts] if parts else list(default)


def _ratio(text: str) -> float:
    percent = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*%", text)
    if percent:
        meant = float(percent[1]) / 100
        cure = f" Did you mean {meant:g}?" if 0 < meant <= 1 else ""
        raise InputError(f"--retention must be a fraction in (0, 1], got the percentage {text!r}.{cure}")
    try:
        value = float("" if "_" in text else text)  # float() takes 0.2_5 for 0.25
    except ValueError:
        cure = "auto is for `ask` and `batch`." if text == AUTO else "Write 0.1 for a tenth."
        raise InputError(f"--retention must be a number in (0, 1], got {text!r}. {cure}") from None
    return check_ratio(value)


def read_counts(flag: str, texts: Sequence[str] | None, default: Sequence[int]) -> list[int]:
    """The whole numbers from 1 on that a flag gives, each flag with one or several between commas.

    Raises:
        InputError: Something else.
    """
    parts = [part.strip() for text in texts or () for part in text.split(",")]
    for part in parts:
        if not part.isdecimal() or int(part) < 1:
            raise InputError(f"{flag} must be whole numbers from 1 on, got {part!r}.")
    return [int(part) for part in parts] if parts else list(default)


def read_methods(texts: Sequence[str] | None, default: Sequence[str]) -> list[str]:
    """The methods that `--method` gives, each flag with one or several between commas, every name checked.

    A comma also parts the options of a method. A new method starts where a part has a colon or no equals sign:
    "uniform,globalcom2:alpha=0.3,newlines=none" are two.

    Raises:
        InputError: An unknown method, or an option that cannot be read.
    """
    methods: list[str] = []
    for text in texts or ():
        for number, part in enumerate(text.split(",")):
            starts = number == 0 or ":" in part.partition("=")[0] or "=" not in part
            if starts:
                methods.append(part.strip())
            else:
                methods[-1] += f",{part}"
    methods = methods or list(default)
    for method in methods:
        parse_method(method)
    return methods


def read_settings(
    ratios: Sequence[str] | None,
    methods: Sequence[str] | None,
    preset: str | None,
    config: Path | None,
    max_tokens: Sequence[str] | None = None,
) -> list[Setting]:
    """What `--retention`, `--max-visual-tokens`, `--method`, `--preset` and `--config` give: one setting at least.

    Raises:
        InputError: What cannot be read, or a preset with a configuration.
    """
    from globalcom2.lab.settings import settings_from, settings_of  # noqa: PLC0415

    _check_one_source(preset, config)
    limits = read_counts("--max-visual-tokens", max_tokens, ())
    if config is None:
        budgets = read_budgets(ratios, [1.0 if limits else 0.1])
        return settings_of(read_methods(methods, ["globalcom2"]), budgets, preset, limits or [None])
    from globalcom2.hf.config import CompressionConfig  # noqa: PLC0415

    saved = CompressionConfig.from_pretrained(config)
    return settings_from(
        saved,
        read_methods(methods, ()) if methods else None,
        read_budgets(ratios, ()) if ratios else None,
        limits or None,
    )


def _check_one_source(preset: str | None, config: Path | None) -> None:
    """Raise `InputError` where both a preset and a configuration say how to compress."""
    if preset is not None and config is not None:
        raise InputError(
            f"--preset must be left out with --config, got {preset!r} and {str(config)!r}: both say how to compress. Write "
            "the preset into the configuration."
        )


def read_lists(
    ratios: Sequence[str] | None,
    methods: Sequence[str] | None,
    preset: str | None,
    config: Path | None,
    default: tuple[Sequence[float], Sequence[str]],
) -> tuple[list[float], list[str]]:
    """The ratios and methods that a study is to cover: what the flags say, else the configuration, else `default`.

    A preset is written into every method, and stands for one method where none is given.
    """
    _check_one_source(preset, config)
    if config is not None:
        from globalcom2.hf.config import CompressionConfig  # noqa: PLC0415
        from globalcom2.lab.settings import settings_from  # noqa: PLC0415

        saved = CompressionConfig.from_pretrained(config)
        if saved.limits or saved.follows_content:
            raise InputError(
                f"--config must have a ratio here, got {str(config)!r} with {saved.described}. `ask` and `batch` take it."
            )
        # Any ratio below 1 will do here: at 1 all methods are alike, and only one would be left.
        found = settings_from(saved, read_methods(methods, ()) if methods else None, [0.5])
        return read_ratios(ratios, [saved.highest_ratio]), [method_text(s.method, s.options) for s in found]
    if preset is None:
        return read_ratios(ratios, default[0]), read_methods(methods, default[1])
    return read_ratios(ratios, default[0]), [_with_preset(m, preset) for m in read_methods(methods, ["globalcom2"])]


def _with_preset(method: str, preset: str) -> str:
    """A method's text with a preset, over which the method's own options win."""
    name, _, options = method.partition(":")
    preset_settings(preset, name)  # refuses an unknown preset, and one with another method
    return f"{name}:preset={preset}{options and ','}{options}"


def check_one_format(as_json: bool, markdown: bool) -> None:
    """Raise `InputError` where both `--json` and `--markdown` are given."""
    if as_json and markdown:
        raise InputError("--markdown must be left out with --json, got both. Give one of them.")


def check_drawing(flag: str, path: Path | None) -> None:
    """Raise `InputError` unless `path` is None or a file that can be drawn into."""
    _check_file(flag, path, (".png", ".pdf", ".svg", ".jpg"))


def check_page(flag: str, path: Path | None) -> None:
    """Raise `InputError` unless `path` is None or an HTML file that can be written."""
    _check_file(flag, path, (".html", ".htm"))


def check_table(path: Path) -> None:
    """Raise `InputError` unless `path` is a CSV file that can be written."""
    _check_file("--csv", path, (".csv",))


def check_result(path: Path | None, force: bool) -> None:
    """Raise `InputError` for an `--out` that cannot be written, or that would replace a result without `--force`."""
    _check_file("--out", path, (".json",))
    if path is not None and path.exists() and not force:
        raise InputError(
            f"--out must be a new file, got {str(path)!r}, which holds a result of other settings. Choose another name, or "
            "add --force to overwrite it."
        )


def read_result(path: Path | None, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The result that `path` holds, if it answers what is asked; None if there is none, or another one."""
    if path is None or not path.is_file():
        return None
    try:
        result = json.loads(path.read_text())
    except ValueError:
        return None
    same = isinstance(result, dict) and result.get("asked") == asked
    if same:
        notes.print(f"{path} has this result already; --force measures again.", highlight=False, soft_wrap=True)
    return result if same else None


def _check_file(flag: str, path: Path | None, endings: tuple[str, ...]) -> None:
    if path is None:
        return
    if path.suffix.lower() not in endings or not path.resolve().parent.is_dir():
        listed = " or ".join([", ".join(endings[:-1]), endings[-1]] if endings[1:] else endings)
        raise InputError(f"{flag} must be a {listed} file in an existing folder, got {str(path)!r}.")
    if path.is_dir():
        raise InputError(f"{flag} must be a file, got the folder {str(path)!r}. Write the file's name, too.")
