"""`globalcom2 serve`."""

from __future__ import annotations

import json
import os
import shlex
from typing import TYPE_CHECKING, Annotated

import typer

from globalcom2.cli.options import Json, Preset, Retention, read_ratio
from globalcom2.cli.output import notes
from globalcom2.errors import InputError

if TYPE_CHECKING:
    from globalcom2.hf.config import CompressionConfig


MostTokens = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="The most visual tokens of an image, exact. Takes the place of the ratio, or limits it.",
        show_default=False,
    ),
]
PerRequest = Annotated[
    bool,
    typer.Option(
        "--per-request",
        help="Let requests ask for a ratio or a limit: mm_processor_kwargs {'globalcom2_retention': 0.25} or "
        "{'globalcom2_max_visual_tokens': 64}. They may set nothing else of the image processor.",
    ),
]


def serve(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="'mini', 'mini-native', a checkpoint's folder, or a name on the hub.")],
    retention: Retention = None,
    floor: Annotated[
        float | None, typer.Option(help="Lowest ratio that a request gets. Default: --retention.", show_default=False)
    ] = None,
    max_visual_tokens: MostTokens = None,
    method: Annotated[
        str | None,
        typer.Option(help="Selector, with options if you like: globalcom2:alpha=0.5.", show_default=False),
    ] = None,
    preset: Preset = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="A saved CompressionConfig: its .json file, or the folder that has it. Other files go to `vllm serve`.",
            show_default=False,
        ),
    ] = None,
    per_request: PerRequest = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and stop. Needs no vLLM.")] = False,
    as_json: Json = False,
) -> None:
    """Serve a model with vLLM and shorter image prompts. Further flags go to `vllm serve`."""
    if as_json and not dry_run:
        raise InputError("--json must be given with --dry-run, got it alone: a server prints its own log.")
    ratio = None if not retention else read_ratio(retention)
    with notes.status("Reading settings"):
        from globalcom2.integrations.vllm import serving  # noqa: PLC0415

    files = config or []
    others = [part for file in files if not serving.is_ours(file) for part in ("--config", file)]
    saved = [file for file in files if serving.is_ours(file)]
    settings = serving.config_of(model, saved, preset, ratio, method, max_visual_tokens)
    serving.check_model(model, settings, network=not dry_run)
    made = serving.command(model, settings, floor, per_request, [*context.args, *others])
    notes.print(_told(settings), highlight=False)
    if dry_run:
        typer.echo(json.dumps({"command": made, "settings": settings.to_dict()}) if as_json else shlex.join(made))
        return
    serving.check_installed()
    notes.print(shlex.join(made), highlight=False, soft_wrap=True)
    os.execv(made[0], made)


def _told(settings: CompressionConfig) -> str:
    """What each image keeps, in words."""
    kept = [f"{settings.retention_ratio:.4g} of its visual tokens"] if settings.retention_ratio != 1.0 else []
    if settings.max_visual_tokens is not None:
        kept.append(
            f"at most {settings.max_visual_tokens} of them" if kept else f"at most {settings.max_visual_tokens} tokens"
        )
    text = settings.replace(max_visual_tokens=None).method_text
    return f"Each image keeps {', '.join(kept) or 'all of its visual tokens'}, chosen by {text}."
