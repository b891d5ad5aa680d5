"""What other packages register through entry points: selectors and model families."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TypeVar

from globalcom2.errors import InputError

Registered = TypeVar("Registered")


def load_entry_points(group: str, kind: type[Registered], register: Callable[[Registered], None]) -> None:
    """Register what the entry points of a group give; one that cannot be used is left out, with a warning.

    Args:
        group: The entry points' group.
        kind: The public class of `globalcom2` that each must give an instance of.
        register: Takes it, or raises.
    """
    for entry in entry_points(group=group):
        try:
            found = entry.load()
            if not isinstance(found, kind):
                raise InputError(f"it must be a globalcom2.{kind.__name__}, got {type(found).__name__}.")
            register(found)
        except Exception as error:  # whatever another package may raise: all others must work
            owner = "an unknown distribution" if entry.dist is None else f"distribution {entry.dist.name!r}"
            warnings.warn(
                f"globalcom2: entry point {entry.name!r} ({entry.value}) of {owner} in group {group!r} is left out: "
                f"{type(error).__name__}: {str(error).rstrip('.')}. Update or remove that distribution.",
                stacklevel=3,
            )
