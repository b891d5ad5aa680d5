"""The registry of selectors: names to lazily imported functions. Knows no torch, so listing is instant."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from globalcom2.errors import InputError, unknown_name

ENTRY_POINTS = "globalcom2.methods"
"""Entry-point group: another package registers `name = "module:METHOD"`, METHOD being a `Method`."""


@dataclass(frozen=True)
class Method:
    """One selector: `target` is "module:function", called as function(views, retention_ratio, **options) -> Ranking."""

    name: str
    target: str
    summary: str
    source: str
    published: dict[str, Any] = field(default_factory=dict)
    """Options that reproduce the published code, used with `exact=False`."""
    needs_features: bool = False
    """True to receive `views.features`; gathering them costs a copy of the tower's output."""
    needs_grid: bool = True
    """False for a method that looks at no crop's place. All others get no image whose grid is unknown: its crops share
    the budget evenly, with a warning."""

    def load(self) -> Callable[..., Any]:
        """Import the selector's function."""
        module, _, function = self.target.partition(":")
        return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]


_METHODS = {
    method.name: method
    for method in (
        Method(
            "globalcom2",
            "globalcom2.selectors.globalcom2:globalcom2",
            "Thumbnail and crops decide how many tokens each crop keeps, and the thumbnail has a say in which",
            "https://arxiv.org/abs/2501.05179",
            published={"regions": "blocks", "alpha": 0.5, "allocation": "softmax"},
        ),
        Method(
            "uniform",
            "globalcom2.selectors.uniform:uniform",
            "Baseline: the same ratio for every view, best local scores first",
            "https://arxiv.org/abs/2412.01818",
            needs_grid=False,
        ),
        Method(
            "random",
            "globalcom2.selectors.random:random",
            "Baseline: the same ratio for every view, tokens drawn at random (seeded)",
            "sanity baseline",
            needs_grid=False,
        ),
    )
}


def register_method(method: Method) -> None:
    """Add a selector under its name; a name can be registered once."""
    if method.name in _METHODS:
        raise InputError(
            f"method {method.name!r} is already registered by {_METHODS[method.name].target}. Choose another name."
        )
    _METHODS[method.name] = method


@cache
def _load_entry_points() -> None:
    for entry in entry_points(group=ENTRY_POINTS):
        register_method(entry.load())


def list_methods() -> list[str]:
    """Names of all selectors, for `method=`."""
    _load_entry_points()
    return sorted(_METHODS)


def get_method(name: str) -> Method:
    """The registered method of that name; an unknown name raises `InputError` with the nearest ones."""
    _load_entry_points()
    if not isinstance(name, str) or name not in _METHODS:
        raise unknown_name("method", name, _METHODS)
    return _METHODS[name]


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method with options as the command line has them, such as "globalcom2:alpha=0.3,newlines=none".

    Returns:
        The method's name and the options, for `compress(model, ratio, name, **options)`.

    Raises:
        InputError: An unknown method, an option without a value, or one that has a flag of its own.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"an option of method {name!r} must be NAME=VALUE, got {part!r}. Write {part}=VALUE.")
        if option in ("model", "method", "retention_ratio"):
            raise InputError(
                f"an option of method {name!r} must not be {option!r}, got {part!r}. It has a flag of its own."
            )
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[option] = value
    return get_method(name).name, options


def check_options(method: Method, options: dict[str, Any], also: tuple[str, ...] = ()) -> None:
    """Raise `InputError` for an option that the selector does not have; `also` names options of the caller's own."""
    parameters = inspect.signature(method.load()).parameters.values()
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
    for name in options:
        if name not in known:
            raise unknown_name(f"option of method {method.name!r}", name, [*known, *also])
