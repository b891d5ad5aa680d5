"""One way to compress, for comparisons: a method at a ratio. Knows no torch until it is bound to a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

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
    retention_ratio: float = 0.1
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the method and further arguments of `compress`."""

    @classmethod
    def of(cls, text: str, retention_ratio: float, **more: Any) -> Setting:
        """From a method as the command line has it, such as "globalcom2:preset=paper"; its options win over `more`."""
        method, options = parse_method(text)
        return cls(method, retention_ratio, {**more, **options})

    @property
    def label(self) -> str:
        """The method with its options, as tables name it."""
        return label({"method": self.method, "options": self.options})

    def block(self, model: Any) -> Compression:
        """The setting bound to a model. Raises `InputError` for a wrong option."""
        from globalcom2.hf.compression import compress  # noqa: PLC0415

        return compress(model, self.retention_ratio, self.method, **self.options)


def settings_of(methods: Iterable[str], ratios: Iterable[float], preset: str | None = None) -> list[Setting]:
    """Every method at every ratio, in that order of ratios; a ratio of 1, which is alike for all methods, once.

    Args:
        methods: Methods as the command line has them.
        ratios: Each in (0, 1].
        preset: Named settings, for methods that they are for.

    Raises:
        InputError: An unknown method or preset, or a preset with another method.
    """
    texts = list(methods)
    more = [{} if preset is None else preset_settings(preset, parse_method(text)[0]) for text in texts]
    return _once(Setting.of(text, ratio, **own) for ratio in ratios for text, own in zip(texts, more, strict=True))


def settings_from(
    config: CompressionConfig, methods: Iterable[str] | None, ratios: Iterable[float] | None
) -> list[Setting]:
    """What a configuration says, with other methods or ratios if they are given.

    Args:
        config: Its `options` are those of its method, and go to no other one.
        methods: Methods as the command line has them; None for the configuration's.
        ratios: None for the configuration's.
    """
    own = {
        field.name: value
        for field in fields(config)
        if field.name not in ("method", "retention_ratio", "options")
        and (value := getattr(config, field.name)) != field.default
    }
    found = []
    for ratio in ratios or [config.retention_ratio]:
        for text in methods or [config.method_name]:
            options = config.options if parse_method(text)[0] == config.method_name else {}
            found.append(Setting.of(text, ratio, **own, **options))
    return _once(found)


def _once(settings: Iterable[Setting]) -> list[Setting]:
    """Without repetitions, and with one at most that keeps all tokens."""
    found: list[Setting] = []
    for setting in settings:
        full = setting.retention_ratio == 1.0 and any(other.retention_ratio == 1.0 for other in found)
        if setting not in found and not full:
            found.append(setting)
    return found
