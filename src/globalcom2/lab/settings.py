"""One way to compress, for comparisons: a method at a ratio. Knows no torch until it is bound to a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from globalcom2.core.budget import LIMITS, budget_text
from globalcom2.core.methods import parse_method
from globalcom2.core.presets import preset_settings
from globalcom2.lab.labels import label

if TYPE_CHECKING:
    from globalcom2.hf.compression import Compression
    from globalcom2.hf.config import CompressionConfig


@dataclass(frozen=True)
class Setting:
    """A method at a ratio."""

    method: str = "globalcom2"
    retention_ratio: float | str = 0.1
    """A number, or "auto"."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method and further arguments of `compress`."""

    @classmethod
    def of(cls, text: str, retention_ratio: float | str, **more: Any) -> Setting:
        """From a method as the command line has it, such as "globalcom2:preset=paper"; its options win over `more`."""
        method, options = parse_method(text)
        return cls(method, retention_ratio, {**more, **options})

    @property
    def label(self) -> str:
        """The method with its options, as tables name it."""
        return label({"method": self.method, "options": self.options})

    @property
    def budget(self) -> str:
        """The ratio, or the limit in tokens, as tables have it."""
        return budget_text(self.retention_ratio, self.options)

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is dropped."""
        return self.retention_ratio == 1.0 and not any(self.options.get(name) for name in (*LIMITS, "inside"))

    def block(self, model: Any) -> Compression:
        """The setting bound to a model. Raises `InputError` for a wrong option."""
        from globalcom2.hf.compression import compress  # noqa: PLC0415

        return compress(model, self.retention_ratio, self.method, **self.options)


def settings_of(
    methods: Iterable[str],
    ratios: Iterable[float | str],
    preset: str | None = None,
    limits: Iterable[int | None] = (None,),
) -> list[Setting]:
    """Every method at every ratio, in that order of ratios; a ratio of 1, which is alike for all methods, once.

    Args:
        methods: Methods as the command line has them.
        ratios: Each in (0, 1], or "auto".
        preset: Named settings, for methods that they are for.
        limits: Values of `max_visual_tokens`, each with every ratio; None for no limit.

    Raises:
        InputError: An unknown method or preset, or a preset with another method.
    """
    texts = list(methods)
    more = [{} if preset is None else preset_settings(preset, parse_method(text)[0]) for text in texts]
    return _once(
        Setting.of(text, ratio, **own, **_limit(limit))
        for ratio in ratios
        for limit in limits
        for text, own in zip(texts, more, strict=True)
    )


def settings_from(
    config: CompressionConfig,
    methods: Iterable[str] | None,
    ratios: Iterable[float | str] | None,
    limits: Iterable[int] | None = None,
) -> list[Setting]:
    """What a configuration says, with other methods or ratios if they are given.

    Args:
        config: Its `options` are those of its method, and go to no other one.
        methods: Methods as the command line has them; None for the configuration's.
        ratios: None for the configuration's.
        limits: Values of `max_visual_tokens`; None for the configuration's. See `CompressionConfig.replace`.
    """
    own = {
        field.name: value
        for field in fields(config)
        if field.name not in ("method", "retention_ratio", "options")
        and (value := getattr(config, field.name)) != field.default
    }
    found = []
    each: list[int | None] = [*limits] if limits else [None]
    for limit in each:
        with_limit = {**own, **_limit(limit)}
        saved = config if limit is None else config.replace(max_visual_tokens=limit)
        for ratio in ratios or [saved.retention_ratio]:
            for text in methods or [config.method_name]:
                options = config.options if parse_method(text)[0] == config.method_name else {}
                found.append(Setting.of(text, ratio, **with_limit, **options))
    return _once(found)


def _limit(limit: int | None) -> dict[str, int]:
    return {} if limit is None else {LIMITS[0]: limit}


def _once(settings: Iterable[Setting]) -> list[Setting]:
    """Without repetitions, and with one at most that keeps all tokens."""
    found: list[Setting] = []
    for setting in settings:
        full = setting.keeps_all and any(other.keeps_all for other in found)
        if setting not in found and not full:
            found.append(setting)
    return found
