"""What an engine and its requests may set, and what goes into cache keys. Knows no vLLM."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from globalcom2._version import __version__
from globalcom2.core.budget import check_ratio
from globalcom2.core.layout import Layout, kept_places
from globalcom2.core.limits import check_limit, limited_ratio
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.core.selection import Keep, select
from globalcom2.core.views import Views
from globalcom2.errors import InputError
from globalcom2.hf import config_files
from globalcom2.hf.config import CompressionConfig
from globalcom2.hf.served import check_served, score_served
from globalcom2.integrations.vllm.names import check_names

RETENTION = config_files.RETENTION
"""Of the engine, and of a request (in `mm_processor_kwargs`): the fraction of visual tokens to keep, in (0, 1]."""
FLOOR = "globalcom2_floor"
"""Of the engine: the lowest ratio that a request gets. Default: the engine's own ratio."""
METHOD = config_files.METHOD
"""Of the engine: a name from `list_methods()`, also with options, and with fields of a `CompressionConfig` that an engine
follows: "globalcom2:alpha=0.5,newlines=none"."""
LIMIT = config_files.LIMIT
"""Of the engine, and of a request: the most visual tokens of an image, a whole number. A request's own is a wish within the
engine's, and takes the place of the ratio where the request has none."""
PER_REQUEST = "globalcom2_per_request"
"""Of the engine: whether requests may ask for `RETENTION` and `LIMIT`. Where nothing is said, whoever reaches the engine may."""
ASKED = (RETENTION, LIMIT)
"""What a request may have in its `mm_processor_kwargs`."""
ENGINE_KEYS = (RETENTION, FLOOR, METHOD, LIMIT, PER_REQUEST)
"""What an engine reads of its model's configuration, and in capitals of the environment."""
_OF_THE_ENGINE = dict.fromkeys(set(ENGINE_KEYS).difference(ASKED), "hf_overrides of the engine")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
MILLION = 1_000_000
PARTS = 10**12
"""Processor and model tell each other ratios in parts of this: fine enough for limits in tokens to be met exactly."""

logger = logging.getLogger("vllm.globalcom2")
"""Under vLLM's own logger, whose level and format it takes on; any other name has no handler in a server."""


@dataclass(frozen=True)
class Asked:
    """What one request asks for, within what its engine allows."""

    ratio: float
    limit: int | None = None
    """The most tokens of an image, the engine's own limit aside."""


@dataclass(frozen=True)
class Options:
    """Checked settings of an engine."""

    retention: float
    floor: float
    method: str
    limit: int | None = None
    """The most tokens of an image, whatever a request asks."""
    per_request: bool | None = None

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
        method, limit = _method(str(_setting(config, METHOD, "globalcom2")), _setting(config, LIMIT, None), scores)
        if floor > retention:
            raise InputError(f"{FLOOR} must be at most {RETENTION} {retention:g}, got {floor:g}.")
        return cls(retention, floor, method, limit, _switch(PER_REQUEST, _setting(config, PER_REQUEST, None)))

    @property
    def compresses(self) -> bool:
        """Whether images lose tokens without a request's asking for it."""
        return self.retention < 1.0 or self.limit is not None

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
            InputError: A ratio out of range, or a misspelt name of ours.
        """
        check_request(arguments)
        asked = arguments.get(RETENTION)
        if asked is None:
            return self.retention
        ratio = _ratio(RETENTION, asked)
        if ratio < self.floor:
            _warn_of_floor(ratio, self.floor)
            return self.floor
        return ratio

    def asked(self, arguments: Mapping[str, object]) -> Asked:
        """What a request with those `mm_processor_kwargs` asks for.

        Raises:
            InputError: A ratio or a limit out of range, or one at all where requests may not ask.
        """
        given = [name for name in ASKED if arguments.get(name) is not None]
        if given and self.per_request is False:
            raise InputError(
                f"mm_processor_kwargs must be without {given[0]}, got it: this engine lets no request choose. Start it with "
                f"`globalcom2 serve --per-request`, or with {PER_REQUEST}=true."
            )
        if LIMIT not in given:
            return Asked(self.ratio(arguments))
        limit = _limit(LIMIT, arguments[LIMIT])
        return Asked(self.ratio(arguments) if RETENTION in given else 1.0, limit)

    @property
    def may_compress(self) -> bool:
        """Whether there are requests that lose tokens."""
        return self.floor < 1.0 or self.limit is not None

    def keeps_all(self, asked: Asked) -> bool:
        """Whether a request keeps all tokens, however large its images are."""
        return not self.may_compress or (asked.ratio == 1.0 and asked.limit is None and self.limit is None)

    def ratio_of(self, layout: Layout, asked: Asked) -> float:
        """The ratio at which an image of this layout keeps exactly what is asked for, within the engine's limits.

        A request's limit does not go below what the floor keeps. The engine's own limit holds in any case.
        """
        kept = wanted = self.kept(layout, asked.ratio)
        if asked.limit is not None and asked.limit < wanted:
            least = self.kept(layout, self.floor)
            if asked.limit < least:
                _warn_of_least(asked.limit, self.floor)
            wanted = min(max(asked.limit, least), wanted)
        if self.limit is not None:
            wanted = min(wanted, self.limit)
        return asked.ratio if wanted == kept else limited_ratio(wanted, layout)

    def mark(self, asked: Asked) -> str:
        """What tells cached results of this algorithm, ratio and limits from others'."""
        limits = "" if self.limit is None else f"|to {self.limit}"
        if asked.limit is not None:
            limits += f"|{asked.limit} from {self.floor:.6f}"
        return f"globalcom2-{__version__}|{self.method}|{asked.ratio:.6f}{limits}"


def check_request(arguments: Mapping[str, object]) -> None:
    """Raise `InputError` for a request's `mm_processor_kwargs` with a misspelt name of ours or a ratio out of range."""
    check_names("mm_processor_kwargs", arguments, ASKED, _OF_THE_ENGINE)
    if arguments.get(RETENTION) is not None:
        _ratio(RETENTION, arguments[RETENTION])
    if arguments.get(LIMIT) is not None:
        _limit(LIMIT, arguments[LIMIT])


def announce(options: Options, model: type) -> None:
    """Write to vLLM's log what the engine does, so that a log shows whether the plugin is on."""
    limit = "" if options.limit is None else f", at most {options.limit} tokens of an image"
    logger.info(
        f"globalcom2 {__version__} is on: ratio {options.retention:g}{limit}, floor {options.floor:g}, method {options.method}, "
        f"model class {model.__module__}.{model.__qualname__}."
    )


@lru_cache(maxsize=64)
def _warn_of_floor(asked: float, floor: float) -> None:
    """Once for each ratio, or a client that asks a thousand times fills the log."""
    logger.warning("globalcom2: requests that ask for a ratio of %g get the engine's floor, %g.", asked, floor)


@lru_cache(maxsize=64)
def _warn_of_least(limit: int, floor: float) -> None:
    logger.warning(
        "globalcom2: requests that ask for %d visual tokens get those of the engine's floor, %g, where that is more.",
        limit,
        floor,
    )


def in_parts(ratio: float) -> int:
    """A ratio in whole `PARTS`. Only 1.0 comes to all of them: it keeps newlines that no other ratio does."""
    return PARTS if ratio == 1.0 else min(round(ratio * PARTS), PARTS - 1)


def without_ratio(arguments: Mapping[str, object]) -> dict[str, object]:
    """A request's `mm_processor_kwargs` less ours, which no processor but the plugin's knows."""
    return {name: value for name, value in arguments.items() if name not in ASKED}


def _setting(config: Any, name: str, default: object) -> object:
    value = getattr(config, name, None)
    return os.environ.get(name.upper(), default) if value is None else value


def _method(text: str, limit: object, scores: tuple[str, ...]) -> tuple[str, int | None]:
    """The method in its shortest text, and the limit, which the text may hold as well.

    Raises:
        InputError: What an engine cannot follow.
    """
    own = None if limit is None else _limit(LIMIT, limit)
    try:
        config = CompressionConfig(method=text)
        if own is not None:
            config = config.replace(max_visual_tokens=own)
        check_served(config, scores)
        return config.replace(max_visual_tokens=None).method_text, config.max_visual_tokens
    except InputError as error:
        raise InputError(f"{METHOD} {text!r} cannot be served: {error}") from error


def _limit(name: str, value: object) -> int:
    """Raises `InputError` for anything but a positive integer, which may be a text in the environment."""
    return check_limit(name, int(value) if isinstance(value, str) and value.isdecimal() else value)


def _switch(name: str, value: object) -> bool | None:
    words = {"true": True, "1": True, "false": False, "0": False}
    found = words.get(value.lower()) if isinstance(value, str) else value
    if (found is None and value is None) or isinstance(found, bool):
        return found
    raise InputError(f"{name} must be true or false, got {value!r}.")


def _ratio(name: str, value: object) -> float:
    if isinstance(value, str):  # from the environment
        if not NUMBER.fullmatch(value.strip()):  # float() takes more than people write, such as 0.2_5
            raise InputError(f"{name} must be a number in (0, 1], got {value[:40]!r}.")
        value = float(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MILLION:  # perhaps too large for a float
        raise InputError(f"{name} must be in (0, 1], got a whole number beyond {MILLION}.")
    try:
        ratio = check_ratio(value)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(str(error).replace("retention_ratio", name)) from None
    # Cache keys and counts must not hang on digits that nobody means.
    return max(round(ratio * MILLION), 1) / MILLION
