"""`globalcom2 models`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from globalcom2.adapters.families import get_family, list_models
from globalcom2.adapters.family import Family
from globalcom2.adapters.tables import markdown_tables, native
from globalcom2.cli.options import Json, check_one_format
from globalcom2.cli.output import print_list


def models(
    as_json: Json = False,
    details: Annotated[bool, typer.Option("--details", help="Say where scores come from and what was tested.")] = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/models.md, with the unsupported ones.")
    ] = False,
) -> None:
    """List the supported model families."""
    check_one_format(as_json, markdown)
    if markdown:
        typer.echo(markdown_tables())
        return
    families = [get_family(name) for name in list_models()]
    if as_json:
        typer.echo(json.dumps({"families": [_plain(family) for family in families]}))
    elif details:
        columns = ("model_type", "scores", "thumbnail", "budget", "tested")
        print_list("families", [{name: getattr(family, name) for name in columns} for family in families], False)
    else:
        _print_table(families)


def _plain(family: Family) -> dict[str, object]:
    values = asdict(family)
    return {**values, "checkpoints": list(family.checkpoints)}


def _print_table(families: list[Family]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("model type", no_wrap=True)
    table.add_column("a checkpoint on the hub", overflow="fold")
    table.add_column("vLLM", no_wrap=True)
    for kept_whole in (False, True):
        for family in families:
            if native(family) is kept_whole:
                checkpoint = next(iter(family.checkpoints), "-")
                table.add_row(family.model_type, checkpoint, "yes" if family.vllm else "no")
        table.add_section()
    console = Console(highlight=False)
    console.print(table)
    console.print("Above the line, images are cut into crops. Below it they keep their resolution.")
    console.print("Where scores come from and what was tested: globalcom2 models --details.")
