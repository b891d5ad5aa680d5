"""What the page's button does: one picture and one question, answered with all visual tokens and in up to two settings."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from globalcom2.core.budget import check_ratio
from globalcom2.core.methods import list_methods
from globalcom2.core.presets import PRESET_METHOD, PRESETS
from globalcom2.errors import InputError
from globalcom2.hf.loading import MINIS, load_config, load_model
from globalcom2.lab.comparison import Comparison, compare
from globalcom2.lab.settings import Setting
from globalcom2.web.uploads import Limits, open_upload

NONE = ""
"""The second chooser's value for no second method."""
Report = Callable[[float, str], None]
"""Told the share that is done, and what is being done."""


def method_choices() -> list[tuple[str, str]]:
    """All methods and presets as (label, text of the method), `globalcom2` first."""
    presets = [
        (f"{PRESET_METHOD}, {name}", f"{PRESET_METHOD}:preset={name}") for name, chosen in PRESETS.items() if chosen
    ]
    others = [(name, name) for name in list_methods() if name != PRESET_METHOD]
    return [(PRESET_METHOD, PRESET_METHOD), *presets, *others]


@dataclass
class Models:
    """The model that the page was started with, and the last other one if visitors may name one."""

    name: str
    model: Any
    processor: Any
    load: Callable[[str], tuple[Any, Any]] = load_model
    open_to_others: bool = False
    """Whether a visitor may name a model, which the server then loads, downloading it if need be."""
    _other: tuple[str, Any, Any] | None = None

    def get(self, name: object) -> tuple[str, Any, Any]:
        """A model's name, the model, and its processor; None or an empty name gives the first one.

        Raises:
            InputError: Another model than the first where visitors may name none, or one that cannot be loaded.
        """
        name = (name.strip() if isinstance(name, str) else "") or self.name
        if name == self.name:
            return self.name, self.model, self.processor
        if not self.open_to_others:
            raise InputError(
                f"model must be {self.name!r} here, got {name!r}. Start the page with --model, or with --allow-models."
            )
        if self._other is None or self._other[0] != name:
            _check_public(name)
            self._other = None  # let go of the last one before the next one takes memory
            self._other = (name, *self.load(name))
        return self._other


def _check_public(name: str) -> None:
    """Raise `InputError` unless a name is that of a model on the hub: a visitor may not look into the server's folders."""
    if name not in MINIS and (name.count("/") != 1 or name.startswith((".", "/", "~")) or "\\" in name or ".." in name):
        raise InputError(f"model must be 'mini' or a name on the hub such as owner/name, got {name!r}.")
    load_config(name)


@dataclass
class Answering:
    """Answers the page's questions, one at a time. Keeps nothing of a visitor's between two of them."""

    models: Models
    limits: Limits = field(default_factory=Limits)
    max_new_tokens: int = 32
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self,
        picture: str | None,
        question: object,
        retention_ratio: float,
        methods: Sequence[object],
        model: object = None,
        report: Report | None = None,
    ) -> Comparison:
        """Answer one question. Everything is checked: it comes from a visitor's browser.

        Args:
            picture: Path of the visitor's picture.
            question: The question.
            retention_ratio: Fraction of the visual tokens to keep.
            methods: Texts of methods among `method_choices`; empty ones and repeated ones are left out.
            model: Name of a model; None for the one that the page was started with.
            report: Told about progress.

        Raises:
            InputError: Anything that cannot be asked; nothing has run then.
        """
        told = report or (lambda share, what: None)
        chosen = _settings(methods, retention_ratio)
        text = question.strip() if isinstance(question, str) else ""
        if not text:
            raise InputError("a question must be given, got none. Write one, or choose an example.")
        if len(text) > self.limits.question:
            raise InputError(
                f"a question must have at most {self.limits.question} characters, got {len(text)}. Shorten it."
            )
        image = open_upload(picture, self.limits)
        with self._turn:
            told(0.0, "Loading the model")
            name, network, processor = self.models.get(model)
            names = ["all tokens", *(label for label, _ in chosen), "done"]
            told(0.05, f"{name} answers: {names[0]}")
            return compare(
                network,
                processor,
                image,
                text,
                [setting for _, setting in chosen],
                max_new_tokens=self.max_new_tokens,
                progress=lambda done, total: told(done / total, f"{name} answers: {names[done]}"),
            )


def _settings(methods: Sequence[object], retention_ratio: float) -> list[tuple[str, Setting]]:
    known = {text: label for label, text in method_choices()}
    ratio = check_ratio(retention_ratio)
    wanted: list[str] = []
    for text in methods:
        if text in (NONE, None) or text in wanted:
            continue
        if not isinstance(text, str) or text not in known:  # also keeps out options of a visitor's own
            raise InputError(f"method must be one of {', '.join(known)}, got {text!r}.")
        wanted.append(text)
    if not wanted:
        raise InputError("a method must be chosen, got none. Choose one in the first list.")
    return [(known[text], Setting.of(text, ratio)) for text in wanted]
