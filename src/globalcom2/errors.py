"""Our exceptions. Every message says: which argument, what was expected, what came, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GlobalCom2Error(Exception):
    """Base class of everything that this package raises on purpose."""


class InputError(GlobalCom2Error, ValueError):
    """An argument or an input that cannot be used. The CLI exits with 2."""


class DataError(InputError):
    """A file or tensor whose content cannot be used. The CLI exits with 1."""


class UnsupportedModelError(GlobalCom2Error, TypeError):
    """A model whose family or configuration has no adapter."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> InputError:
    """An error for a name that is in no registry, with the nearest known names first."""
    choices = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), choices, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return InputError(f"{kind} must be one of {', '.join(choices)}, got {name!r}.{hint}")
