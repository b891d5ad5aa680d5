"""What an engine and its requests may set, and what goes into cache keys. Knows no vLLM."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from globalcom2._version import __version__
from globalcom2.core.budget import check_ratio
from globalcom2.core.layout import Layout, kept_places
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.core.selection import Keep, select
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.hf import config_files
from globalcom2.hf.config import CompressionConfig
from globalcom2.hf.served import check_served, score_served

RETENTION = config_files.RETENTION
"""Of the engine, and of a request (in `mm_processor_kwargs`): the fraction of visual tokens to keep, in (0, 1]."""
FLOOR = "globalcom2_floor"
"""Of the engine: the lowest ratio that a request gets. Default: the engine's own ratio."""
METHOD = config_files.METHOD
"""Of the engine: a name from `list_methods()`, also with options, and with fields of a `CompressionConfig` that an engine
follows: "globalcom2:alpha=0.5,newlines=none"."""
MILLION = 1_000_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Checked settings of an engine."""

    retention: float
    floor: float
    method: str

    @classmethod
    def of(cls, config: Any, scores: tuple[str, ...] = SCORE_TYPES) -> Options:
        """Settings of a model's configuration, or of the environment (GLOBALCOM2_RETENTION, ...) where it has none.

        Args:
            config: The model's configuration.
            scores: Score types that the plugin reads in this model, its default first.

        Raises:
            InputError: A ratio or a method out of range, or a method that an engine of this model cannot follow.
        """
        retention = _ratio(RETENTION, _setting(config, RETENTION, 1.0))
        floor = _ratio(FLOOR, _setting(config, FLOOR, retention))
        method = _method(str(_setting(config, METHOD, "globalcom2")), scores)
        if floor > retention:
            raise InputError(f"{FLOOR} must be at most {RETENTION} {retention:g}, got {floor:g}.")
        return cls(retention, floor, method)

    @cached_property
    def _config(self) -> CompressionConfig:
        return CompressionConfig(method=self.method)

    @property
    def reads(self) -> frozenset[str]:
        """What of `core.method.READS` the method is given."""
        return self._config.selector.wanted

    def score(self, scores: tuple[str, ...]) -> str:
        """The score type that the method gets, of those that the plugin reads in the model."""
        return score_served(self._config, scores)

    def kept(self, layout: Layout, ratio: float) -> int:
        """Visual tokens that an image of this layout keeps, newlines included."""
        config = self._config
        rule = {} if config.newlines is None else {"newlines": config.newlines}
        return kept_places(layout, ratio, thumbnail_weight=config.thumbnail_weight, **rule)

    def select(self, views: Views, ratio: float) -> Keep:
        """The tokens that survive, with the method and all that is set for it; never waits for the device."""
        config = self._config
        return select(
            views,
            ratio,
            config.method,
            newlines=config.newlines,
            thumbnail_weight=config.thumbnail_weight,
            check=False,
            **config.options,
        )

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


def _method(text: str, scores: tuple[str, ...]) -> str:
    """The method in its shortest text. Raises `InputError` for what an engine cannot follow."""
    try:
        config = CompressionConfig(method=text)
        check_served(config, scores)
        return config.method_text
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
