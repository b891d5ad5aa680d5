"""How well a model answers with fewer visual tokens: methods x ratios on a set of pictures, resumable."""

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

from globalcom2.core.methods import parse_method
from globalcom2.errors import InputError
from globalcom2.hf.compression import compress
from globalcom2.lab.answers import answer_questions
from globalcom2.lab.dataset import Picture, fingerprint
from globalcom2.lab.intervals import Bootstrap, interval

FULL = "all tokens"
Block = Callable[[], AbstractContextManager[Any]]
"""Enters the state in which a model answers; yields a `Compression`, or None for all tokens."""


@dataclass(frozen=True)
class Setting:
    """One way to answer: a method at a ratio, or all tokens."""

    method: str
    retention_ratio: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """One line for progress bars and files."""
        options = "".join(f" {name}={value}" for name, value in self.options.items())
        return f"{self.method} {self.retention_ratio:g}{options}"

    def block(self, model: Any) -> AbstractContextManager[Any]:
        """The context in which the model answers so."""
        if self.method == FULL:
            return nullcontext()
        return compress(model, self.retention_ratio, self.method, **self.options)


def settings_of(methods: Iterable[str], ratios: Iterable[float]) -> list[Setting]:
    """All tokens once and first, then every method, as `parse_method` reads it, at every ratio below 1, largest first."""
    below = sorted({ratio for ratio in ratios if ratio < 1.0}, reverse=True)
    parsed = [parse_method(method) for method in dict.fromkeys(methods)]
    return [Setting(FULL, 1.0), *(Setting(name, ratio, options) for ratio in below for name, options in parsed)]


def label(row: dict[str, Any]) -> str:
    """A row's method with its options, for tables and plots."""
    options = ", ".join(f"{name}={value}" for name, value in row.get("options", {}).items())
    return f"{row['method']}, {options}" if options else str(row["method"])


@dataclass(frozen=True)
class Outcome:
    """How one picture's questions were answered."""

    setting: str
    picture: int
    right: list[bool]
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
        """Keep what was finished."""
        self.found |= {(outcome.setting, outcome.picture): outcome for outcome in outcomes}
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(asdict(outcome)) + "\n" for outcome in outcomes)


def batches(pictures: list[Picture], size: int) -> Iterator[list[Picture]]:
    """Pictures of one size together, so that no prompt is padded."""
    groups: dict[tuple[tuple[int, int], int], list[Picture]] = {}
    for picture in pictures:
        groups.setdefault((picture.size, len(picture.questions)), []).append(picture)
    for group in groups.values():
        for first in range(0, len(group), size):
            yield group[first : first + size]


def answer_pictures(model: Any, processor: Any, block: Block, name: str, pictures: list[Picture]) -> list[Outcome]:
    """Ask one batch of pictures of one size in one setting."""
    longest = max(len(processor.tokenizer(q.answer).input_ids) for picture in pictures for q in picture.questions)
    start = time.perf_counter()
    with block() as compression:
        answers = answer_questions(
            model,
            processor,
            [picture.image for picture in pictures],
            [[question.text for question in picture.questions] for picture in pictures],
            longest + 2,
        )
    seconds = (time.perf_counter() - start) / len(pictures)
    kept = answers.placeholders
    if compression is not None and len(compression.report):
        kept = [image.tokens_after for image in compression.report]
    return [
        Outcome(
            name,
            picture.number,
            [text.lower() == q.answer for text, q in zip(texts, picture.questions, strict=True)],
            tokens,
            seconds,
        )
        for picture, texts, tokens in zip(pictures, answers.texts, kept, strict=True)
    ]


def evaluate(
    model: Any,
    processor: Any,
    pictures: list[Picture],
    settings: list[Setting],
    *,
    batch_size: int = 16,
    journal: Journal | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """Answer all questions in all settings.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        pictures: The set.
        settings: What to try; the first is what the others are relative to.
        batch_size: Pictures per batch.
        journal: Where outcomes are kept and taken from.
        progress: Told how many pictures are finished, as they are.

    Returns:
        One row per setting, see `summarize`.
    """
    journal = journal or Journal(None, {})
    for setting in settings:  # a wrong option is told before hours of work
        setting.block(model)
    for setting in settings:
        for batch in batches(pictures, batch_size):
            if any((setting.name, picture.number) not in journal.found for picture in batch):
                journal.add(answer_pictures(model, processor, partial(setting.block, model), setting.name, batch))
            progress(len(batch))
    runs = [
        (asdict(setting), [journal.found[setting.name, picture.number] for picture in pictures]) for setting in settings
    ]
    return summarize(pictures, runs)


def summarize(pictures: list[Picture], runs: list[tuple[dict[str, Any], list[Outcome]]]) -> list[dict[str, Any]]:
    """Rows with accuracy, per kind too, relative to the first run, each with a 95 % interval over pictures.

    Returns:
        Per run what describes it and: questions, accuracy, interval, relative and relative_interval (None where the
        first run got nothing right), visual_tokens (mean per picture, newlines included), kinds and kind_intervals,
        seconds_per_picture, and `right`, one 0 or 1 per question in the set's order, from which everything else can be
        computed again.
    """
    kinds = np.array([question.kind for picture in pictures for question in picture.questions])
    owner = np.repeat(np.arange(len(pictures)), [len(picture.questions) for picture in pictures])
    bootstrap = Bootstrap(owner)
    rows: list[dict[str, Any]] = []
    full = np.zeros(0)
    for described, outcomes in runs:
        right = np.array([hit for outcome in outcomes for hit in outcome.right])
        drawn = bootstrap.accuracies(right)
        full = drawn if not rows else full
        accuracy = float(right.mean())
        names = list(dict.fromkeys(kinds.tolist()))
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


def journal_header(model: Any, pictures: list[Picture], version: str) -> dict[str, Any]:
    """What outcomes depend on besides their setting: weights and how they compute, the set, our version."""
    digest = hashlib.sha256()
    for name, weights in model.named_parameters():
        few = weights.detach().flatten()[:: max(1, weights.numel() // 16)]  # enough to tell two trainings apart
        digest.update(f"{name} {weights.dtype} {few.double().tolist()}".encode())
    return {
        "weights": digest.hexdigest()[:16],
        "attention": str(model.config._attn_implementation),
        "set": fingerprint(pictures),
        "globalcom2": version,
    }


def percent(share: float | None) -> str:
    """A share as text; a dash for an unknown one."""
    return "-" if share is None else f"{share:.1%}"


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """The table of README and model card."""
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
