"""Names that were meant for this package and that nothing reads. Knows no vLLM."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from globalcom2.errors import InputError

PREFIX = "globalcom2"
ALIASES = {
    "retention": "globalcom2_retention",
    "retentionratio": "globalcom2_retention",
    "maxvisualtokens": "globalcom2_max_visual_tokens",
}
"""What a setting is called elsewhere in this package; nothing in vLLM has an argument of these names."""
LIKE = {True: 0.7, False: 0.85}
"""How alike a name must be to one of ours to be taken for it, from 0 to 1: what follows our prefix, and a whole name."""


def check_names(
    where: str, given: Iterable[object], known: Iterable[str], elsewhere: Mapping[str, str] | None = None
) -> None:
    """Raise for a name that was meant for this package and that nothing reads where it stands. Others' names pass.

    Args:
        where: What has the names, for the message.
        given: The names.
        known: Our names that are read there.
        elsewhere: Our names that are read elsewhere, and where that is.

    Raises:
        InputError: A misspelt name or one that belongs elsewhere, with what is right.
    """
    here, elsewhere = tuple(known), elsewhere or {}
    for name in given:
        if not isinstance(name, str) or name in here:
            continue
        right = name if name in elsewhere else meant(name, [*here, *elsewhere])
        if right is None:
            continue
        what = f"names of globalcom2's in {where} must be {', '.join(here)}"
        what = what if here else f"{where} must be without names of globalcom2's"
        cure = f" {right} belongs into {elsewhere[right]}." if right in elsewhere else ""
        if not cure and right:
            cure = f" Did you mean {right!r}?"
        raise InputError(f"{what}, got {name!r}, which nothing reads there.{cure}")


def meant(name: str, ours: Sequence[str]) -> str | None:
    """Which of our names a name that is not ours was meant to be: None for none, an empty text where that is not clear."""
    found = _plain(name)
    if ALIASES.get(found) in ours:
        return ALIASES[found]
    prefixed = found.startswith(PREFIX.rstrip("2"))
    cut = re.compile(f"^{PREFIX}?" if prefixed else "^")
    plain = {cut.sub("", _plain(own)): own for own in ours}
    near = difflib.get_close_matches(cut.sub("", found), plain, n=1, cutoff=LIKE[prefixed])
    if near:
        return plain[near[0]]
    return "" if prefixed else None


def _plain(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())
