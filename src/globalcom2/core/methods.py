"""The registry of selectors: names to lazily imported functions. Knows no torch, so listing is instant."""

from __future__ import annotations

import ast
import importlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from globalcom2.errors import InputError, unknown_name

ENTRY_POINTS = "globalcom2.methods"
"""Entry-point group: another package registers `name = "module:METHOD"`, METHOD being a `Method`."""


READS = ("features", "keys", "cls")
"""What a method may read of the tower besides scores."""


@dataclass(frozen=True)
class Method:
    """One selector, and what it wants to be given.

    `target` is called as function(views, retention_ratio, **options) and returns a `globalcom2.selectors.Ranking`.
    Options are its keyword-only parameters.

    With `nested=False` the function has one more keyword-only parameter, `counts`, and is asked several times:

    1. `counts=None`: it answers with its `ratios` and any scores. From these, allocation makes the number of tokens for
       the thumbnail and for each crop.
    2. `counts` a `globalcom2.selectors.Counts` of those numbers: the tokens that it ranks first must be its set of that
       size, in the thumbnail and in each crop. Where it returned `ratios=None`, `counts.crops` is (batch, 1), the size
       of one set over all crops; with `thumbnail_competes` the thumbnail's tokens are among these.
    3. Where newlines count, once more: the set opens lines, newlines are paid for them, and `counts` says what is left.
       What its last set opens may differ by a line or two, so a few tokens more or fewer may be kept than `counts` said,
       in the order of its last answer.

    `ratios` and `thumbnail_competes` of the first answer hold; those of later ones are not read. Totals are exact
    whatever the function returns.

    Raises:
        InputError: A field of the wrong type or out of range.
    """

    name: str
    """For `method=`."""
    target: str
    """"module:function", imported on first use."""
    summary: str
    """One line for lists."""
    source: str
    """Where it was published, or what it is for."""
    published: dict[str, Any] = field(default_factory=dict)
    """Options that reproduce the published code, used with `exact=False`."""
    needs_features: bool = False
    """An older way to say `reads=("features",)`."""
    needs_grid: bool = True
    """False for a method that looks at no crop's place. All others get no image whose grid is unknown: its crops share
    the budget evenly, with a warning."""
    nested: bool = True
    """Whether the set of n tokens contains that of n - 1 for every n, so that one order says all. False: the function is
    told its counts before it chooses."""
    score: str | None = None
    """The score type that the method is defined on, see `Views`. Used where the caller of `compress` leaves `score` out.
    None: the model family's."""
    layers: tuple[int, ...] = ()
    """Further layers of the tower whose scores the method reads as `views.layer_scores`, besides the one of `scores`;
    negative counts from the end. They have the same score type, which must be one that is read in attention."""
    reads: tuple[str, ...] = ()
    """What of "features", "keys" and "cls" the method reads in `Views`. Each costs a copy of what the tower made."""
    merges: bool = False
    """Whether the method's `Ranking.merge` may be other than None."""

    def __post_init__(self) -> None:
        if not isinstance(self.reads, tuple) or any(name not in READS for name in self.reads):
            raise InputError(
                f"reads of method {self.name!r} must be a tuple of {', '.join(READS)}, got {self.reads!r}."
            )
        if not isinstance(self.layers, tuple) or any(type(layer) is not int for layer in self.layers):
            raise InputError(f"layers of method {self.name!r} must be a tuple of integers, got {self.layers!r}.")

    @property
    def wanted(self) -> frozenset[str]:
        """What of "features", "keys" and "cls" the method is given."""
        return frozenset(self.reads) | ({"features"} if self.needs_features else frozenset())

    @property
    def on_scores_alone(self) -> bool:
        """Whether scores of one layer are all that the method reads, and masks all that it decides."""
        return not self.wanted and not self.layers and not self.merges

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
    """Register the methods of other packages; one that cannot be used is left out, with a warning."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            method = entry.load()
            if not isinstance(method, Method):
                raise InputError(f"it must be a globalcom2.Method, got {type(method).__name__}.")
            register_method(method)
        except Exception as error:  # whatever another package may raise: all other methods must work
            owner = "an unknown distribution" if entry.dist is None else f"distribution {entry.dist.name!r}"
            warnings.warn(
                f"globalcom2: entry point {entry.name!r} ({entry.value}) of {owner} in group {ENTRY_POINTS!r} is left out: "
                f"{type(error).__name__}: {error} Update or remove that distribution.",
                stacklevel=2,
            )


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
    ours = () if method.nested else ("counts",)
    known = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name not in ours]
    for name in options:
        if name not in known:
            raise unknown_name(f"option of method {method.name!r}", name, [*known, *also])
