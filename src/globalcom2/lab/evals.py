"""How well a model answers with fewer visual tokens: methods x ratios on an evaluation set. A stopped run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from globalcom2.core.method import Method
from globalcom2.core.methods import as_method, parse_method, split_method
from globalcom2.core.selection import Selector
from globalcom2.errors import InputError
from globalcom2.hf.compression import Compression, compress
from globalcom2.lab.answers import Answers, answer_apart, answer_questions
from globalcom2.lab.dataset import Example
from globalcom2.lab.fitting import Fitted, fit
from globalcom2.lab.journal import Journal, Outcome
from globalcom2.lab.labels import FULL
from globalcom2.lab.paired import with_differences
from globalcom2.lab.shared_tower import SharedTower, shared_tower
from globalcom2.lab.summaries import summarize

Block = Callable[[], AbstractContextManager[Any]]
"""Enters the state in which a model answers; yields a `Compression`, or None for all tokens."""


@dataclass(frozen=True)
class EvalSetting:
    """One way to answer: a method at a ratio, or all tokens.

    With `inside` among the options, tokens leave inside the language model too. The ratio is then the mean over its layers,
    as far as it can be, see `fit`. `FULL` with `inside` gives the language model all tokens first.
    """

    method: str | Method | Selector
    """A method's name, `FULL` for all tokens, or what else `compress` takes as a method."""
    retention_ratio: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def method_name(self) -> str:
        """The method's name; of a function, the function's."""
        return self.method if isinstance(self.method, str) else as_method(self.method).name

    @property
    def name(self) -> str:
        """One line for progress bars and files."""
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"{self.method_name} {self.retention_ratio:g}{options}"

    @property
    def described(self) -> dict[str, Any]:
        """The setting's part of a row of `evaluate`."""
        return {"method": self.method_name, "retention_ratio": self.retention_ratio, "options": self.options}

    @property
    def inside(self) -> bool:
        """Whether tokens leave inside the language model. Each question then needs a call of its own: it decides which."""
        return self.options.get("inside") is not None

    def fitted(self, model: Any) -> Fitted | None:
        """What the prompt keeps and what stays inside, so that the ratio is kept; None where nothing leaves inside."""
        if not self.inside:
            return None
        depth = model.config.get_text_config().num_hidden_layers
        return fit(self.options, self.retention_ratio, depth, alone=self.method == FULL)

    def block(self, model: Any) -> AbstractContextManager[Any]:
        """A context in which `model` answers in this setting; it checks the options at once."""
        fitted = self.fitted(model)
        if fitted is not None:
            method, share = None if self.method == FULL else self.method, fitted.inside_share
            return compress(model, fitted.prompt_ratio, method, **{**self.options, "inside_share": share})
        if self.method == FULL:
            return nullcontext()
        return compress(model, self.retention_ratio, self.method, **self.options)


def settings_of(methods: Iterable[str], ratios: Iterable[float]) -> list[EvalSetting]:
    """All tokens once and first, then every method, as `parse_method` reads it, at every ratio below 1, largest first.

    Methods that mean the same, such as a preset and its options, are one. "all tokens:inside=fastv" is a method here, too.
    """
    below = sorted({ratio for ratio in ratios if ratio < 1.0}, reverse=True)
    parsed = [_parsed(method) for method in methods]
    found = [
        EvalSetting(FULL, 1.0),
        *(EvalSetting(name, ratio, options) for ratio in below for name, options in parsed),
    ]
    return list({setting.name: setting for setting in found}.values())


def _parsed(method: str) -> tuple[str, dict[str, Any]]:
    name, _, options = split_method(method)
    return (name, options) if name == FULL and "inside" in options else parse_method(method)


def batches(examples: list[Example], size: int) -> Iterator[list[Example]]:
    """Groups of at most `size` examples whose images have one size, so that no prompt is padded."""
    groups: dict[tuple[tuple[int, int], int], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.size, len(example.questions)), []).append(example)
    for group in groups.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


def answer_examples(
    model: Any,
    processor: Any,
    block: Block,
    name: str,
    examples: list[Example],
    *,
    apart: bool = False,
    shared: SharedTower | None = None,
) -> list[Outcome]:
    """Ask the questions of one batch of examples, whose images have one size, in one setting.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        block: Enters the setting.
        name: What the outcomes call the setting.
        examples: One of `batches`.
        apart: Whether each question has a call of its own, which takes longer.
        shared: A tower that remembers its last call. What it saves is told, and is part of every time nevertheless.
    """
    longest = max(len(processor.tokenizer(q.answer).input_ids) for example in examples for q in example.questions)
    images = [example.image for example in examples]
    questions = [[question.text for question in example.questions] for example in examples]
    start, saved_before = time.perf_counter(), shared.saved if shared else 0.0
    with block() as compression:
        answers = (answer_apart if apart else answer_questions)(model, processor, images, questions, longest + 2)
    seconds = (time.perf_counter() - start) / len(examples)
    saved = (shared.saved - saved_before) / len(examples) if shared else 0.0
    tokens = _tokens(answers, compression)
    selection, first_token = (None, None) if apart else _times(compression, len(examples), saved)
    return [
        Outcome(
            name,
            example.number,
            [text.lower() == q.answer for text, q in zip(texts, example.questions, strict=True)],
            read,
            seconds + saved,
            saved_seconds=saved,
            selection_seconds=selection,
            first_token_seconds=first_token,
        )
        for example, texts, read in zip(examples, answers.texts, tokens, strict=True)
    ]


def _tokens(answers: Answers, compression: Compression | None) -> list[float]:
    """Visual tokens that the language model read per image, the mean over its layers where some leave inside it."""
    if compression is None or not len(compression.report):
        return [float(count) for count in answers.placeholders]
    return [
        image.tokens_after if image.inside is None else image.mean_retention * image.tokens_before
        for image in compression.report
    ]


def _times(compression: Compression | None, images: int, saved: float) -> tuple[float | None, float | None]:
    """Seconds per image of the selection, and of all that comes before the first token."""
    seconds = {} if compression is None else compression.report.seconds
    if "selection" not in seconds:
        return None, None
    return seconds["selection"] / images, sum(seconds.values()) / images + saved


def evaluate(
    model: Any,
    processor: Any,
    examples: list[Example],
    settings: list[EvalSetting],
    *,
    batch_size: int = 16,
    journal: Journal | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Answer all questions in all settings.

    All settings answer about one batch before the next batch begins, and the tower remembers it in between.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        examples: The evaluation set.
        settings: What to try; the first is what the others are relative to.
        batch_size: Images per batch.
        journal: Where outcomes are kept and taken from.
        progress: Called with the number of examples that were just finished.

    Returns:
        One row per setting, see `summarize` and `with_differences`. Where tokens leave inside the language model, also
        `prompt_ratio` and `inside_share`.

    Raises:
        InputError: A setting has a wrong option, two have one name, or a function's outcomes would be kept on disk, where
            nothing tells it from an earlier one of its name. Before anything is answered.
    """
    journal = journal or Journal(None, {})
    _check_names(settings, journal)
    for setting in settings:  # a wrong option is told before hours of work
        setting.block(model)
    with shared_tower(model) as shared:
        for batch in batches(examples, batch_size):
            for setting in settings:
                if any((setting.name, example.number) not in journal.found for example in batch):
                    journal.add(answer_in(model, processor, setting, batch, shared))
                progress(len(batch))
    runs = []
    for setting in settings:
        fitted = setting.fitted(model)
        described = setting.described if fitted is None else {**setting.described, **fitted._asdict()}
        runs.append((described, [journal.found[setting.name, example.number] for example in examples]))
    owners = np.repeat(np.arange(len(examples)), [len(example.questions) for example in examples])
    return with_differences(summarize(examples, runs), owners)


def answer_in(
    model: Any, processor: Any, setting: EvalSetting, batch: list[Example], shared: SharedTower | None = None
) -> list[Outcome]:
    """The outcomes of one batch in one setting, see `answer_examples`."""
    block = partial(setting.block, model)
    return answer_examples(model, processor, block, setting.name, batch, apart=setting.inside, shared=shared)


def _check_names(settings: list[EvalSetting], journal: Journal) -> None:
    """Raise `InputError` for outcomes that would be taken for another setting's."""
    names = [setting.name for setting in settings]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"settings must have names of their own, got {twice[0]!r} twice. Rename one of the functions.")
    functions = [setting.method_name for setting in settings if not isinstance(setting.method, str)]
    if journal.path is not None and functions:
        raise InputError(
            f"journal must be left out where a method is no registered one, got {str(journal.path)!r} and method "
            f"{functions[0]!r}. Register a globalcom2.Method and use its name."
        )
