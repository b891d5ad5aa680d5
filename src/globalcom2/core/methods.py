"""The registry of selectors: names to lazily imported functions, and how texts and functions name a selector."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from globalcom2.core.method import Method, name_of, signature
from globalcom2.core.plugins import load_entry_points
from globalcom2.core.presets import preset_settings
from globalcom2.errors import InputError, unknown_name

ENTRY_POINTS = "globalcom2.methods"
"""Entry-point group: another package registers `name = "module:METHOD"`, METHOD being a `Method`."""


_METHODS = {
    method.name: method
    for method in (
        Method(
            "globalcom2",
            "globalcom2.selectors.globalcom2:globalcom2",
            "Thumbnail and crops decide how many tokens each crop keeps, and the thumbnail has a say in which",
            "https://arxiv.org/abs/2501.05179",
            published={"regions": "blocks", "alpha": 0.5, "allocation": "softmax"},
            reads=("crop_features",),
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
        Method(
            "fastervlm",
            "globalcom2.selectors.fastervlm:fastervlm",
            "FasterVLM: the same ratio for every view, what [CLS] attends to most",
            "https://arxiv.org/abs/2412.01818",
            needs_grid=False,
            score="attention",
            code_newlines="none",
        ),
        Method(
            "hired",
            "globalcom2.selectors.hired:hired",
            "HiRED: crops share the budget by where the thumbnail looks early, and keep what they look at late",
            "https://arxiv.org/abs/2408.10945",
            nested=False,
            score="attention",
            layers=(0,),
        ),
        Method(
            "visionzip",
            "globalcom2.selectors.visionzip:visionzip",
            "VisionZip: what [CLS] attends to most, and evenly spaced tokens that take in the rest",
            "https://arxiv.org/abs/2412.04467",
            needs_grid=False,
            nested=False,
            score="attention",
            reads=("keys",),
            code_newlines="none",
            merges=True,
        ),
        Method(
            "prumerge",
            "globalcom2.selectors.prumerge:prumerge",
            "PruMerge+: outliers of [CLS] attention and evenly spread tokens, averaged with what is like them",
            "https://arxiv.org/abs/2403.15388",
            needs_grid=False,
            nested=False,
            score="attention",
            reads=("keys",),
            merges=True,
        ),
        Method(
            "vispruner",
            "globalcom2.selectors.vispruner:vispruner",
            "VisPruner: half by [CLS] attention, half by taking duplicates out of the rest",
            "https://arxiv.org/abs/2412.01818",
            needs_grid=False,
            nested=False,
            score="attention",
            reads=("features",),
            code_newlines="none",
        ),
        Method(
            "hiprune",
            "globalcom2.selectors.hiprune:hiprune",
            "HiPrune: what a middle layer attends to and its neighbours, then what a deep layer attends to",
            "https://arxiv.org/abs/2508.00553",
            needs_grid=False,
            nested=False,
            score="received",
            layers=(4,),
        ),
        Method(
            "divprune",
            "globalcom2.selectors.divprune:divprune",
            "DivPrune: tokens of all views, each as unlike those already kept as can be",
            "https://arxiv.org/abs/2503.02175",
            needs_grid=False,
            reads=("features",),
            code_newlines="none",
        ),
        Method(
            "scope",
            "globalcom2.selectors.scope:scope",
            "SCOPE: tokens of all views that are salient and cover those that are dropped",
            "https://arxiv.org/abs/2510.24214",
            needs_grid=False,
            score="attention",
            reads=("features",),
            code_newlines="none",
        ),
        Method(
            "dart",
            "globalcom2.selectors.dart:dart",
            "DART-like: a few pivots, then the tokens of all views that are least like them",
            "https://arxiv.org/abs/2502.11494",
            needs_grid=False,
            reads=("features", "keys"),
            code_newlines="none",
        ),
        Method(
            "vidcom2",
            "globalcom2.selectors.vidcom2:vidcom2",
            "VidCom2: crops unlike the whole keep more, tokens unlike their crop come first",
            "https://arxiv.org/abs/2505.14454",
            needs_grid=False,
            reads=("crop_features",),
        ),
        Method(
            "downsample",
            "globalcom2.selectors.downsample:downsample",
            "Floor: every view averaged into as many cells as its budget pays for",
            "https://arxiv.org/abs/2510.07143",
            needs_grid=False,
            nested=False,
            merges=True,
        ),
        Method(
            "thumbnail_only",
            "globalcom2.selectors.thumbnail_only:thumbnail_only",
            "Floor: the thumbnail's best tokens, crops only once all of these are kept",
            "a floor for methods that keep crops",
            needs_grid=False,
        ),
    )
}


def register_method(method: Method) -> None:
    """Add a selector under its name; a name can be registered once."""
    if method.name in _METHODS:
        raise InputError(
            f"method {method.name!r} is already registered by {_METHODS[method.name].where}. Choose another name."
        )
    _METHODS[method.name] = method


@cache
def _load_entry_points() -> None:
    load_entry_points(ENTRY_POINTS, Method, register_method)


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


def as_method(method: str | Method | Callable[..., Any]) -> Method:
    """The method that a name, a `Method` or a function(views, retention_ratio, **options) stands for.

    A function reads scores of one layer and merges nothing; a `Method` says more.

    Raises:
        InputError: An unknown name, or a function that cannot be called with views and a ratio.
    """
    if isinstance(method, Method):
        return method
    if isinstance(method, str) or not callable(method):
        return get_method(method)  # type: ignore[arg-type]
    name = name_of(method)
    # A report must not say of a stranger that it is a registered method.
    made = Method(f"{name} (function)" if name in list_methods() else name, method, "a function")
    takes = signature(made)
    try:
        takes.bind_partial(None, 1.0)
    except TypeError:
        raise InputError(
            f"method must be a function of (views, retention_ratio, **options), got {made.name}{takes}."
        ) from None
    return made


def by_name(method: str | Method | Callable[..., Any]) -> str | Method | Callable[..., Any]:
    """The name of a `Method` that is registered; everything else as it is."""
    if isinstance(method, Method) and method.name in list_methods() and get_method(method.name) == method:
        return method.name
    return method


def split_method(text: str) -> tuple[str, str | None, dict[str, Any]]:
    """A method's name, its preset and its other options, as the command line has them. Looks nothing up.

    Raises:
        InputError: An option without a value, or one that has a place of its own.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise InputError(f"an option of method {name!r} must be NAME=VALUE, got {part!r}. Write {part}=VALUE.")
        if option in ("model", "method", "retention_ratio", "config", "options"):
            raise InputError(f"an option of method {name!r} must not be {option!r}, got {part!r}. Pass it by itself.")
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[option] = value
    return name, options.pop("preset", None), options


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method with options as the command line has them, such as "globalcom2:preset=paper,newlines=none".

    Returns:
        The method's name and the options, for `compress(model, ratio, name, **options)`. A preset is written out;
        options beside it win.

    Raises:
        InputError: An unknown method or preset, an option without a value, or one that has a place of its own.
    """
    name, preset, options = split_method(text)
    method = get_method(name)
    return method.name, options if preset is None else {**preset_settings(preset, name), **options}


def method_text(name: str, options: Mapping[str, Any]) -> str:
    """What `parse_method` reads as this name and these options.

    Raises:
        InputError: A value that cannot be written so, such as a list.
    """
    text = ",".join(f"{option}={_value_text(value)}" for option, value in options.items())
    text = f"{name}:{text}" if text else name
    try:
        same = split_method(text)
    except InputError:
        same = None
    if same != (name, None, dict(options)):
        raise InputError(
            f"options of method {name!r} must be numbers, True, False, None or words to be written in one line, got "
            f"{dict(options)!r}."
        )
    return text


def _value_text(value: Any) -> str:
    """A bare word for texts that are read back as texts."""
    if not isinstance(value, str):
        return repr(value)
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value
    return repr(value)


def check_options(method: Method, options: Mapping[str, Any], also: Iterable[str] = ()) -> None:
    """Raise `InputError` for an option that the selector does not have, or one that it must be given and is not.

    `also` names arguments of the caller's own.
    """
    parameters = list(signature(method).parameters.values())
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return
    either = [p for p in parameters if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    first = 2 - sum(p.kind is inspect.Parameter.POSITIONAL_ONLY for p in parameters)
    own = [*either[max(first, 0) :], *(p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY)]
    known = {p.name: p for p in own if method.nested or p.name != "counts"}
    for name in options:
        if name not in known:
            raise _unknown_option(method, name, [*known, *also])
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in options:
            raise InputError(f"option {name!r} of method {method.name!r} must be given, got none. Pass {name}=...")


def _unknown_option(method: Method, name: str, known: list[str]) -> InputError:
    kind = f"option of method {method.name!r}"
    if name in known:
        return InputError(f"an {kind} must not be {name!r}, got it among them. Pass it by itself.")
    whole = [other for other in sorted(known) if name in other.split("_")]
    if not whole:
        return unknown_name(kind, name, known)
    meant = " or ".join(map(repr, whole))
    return InputError(f"{kind} must be one of {', '.join(sorted(known))}, got {name!r}. Did you mean {meant}?")
