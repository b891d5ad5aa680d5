"""`globalcom2 methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from globalcom2.cli.options import Json, check_one_format
from globalcom2.cli.output import print_list
from globalcom2.core.methods import get_method, list_methods


def methods(
    as_json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print docs/methods.md, with all options and presets.")
    ] = False,
) -> None:
    """List the selectors."""
    check_one_format(as_json, markdown)
    if markdown:
        from globalcom2.cli.methods_page import methods_page  # noqa: PLC0415

        typer.echo(methods_page())
        return
    found = [get_method(name) for name in list_methods()]
    print_list("methods", [{"name": m.name, "summary": m.summary, "source": m.source} for m in found], as_json)
