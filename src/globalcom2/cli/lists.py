"""`globalcom2 models` and `globalcom2 methods`."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from globalcom2.adapters.families import get_family, list_models, markdown_tables
from globalcom2.cli.app import Json, app
from globalcom2.core.methods import get_method, list_methods


@app.command()
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
    columns = ("model_type", "scores", "thumbnail", "budget", "tested")
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
