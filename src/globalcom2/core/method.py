"""What a selector is, and what it wants to be given. Knows no torch, so listing is instant."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from globalcom2.errors import InputError

READS = ("features", "crop_features", "keys", "cls")
"""What a method may read of the tower besides scores. "crop_features" leaves out the thumbnail's, whose token grid may be
another: what reads no more works in every family."""


@dataclass(frozen=True)
class Method:
    """One selector, and what it wants to be given.

    `target` is called as function(views, retention_ratio, **options) and returns a `globalcom2.selectors.Ranking`.
    Options are its parameters after the first two.

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
    target: str | Callable[..., Any]
    """"module:function", imported on first use, or the function."""
    summary: str = ""
    """One line for lists."""
    source: str = ""
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
    """What of `READS` the method reads in `Views`. Each costs a copy of what the tower made."""
    code_newlines: str | None = None
    """What the method's own published code does with newlines, a value of `newlines` in `select`; None: it says nothing.
    `globalcom2 eval` shows such a method with this rule besides the default one."""
    merges: bool = False
    """Whether the method's `Ranking.merge` may be other than None."""

    def __post_init__(self) -> None:
        if not isinstance(self.reads, tuple) or any(name not in READS for name in self.reads):
            raise InputError(
                f"reads of method {self.name!r} must be a tuple of {', '.join(READS)}, got {self.reads!r}."
            )
        if not isinstance(self.layers, tuple) or any(type(layer) is not int for layer in self.layers):
            raise InputError(f"layers of method {self.name!r} must be a tuple of integers, got {self.layers!r}.")
        if not callable(self.target) and (not isinstance(self.target, str) or ":" not in self.target):
            raise InputError(
                f"target of method {self.name!r} must be 'module:function' or a function, got {self.target!r}."
            )

    @property
    def where(self) -> str:
        """Module and name of the function, for messages."""
        if isinstance(self.target, str):
            return self.target
        return f"{getattr(self.target, '__module__', None) or '?'}:{name_of(self.target)}"

    @property
    def wanted(self) -> frozenset[str]:
        """What of `READS` the method is given."""
        return frozenset(self.reads) | ({"features"} if self.needs_features else frozenset())

    @property
    def on_scores_alone(self) -> bool:
        """Whether scores of one layer are all that the method reads, and masks all that it decides."""
        return not self.wanted and not self.layers and not self.merges

    def load(self) -> Callable[..., Any]:
        """The selector's function, imported if need be.

        Raises:
            InputError: It cannot be imported.
        """
        if not isinstance(self.target, str):
            return self.target
        module, _, function = self.target.partition(":")
        try:
            return getattr(importlib.import_module(module), function)  # type: ignore[no-any-return]
        except (ImportError, AttributeError) as error:
            raise InputError(
                f"target of method {self.name!r} must be one that can be imported, got {self.target!r}: {error}. Update the "
                "package that it comes from."
            ) from error


def name_of(function: Callable[..., Any]) -> str:
    """A function's name, also inside `functools.partial`; of any other callable, its type's."""
    inner = getattr(function, "func", function)
    return str(getattr(inner, "__name__", type(inner).__name__))


def signature(method: Method) -> inspect.Signature:
    """Of its function; of one that does not tell, any."""
    try:
        return inspect.signature(method.load())
    except ValueError:
        return inspect.signature(lambda views, retention_ratio, /, **options: None)
