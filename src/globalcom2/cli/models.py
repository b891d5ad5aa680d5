"""`globalcom2 models`."""

from __future__ import annotations

from typing import Annotated

import typer

from globalcom2.adapters.families import get_family, list_models, markdown_tables
from globalcom2.cli.options import Json
from globalcom2.cli.output import print_list

COLUMNS = ("model_type", "scores", "thumbnail", "budget", "tested")


def models(
    as_json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/models.md, with the unsupported ones.")
    ] = False,
) -> None:
    """List the supported model families."""
    if markdown:
        typer.echo(markdown_tables())
        return
    found = [get_family(name) for name in list_models()]
    print_list("families", [{column: getattr(family, column) for column in COLUMNS} for family in found], as_json)
