"""The flags of `vllm serve` as vLLM's own parser understands them, so that none is lost when ours are added.

That parser takes underscores for hyphens, any beginning of a flag's name that is long enough, parts of a JSON flag as
`--flag.key value`, and a YAML file of flags with `--config`. Of two spellings of one flag it follows the last alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from globalcom2.errors import InputError

OVERRIDES = "--hf-overrides"
_LEAST = len("--hf-o")
"""As long as a beginning of the name must be to mean no other flag of vLLM."""
_SUFFIXES = {name: 1000**power for power, name in enumerate("kmgt", 1)} | {
    name: 1024**power for power, name in enumerate("KMGT", 1)
}


class Flags(NamedTuple):
    """A user's flags."""

    rest: list[str]
    """All but the overrides, as they were given."""
    overrides: dict[str, Any]
    """What all spellings of the overrides say together: a later one wins, and the command line over a file."""
    named: list[str]
    """Names of the flags in files, with hyphens."""


def read_flags(flags: list[str]) -> Flags:
    """Take the overrides out of a user's flags of `vllm serve`.

    Raises:
        InputError: Overrides that are no JSON object, or spelt in a file so that vLLM would follow nothing else.
    """
    whole: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    rest: list[str] = []
    named: list[str] = []
    left = iter(flags)
    for flag in left:
        head, equals, value = flag.partition("=")
        name, dot, keys = head.partition(".")
        if is_overrides(name):
            if not equals:
                value = _next(left, head)
            if dot:
                _merge(parts, _nested(keys, value), lists=True)
            else:
                _merge(whole, _object(head, value))
            continue
        rest.append(flag)
        if head == "--config":
            file = value if equals else _next(left, head)
            rest += [] if equals else [file]
            found, names = _of_file(file)
            whole, named = _merge(found, whole), named + names
    return Flags(rest, _merge(whole, parts), named)


def is_overrides(name: str) -> bool:
    """Whether a flag's name, with no dot or value behind it, is one that vLLM takes for `--hf-overrides`."""
    found = hyphens(name)
    return len(found) >= _LEAST and OVERRIDES.startswith(found)


def hyphens(name: str) -> str:
    """A flag's name as vLLM reads it."""
    return f"--{name[2:].replace('_', '-')}" if name.startswith("--") else name


def _next(left: Iterator[str], name: str) -> str:
    value = next(left, None)
    if value is None:
        raise InputError(f"{name} must have a value, got none.")
    return value


def _object(name: str, value: object) -> dict[str, Any]:
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{name} must be a JSON object, got {value!r}.")
    return found


def _nested(keys: str, value: str) -> dict[str, Any]:
    """What `--hf-overrides.KEYS VALUE` says; keys that end in + take a list between commas."""
    made: Any = value.split(",") if keys.endswith("+") else _value(value)
    for key in reversed(keys.removesuffix("+").split(".")):
        made = {key: made}
    return made  # type: ignore[no-any-return]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        number = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmMgGtT])", text.strip())
        if number is None or ("." in number[1] and number[2].isupper()):
            return text
        return (
            int(float(number[1]) * _SUFFIXES[number[2]]) if "." in number[1] else int(number[1]) * _SUFFIXES[number[2]]
        )


def _merge(first: dict[str, Any], second: dict[str, Any], lists: bool = False) -> dict[str, Any]:
    """Put `second` into `first`, which is returned; `lists` are put one behind the other, or the later one wins."""
    for key, value in second.items():
        old = first.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            _merge(old, value, lists)
        elif lists and isinstance(old, list) and isinstance(value, list):
            first[key] = [*old, *value]
        else:
            first[key] = value
    return first


def _of_file(name: str) -> tuple[dict[str, Any], list[str]]:
    """The overrides in a YAML file of flags, and the names of all flags there. Nothing of a file that vLLM refuses."""
    import yaml  # type: ignore[import-untyped]  # noqa: PLC0415

    try:
        read = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}, []
    told = {f"--{key}": value for key, value in read.items()} if isinstance(read, dict) else {}
    found: dict[str, Any] = {}
    for key, value in told.items():
        head, dot, _ = key.partition(".")
        if is_overrides(head) and dot:
            raise InputError(
                f"{name} must have overrides as a mapping under hf-overrides, got {key[2:]}: vLLM would follow it in place of "
                "all others."
            )
        if is_overrides(head):
            _merge(found, _object(f"{key[2:]} in {name}", value))
    return found, [hyphens(key) for key in told]
