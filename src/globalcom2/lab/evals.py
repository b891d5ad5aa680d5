"""How well a model answers with fewer visual tokens: methods x ratios on an evaluation set. A stopped run goes on."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from globalcom2.core.method import Method
from globalcom2.core.methods import as_method, parse_method
from globalcom2.core.selection import Selector
from globalcom2.errors import InputError
from globalcom2.hf.compression import compress
from globalcom2.lab.answers import answer_questions
from globalcom2.lab.dataset import Example, fingerprint
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.labels import FULL, label, percent

Block = Callable[[], AbstractContextManager[Any]]
"""Enters the state in which a model answers; yields a `Compression`, or None for all tokens."""


@dataclass(frozen=True)
class EvalSetting:
    """One way to answer: a method at a ratio, or all tokens."""

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

    def block(self, model: Any) -> AbstractContextManager[Any]:
        """A context in which `model` answers in this setting; it checks the options at once."""
        if self.method == FULL:
            return nullcontext()
        return compress(model, self.retention_ratio, self.method, **self.options)


def settings_of(methods: Iterable[str], ratios: Iterable[float]) -> list[EvalSetting]:
    """All tokens once and first, then every method, as `parse_method` reads it, at every ratio below 1, largest first.

    Methods that mean the same, such as a preset and its options, are one.
    """
    below = sorted({ratio for ratio in ratios if ratio < 1.0}, reverse=True)
    parsed = [parse_method(method) for method in methods]
    found = [
        EvalSetting(FULL, 1.0),
        *(EvalSetting(name, ratio, options) for ratio in below for name, options in parsed),
    ]
    return list({setting.name: setting for setting in found}.values())


@dataclass(frozen=True)
class Outcome:
    """How the questions of one example were answered in one setting; a line of the journal."""

    setting: str
    """`EvalSetting.name`."""
    picture: int
    """`Example.number`."""
    right: list[bool]
    """One entry per question."""
    visual_tokens: int
    seconds: float


class Journal:
    """Outcomes on disk, one line each, so that a stopped run goes on where it was.

    Args:
        path: The file; None keeps nothing.
        header: What the outcomes depend on besides their setting.

    Raises:
        InputError: The file belongs to another model or set.
    """

    def __init__(self, path: Path | None, header: dict[str, Any]):
        self.path = path
        self.found: dict[tuple[str, int], Outcome] = {}
        if path is None:
            return
        if not path.exists():
            path.write_text(json.dumps(header) + "\n")
            return
        text = path.read_text()
        lines = text.splitlines()
        if not lines or lines[0] != json.dumps(header):
            raise InputError(
                f"{str(path)!r} must belong to this model, set and version to be resumed, got another run's. Delete it, or "
                "choose another --out."
            )
        for line in lines[1:]:
            try:
                outcome = Outcome(**json.loads(line))
            except ValueError:  # the last line of a run that was killed while it wrote
                continue
            self.found[outcome.setting, outcome.picture] = outcome
        if not text.endswith("\n"):  # what is added must not grow onto a half-written line
            with path.open("a") as file:
                file.write("\n")

    def add(self, outcomes: list[Outcome]) -> None:
        """Keep outcomes, in memory and on disk."""
        self.found |= {(outcome.setting, outcome.picture): outcome for outcome in outcomes}
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)


def batches(examples: list[Example], size: int) -> Iterator[list[Example]]:
    """Groups of at most `size` examples whose images have one size, so that no prompt is padded."""
    groups: dict[tuple[tuple[int, int], int], list[Example]] = {}
    for example in examples:
        groups.setdefault((example.size, len(example.questions)), []).append(example)
    for group in groups.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


def answer_examples(model: Any, processor: Any, block: Block, name: str, examples: list[Example]) -> list[Outcome]:
    """Ask the questions of one batch of examples, whose images have one size, in one setting.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        block: Enters the setting.
        name: What the outcomes call the setting.
        examples: One of `batches`.
    """
    longest = max(len(processor.tokenizer(q.answer).input_ids) for example in examples for q in example.questions)
    start = time.perf_counter()
    with block() as compression:
        answers = answer_questions(
            model,
            processor,
            [example.image for example in examples],
            [[question.text for question in example.questions] for example in examples],
            longest + 2,
        )
    seconds = (time.perf_counter() - start) / len(examples)
    kept = answers.placeholders
    if compression is not None and len(compression.report):
        kept = [image.tokens_after for image in compression.report]
    return [
        Outcome(
            name,
            example.number,
            [text.lower() == q.answer for text, q in zip(texts, example.questions, strict=True)],
            tokens,
            seconds,
        )
        for example, texts, tokens in zip(examples, answers.texts, kept, strict=True)
    ]


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

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        examples: The evaluation set.
        settings: What to try; the first is what the others are relative to.
        batch_size: Images per batch.
        journal: Where outcomes are kept and taken from.
        progress: Called with the number of examples that were just finished.

    Returns:
        One row per setting, see `summarize`.

    Raises:
        InputError: A setting has a wrong option, two have one name, or a function's outcomes would be kept on disk, where
            nothing tells it from an earlier one of its name. Before anything is answered.
    """
    journal = journal or Journal(None, {})
    _check_names(settings, journal)
    for setting in settings:  # a wrong option is told before hours of work
        setting.block(model)
    for setting in settings:
        for batch in batches(examples, batch_size):
            if any((setting.name, example.number) not in journal.found for example in batch):
                journal.add(answer_examples(model, processor, partial(setting.block, model), setting.name, batch))
            progress(len(batch))
    runs = [
        (setting.described, [journal.found[setting.name, example.number] for example in examples])
        for setting in settings
    ]
    return summarize(examples, runs)


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


def summarize(examples: list[Example], runs: list[tuple[dict[str, Any], list[Outcome]]]) -> list[dict[str, Any]]:
    """Rows with accuracy, per kind too, relative to the first run, each with a 95 % interval over images.

    Args:
        examples: The evaluation set.
        runs: What describes a run, and its outcomes in the set's order.

    Returns:
        Per run what describes it and: questions, accuracy, interval, relative and relative_interval (None where the
        first run got nothing right), visual_tokens (mean per image, newlines included), kinds and kind_intervals,
        seconds_per_picture, and `right`, one 0 or 1 per question in the set's order, from which everything else can be
        computed again.
    """
    kinds = np.array([question.kind for example in examples for question in example.questions])
    names = list(dict.fromkeys(kinds.tolist()))
    bootstrap = Bootstrap(np.repeat(np.arange(len(examples)), [len(example.questions) for example in examples]))
    rows: list[dict[str, Any]] = []
    full = np.zeros(0)
    for described, outcomes in runs:
        right = np.array([hit for outcome in outcomes for hit in outcome.right])
        drawn = bootstrap.accuracies(right)
        full = drawn if not rows else full
        accuracy = float(right.mean())
        rows.append(
            {
                **described,
                "questions": len(right),
                "accuracy": accuracy,
                "interval": interval(drawn),
                **_relative(accuracy, rows[0]["accuracy"] if rows else accuracy, drawn, full),
                "visual_tokens": float(np.mean([outcome.visual_tokens for outcome in outcomes])),
                "kinds": {name: float(right[kinds == name].mean()) for name in names},
                "kind_intervals": {name: interval(bootstrap.accuracies(right, kinds == name)) for name in names},
                "seconds_per_picture": float(np.mean([outcome.seconds for outcome in outcomes])),
                "right": "".join(str(int(hit)) for hit in right),
            }
        )
    return rows


def _relative(
    accuracy: float, reference: float, drawn: NDArray[np.float64], full: NDArray[np.float64]
) -> dict[str, Any]:
    if reference == 0.0:  # nothing to compare with
        return {"relative": None, "relative_interval": None}
    possible = full > 0
    return {"relative": accuracy / reference, "relative_interval": interval(drawn[possible] / full[possible])}


def journal_header(model: Any, examples: list[Example], version: str) -> dict[str, Any]:
    """What outcomes depend on besides their setting: weights and how they compute, the set, our version."""
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        few = weights.detach().flatten()[:: max(1, weights.numel() // 16)]  # enough to tell two trainings apart
        digest.update(f"{name} {weights.dtype} {few.double().tolist()}".encode())
    return {
        "weights": digest.hexdigest()[:16],
        "attention": str(model.config._attn_implementation),
        "set": fingerprint(examples),
        "globalcom2": version,
    }


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `evaluate` as the Markdown table of README and model card."""
    kinds = list(rows[0]["kinds"])
    lines = [
        "| method | ratio | visual tokens | " + " | ".join(kinds) + " | all | of all tokens' |",
        "|---|---|---|" + "---|" * (len(kinds) + 2),
    ]
    for row in rows:
        low, high = row["interval"]
        cells = [f"{row['kinds'][kind]:.1%}" for kind in kinds]
        cells += [f"{row['accuracy']:.1%} ({low:.1%} to {high:.1%})", percent(row["relative"])]
        head = f"| {label(row)} | {row['retention_ratio']:g} | {row['visual_tokens']:.0f} | "
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join(lines)
