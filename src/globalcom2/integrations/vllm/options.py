"""What an engine and its requests may set, and what goes into cache keys. Knows no vLLM."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from globalcom2._version import __version__
from globalcom2.core.budget import check_ratio
from globalcom2.errors import InputError
from globalcom2.hf import config_files
from globalcom2.hf.config import CompressionConfig

RETENTION = config_files.RETENTION
"""Of the engine, and of a request (in `mm_processor_kwargs`): the fraction of visual tokens to keep, in (0, 1]."""
FLOOR = "globalcom2_floor"
"""Of the engine: the lowest ratio that a request gets. Default: the engine's own ratio."""
METHOD = config_files.METHOD
"""Of the engine: a name from `list_methods()`, with options of that method if you like: "globalcom2:alpha=0.5"."""
MILLION = 1_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Checked settings of an engine."""

    retention: float
    floor: float
    method: str

    @classmethod
    def of(cls, config: Any) -> Options:
        """Settings of a model's configuration, or of the environment (GLOBALCOM2_RETENTION, ...) where it has none.

        Raises:
            InputError: A ratio or a method out of range.
        """
        retention = _ratio(RETENTION, _setting(config, RETENTION, 1.0))
        floor = _ratio(FLOOR, _setting(config, FLOOR, retention))
        method = _method(str(_setting(config, METHOD, "globalcom2")))
        if floor > retention:
            raise InputError(f"{FLOOR} must be at most {RETENTION} {retention:g}, got {floor:g}.")
        return cls(retention, floor, method)

    def ratio(self, arguments: Mapping[str, object]) -> float:
        """The ratio that a request with those `mm_processor_kwargs` gets, a whole number of millionths.

        Raises:
            InputError: A ratio out of range.
        """
        asked = arguments.get(RETENTION)
        if asked is None:
            return self.retention
        ratio = _ratio(RETENTION, asked)
        if ratio < self.floor:
            logger.warning(
                "globalcom2: a request asked for a ratio of %g and gets the engine's floor %g.", ratio, self.floor
            )
            return self.floor
        return ratio

    def mark(self, ratio: float) -> str:
        """What tells cached results of this algorithm and ratio from others'."""
        return f"globalcom2-{__version__}|{self.method}|{ratio:.6f}"


def without_ratio(arguments: Mapping[str, object]) -> dict[str, object]:
    """A request's `mm_processor_kwargs` less ours, which no processor but the plugin's knows."""
    return {name: value for name, value in arguments.items() if name != RETENTION}


def _setting(config: Any, name: str, default: object) -> object:
    value = getattr(config, name, None)
    return os.environ.get(name.upper(), default) if value is None else value


def _method(text: str) -> str:
    """The method as `select` takes it. Raises `InputError` for what an engine cannot follow."""
    try:
        return str(CompressionConfig(method=text).vllm_overrides()[METHOD])
    except InputError as error:
        raise InputError(f"{METHOD} {text!r} cannot be served: {error}") from error


def _ratio(name: str, value: object) -> float:
    if isinstance(value, str):  # from the environment
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{name} must be a number in (0, 1], got {value!r}.") from None
    try:
        ratio = check_ratio(value)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(str(error).replace("retention_ratio", name)) from None
    # Cache keys and counts must not hang on digits that nobody means.
    return max(round(ratio * MILLION), 1) / MILLION
