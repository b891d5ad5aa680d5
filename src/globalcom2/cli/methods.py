"""`globalcom2 methods`."""

from __future__ import annotations

from globalcom2.cli.options import Json
from globalcom2.cli.output import print_list
from globalcom2.core.methods import get_method, list_methods


def methods(as_json: Json = False) -> None:
    """List the selectors."""
    found = [get_method(name) for name in list_methods()]
    print_list("methods", [{"name": m.name, "summary": m.summary, "source": m.source} for m in found], as_json)
