"""`CompressionConfig`: everything that `compress` can be asked for, checked, to keep and to share."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from globalcom2.core.budget import AUTO, LIMITS, check_ratio, ratio_text
from globalcom2.core.limits import Limits, check_limit
from globalcom2.core.method import Method
from globalcom2.core.methods import as_method, by_name, check_options, method_text, parse_method, split_method
from globalcom2.core.newlines import check_newlines
from globalcom2.core.presets import PRESET_METHOD, preset_settings, preset_within
from globalcom2.core.scores import SCORE_TYPES
from globalcom2.core.selection import Selector, check_exact, check_thumbnail_weight
from globalcom2.errors import DataError, InputError, unknown_name
from globalcom2.hf.config_files import LIMIT, METHOD, RETENTION, read_settings, write_settings
from globalcom2.hf.inside import INSIDE, check_inside
from globalcom2.hf.served import check_served

WORDS = {
    "score": SCORE_TYPES,
    "positions": ("closed", "original"),
    "guide": ("pooled", "thumbnail"),
    "thumbnail_order": ("raster", "score"),
    "logits": ("short", "full"),
    "inside": INSIDE,
}
"""Fields that hold one of some words."""
APART = ("retention_ratio", "method", "options")
"""Fields that have a place of their own in texts; all others stand there by name where they are not at their defaults."""


@dataclass(frozen=True, repr=False)
class CompressionConfig:
    """Settings of a compression, see `compress` for what they mean.

    Raises:
        InputError: A value of the wrong type or out of range, an unknown method, or an option that it does not have.
    """

    retention_ratio: float | str = None  # type: ignore[assignment]
    """A number, or "auto". Not given, it is 0.1, or 1.0 where there is a limit in tokens."""
    method: str | Method | Selector = "globalcom2"
    """A name; its text's options, as in "globalcom2:alpha=0.5,layer=-1", go to where they belong, unless a field is given
    that is not its default. Or a `Method` or a function, which cannot be saved unless it is a registered `Method`."""
    exact: bool = True
    score: str | None = None
    layer: int | None = None
    newlines: str | None = None
    thumbnail_weight: float = 1.0
    positions: str | None = None
    guide: str | None = None
    thumbnail_order: str = "raster"
    logits: str = "short"
    inside: str | None = None
    inside_layer: int | None = None
    inside_share: float | None = None
    max_visual_tokens: int | None = None
    max_visual_tokens_per_call: int | None = None
    auto_floor: float = 0.05
    auto_ceiling: float = 0.25
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method."""

    def __post_init__(self) -> None:
        self._set("options", _checked_options(self.options))
        self._set("method", by_name(self.method))
        if isinstance(self.method, str) and ":" in self.method:
            self._read_text(self.method)
        self._check_budget()
        check_exact(self.exact)
        if self.layer is not None and type(self.layer) is not int:
            raise InputError(f"layer must be an integer or None, got {self.layer!r}.")
        for name, allowed in WORDS.items():
            value = getattr(self, name)
            if value not in allowed and not (value is None and DEFAULTS[name] is None):
                raise unknown_name(name, value, allowed)
        if self.newlines is not None:
            check_newlines(self.newlines)
        check_inside(self.inside, self.inside_layer, self.inside_share)
        check_thumbnail_weight(self.thumbnail_weight, self.exact)
        self._set("thumbnail_weight", float(self.thumbnail_weight))
        check_options(self.selector, self.options, also=[*DEFAULTS, "preset", "config"])

    def _check_budget(self) -> None:
        """Check ratio and limits, and fill in a ratio that was not given."""
        for name in LIMITS:
            if getattr(self, name) is not None:
                self._set(name, check_limit(name, getattr(self, name)))
        if self.retention_ratio is None:
            self._set("retention_ratio", 1.0 if self.limits else 0.1)
        elif self.retention_ratio != AUTO:
            self._set("retention_ratio", _checked_ratio(self.retention_ratio))
        for name in ("auto_floor", "auto_ceiling"):
            try:
                self._set(name, check_ratio(getattr(self, name)))
            except InputError as error:
                raise InputError(str(error).replace("retention_ratio", name)) from None
        if self.auto_floor > self.auto_ceiling:
            raise InputError(
                f"auto_floor must be at most auto_ceiling, got {self.auto_floor:g} and {self.auto_ceiling:g}."
            )
        asked = [*self.limits.to_dict(), *(["retention_ratio='auto'"] if self.follows_content else [])]
        if asked and self.exact is False:
            raise InputError(
                f"exact must be True with {asked[0]}, got False: the published rounding keeps no exact number."
            )
        if self.limits and self.newlines == "all":
            raise InputError(
                f"newlines must not be 'all' with {asked[0]}, got 'all': newlines that no budget counts would come on top. "
                "Leave newlines out."
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _read_text(self, text: str) -> None:
        name, told = parse_method(text)
        self._set("method", name)
        for key, value in told.items():
            if key not in SETTINGS:
                self.options.setdefault(key, value)
            elif getattr(self, key) == DEFAULTS[key]:
                self._set(key, value)

    def __repr__(self) -> str:
        options = f", options={self.options!r}" if self.options else ""
        return f"CompressionConfig({self._described(self._changed())}{options})"

    @property
    def described(self) -> str:
        """Ratio, method and what is not default, as arguments of `compress`."""
        return self._described({**self._changed(), **self.options})

    def _described(self, settings: dict[str, Any]) -> str:
        shown = {"method": self.method_name, **settings}
        more = [f"{name}={value!r}" for name, value in shown.items()]
        return ", ".join([f"retention_ratio={ratio_text(self.retention_ratio)}", *more])

    def _changed(self) -> dict[str, Any]:
        """Fields that are not at their defaults, but for ratio, method and options."""
        named = {name: getattr(self, name) for name in SETTINGS if name not in APART}
        return {name: value for name, value in named.items() if value != DEFAULTS[name]}

    @property
    def limits(self) -> Limits:
        """The limits in tokens; false if there are none."""
        return Limits(self.max_visual_tokens, self.max_visual_tokens_per_call)

    @property
    def follows_content(self) -> bool:
        """Whether it takes a look at an image to know how many tokens it keeps."""
        return self.retention_ratio == AUTO

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever dropped: a ratio of 1 without limits."""
        return self.retention_ratio == 1.0 and not self.limits

    @property
    def highest_ratio(self) -> float:
        """The most that an image keeps, limits in tokens aside: the ratio, or the ceiling of "auto"."""
        return self.auto_ceiling if isinstance(self.retention_ratio, str) else self.retention_ratio

    @property
    def selector(self) -> Method:
        """The method, looked up."""
        return as_method(self.method)

    @property
    def method_name(self) -> str:
        """The method's name; of a function, the function's."""
        return self.selector.name

    @property
    def method_text(self) -> str:
        """The method and all settings but the ratio in one line, as the command line has them.

        Raises:
            InputError: A method that is not registered, or an option that cannot be written in one line.
        """
        return method_text(self._registered(), {**self._changed(), **self.options})

    @property
    def preset(self) -> str | None:
        """The preset that these settings are, at whatever ratio; None if they are none."""
        if self.method != PRESET_METHOD:
            return None
        name, rest = preset_within({**self._changed(), **self.options})
        return None if rest else name or "default"

    @classmethod
    def from_preset(cls, preset: str, **changes: Any) -> CompressionConfig:
        """Settings of a preset: "default"; "paper", the paper's choices; or "published", its code's rounding too.

        Args:
            preset: A name in `globalcom2.core.presets.PRESETS`.
            **changes: See `replace`. They win over the preset.

        Raises:
            InputError: An unknown preset, another method than `globalcom2`, or a wrong change.
        """
        method = by_name(changes.get("method", PRESET_METHOD))
        name, told, _ = split_method(method) if isinstance(method, str) else (as_method(method).name, None, {})
        if told is not None:
            raise InputError(f"preset must be given once, got preset={preset!r} and method={method!r}.")
        settings = preset_settings(preset, name)
        return cls().replace(**settings).replace(**changes)

    def replace(self, **changes: Any) -> CompressionConfig:
        """A copy with changes: fields by their names, and options of the method by theirs.

        A change of the method drops the options of the one before. What a method's text says yields to other changes.
        A limit in tokens takes the place of the ratio, unless there is a limit already or a ratio is given with it.
        """
        if "preset" in changes:
            raise InputError(
                f"preset must be given to CompressionConfig.from_preset or to compress, got preset={changes['preset']!r} for "
                "settings that are there already."
            )
        method = by_name(changes.pop("method", self.method))
        if isinstance(method, str) and ":" in method:
            method, told = parse_method(method)
            changes = {**told, **changes}
        same = method == self.method
        options = _checked_options(changes.pop("options", self.options if same else {}))
        options |= {name: value for name, value in changes.items() if name not in SETTINGS}
        fields = {name: value for name, value in changes.items() if name in SETTINGS}
        if not self.limits and any(fields.get(name) is not None for name in LIMITS):
            fields = {"retention_ratio": None, **fields}
        return dataclasses.replace(self, method=method, options=options, **fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain settings.

        Raises:
            InputError: The method is a function, or a `Method` that is not registered.
        """
        named = {name: copy.deepcopy(getattr(self, name)) for name in SETTINGS if name != "method"}
        return {**named, "method": self._registered()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> CompressionConfig:
        """Settings of `to_dict`; what is missing is at its default.

        Raises:
            InputError: A key or a value that is no setting.
        """
        if not isinstance(settings, Mapping):
            raise InputError(f"settings must be a dictionary, got {type(settings).__name__}.")
        for name in settings:
            if name not in SETTINGS:
                raise unknown_name("a key of the settings", name, SETTINGS)
        if not isinstance(settings.get("method", ""), str):
            raise InputError(f"method must be a method's name, got {settings['method']!r}.")
        return cls(**settings)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write `compression_config.json` into a folder, which may be a model's own, and return its path.

        Raises:
            InputError: What `to_dict` raises, an option that JSON does not give back, or a folder that cannot be written to.
        """
        return write_settings(folder, self.to_dict())

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> CompressionConfig:
        """Settings of a file, a folder, or a repository on the hub.

        A folder has `compression_config.json`, or a model's `config.json` into which `attach` has put them.

        Raises:
            InputError: There is none.
            DataError: A file with content that is no settings, or of a newer format.
        """
        settings, path = read_settings(name)
        try:
            return cls.from_dict(settings)
        except InputError as error:
            raise DataError(f"{str(path)!r} must hold settings of a compression: {error}") from error

    def attach(self, model: Any) -> None:
        """Put the settings into `model.config`, so that `model.save_pretrained` keeps them in `config.json`.

        A vLLM engine on that folder follows them. Here nothing is compressed by it: pass `config=CompressionConfig.of(
        model)` to `compress`.

        Raises:
            InputError: What `method_text` raises.
        """
        text = self.method_text
        config = _config_of(model)
        setattr(config, RETENTION, self.retention_ratio)
        setattr(config, METHOD, text)

    @classmethod
    def of(cls, model: Any) -> CompressionConfig:
        """The settings that `attach` has put into `model.config`, also of a model that was saved and loaded since.

        Raises:
            InputError: There are none.
        """
        config = _config_of(model)
        ratio = getattr(config, RETENTION, None)
        if ratio is None:
            raise InputError(
                "model must have settings of a compression in its config, got none. CompressionConfig(...).attach(model) puts "
                "them there."
            )
        return cls(ratio, getattr(config, METHOD, "globalcom2"))

    def vllm_overrides(self) -> dict[str, Any]:
        """What `LLM(model, hf_overrides=...)` and `vllm serve --hf-overrides` take for an engine to follow these settings.

        Raises:
            InputError: Settings that an engine cannot follow, or an option out of range.
        """
        check_served(self)
        limit = {} if self.max_visual_tokens is None else {LIMIT: self.max_visual_tokens}
        return {RETENTION: self.retention_ratio, METHOD: self.replace(max_visual_tokens=None).method_text, **limit}

    def _registered(self) -> str:
        """The name under which another process finds the method."""
        if isinstance(self.method, str):
            return self.method
        raise InputError(
            f"method must be a registered one to be saved, got {self.method_name!r}, which this process alone knows. Register a "
            "globalcom2.Method as an entry point in the group 'globalcom2.methods', and use its name."
        )


DEFAULTS: dict[str, Any] = {
    own.name: own.default for own in dataclasses.fields(CompressionConfig) if own.name != "options"
}
"""By field, but for `options`."""
SETTINGS = (*DEFAULTS, "options")
"""Names of the fields."""


def _checked_ratio(retention_ratio: Any) -> float:
    """A number in (0, 1]. The message for anything else tells of "auto"."""
    try:
        return check_ratio(retention_ratio)
    except InputError as error:
        raise InputError(str(error).replace("a number in (0, 1]", "a number in (0, 1] or 'auto'")) from None


def _checked_options(options: Any) -> dict[str, Any]:
    """A copy. Raises `InputError` unless it is a dictionary with names for keys."""
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise InputError(f"options must be a dictionary of names and values, got {options!r}.")
    return dict(options)


def _config_of(model: Any) -> Any:
    """The configuration of the transformers model inside whatever wraps it."""
    from globalcom2.hf.patching import unwrap  # noqa: PLC0415

    return unwrap(model).config
