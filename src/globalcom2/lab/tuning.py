"""The cheapest setting that is promised to lose less than a bound on a set of one's own, and how it is found.

Half of the images choose: every setting answers their questions. The other half checks what was chosen, as `promises` tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from globalcom2.errors import InputError
from globalcom2.hf.config import CompressionConfig
from globalcom2.lab.dataset import Example
from globalcom2.lab.evals import EvalSetting, evaluate
from globalcom2.lab.journal import Journal
from globalcom2.lab.promises import (
    CONFIDENCE,
    Candidate,
    Check,
    Losses,
    check,
    choose,
    pictures_needed,
    split,
    walk,
)

Progress = Callable[[int], None]


@dataclass
class Tuning:
    """A search on one set: first `choose`, then `check`, then `result`.

    Raises:
        InputError: Fewer than two images, or fewer than two settings.
    """

    model: Any
    """A supported model in eval mode."""
    processor: Any
    examples: list[Example]
    settings: list[EvalSetting]
    """The first is all tokens; the others may be promised."""
    max_loss: float
    """The bound: questions of a hundred that may be lost, as a share in (0, 1)."""
    confidence: float = CONFIDENCE
    seed: int = 0
    """Of the split."""
    share: float = 0.5
    """Of the images that choose."""
    batch_size: int = 16
    journal: Journal = field(default_factory=lambda: Journal(None, {}))
    candidates: list[Candidate] = field(default_factory=list)
    """After `choose`, one for each setting but the first."""
    steps: list[Candidate] = field(default_factory=list)
    """After `choose`, what is to be checked, in turn."""
    checks: list[Check] = field(default_factory=list)
    """After `check`, what was checked."""

    def __post_init__(self) -> None:
        if len(self.settings) < 2:
            raise InputError("settings must hold a ratio below 1, got all tokens alone. Try 0.25.")
        self._rows: dict[str, list[dict[str, Any]]] = {"choosing": [], "checking": []}
        self._most = max(len(example.questions) for example in self.examples)
        halves = split(len(self.examples), self.seed, self.share)
        self.choosing, self.checking = ([self.examples[place] for place in half] for half in halves)

    def choose(self, progress: Progress = lambda done: None) -> None:
        """Answer the choosing images' questions in all settings, and fix what is checked in which order.

        Args:
            progress: Called with the number of images that were just finished in a setting.
        """
        rows = self._answered(self.choosing, self.settings, progress)
        self._rows["choosing"] = rows
        losses = [losses_of(self.choosing, rows[0], row, self._most) for row in rows[1:]]
        costs = [row["visual_tokens"] for row in rows[1:]]
        pictures = len(self.checking)
        self.candidates = choose(losses, costs, self.max_loss, pictures, confidence=self.confidence, seed=self.seed)
        self.steps = walk(self.candidates)

    @property
    def chosen(self) -> list[EvalSetting]:
        """The settings that are to be checked, in turn."""
        return [self.settings[1 + step.index] for step in self.steps]

    def check(self, progress: Progress = lambda done: None) -> None:
        """Answer the checking images' questions with all tokens and in what was chosen, up to the first that fails.

        Args:
            progress: Called with the number of images that were just finished in a setting.
        """
        rows = self._rows["checking"] = []

        def answered(candidate: Candidate) -> Losses:
            setting = self.settings[1 + candidate.index]
            if not rows:
                rows.extend(self._answered(self.checking, [self.settings[0]], progress))
            both = [self.settings[0], setting]
            rows.append(self._answered(self.checking, both, progress, told_before=1)[1])
            return losses_of(self.checking, rows[0], rows[-1], self._most)

        self.checks = check(self.steps, answered, self.max_loss, self.confidence)

    @property
    def promised(self) -> Check | None:
        """The cheapest setting whose loss is promised to be under the bound; None if nothing can be promised."""
        held = [done for done in self.checks if done.holds]
        return held[-1] if held else None

    @property
    def config(self) -> CompressionConfig | None:
        """The promised setting, to be saved; None without one."""
        if self.promised is None:
            return None
        compression: Any = self.settings[1 + self.promised.candidate.index].block(self.model)
        config: CompressionConfig = compression.settings
        return config

    def needed(self) -> int | None:
        """About how many images a set must have for something to be promised, if losses stay what they are.

        None where all settings lose the bound or more, or where more than a hundred thousand would be needed.
        """
        counts = []
        for candidate in self.candidates:
            seen = self._seen(candidate)
            counts.append(pictures_needed(seen, self.max_loss, self.confidence, seed=self.seed))
        known = [count for count in counts if count is not None]
        return int(np.ceil(min(known) * len(self.examples) / len(self.checking))) if known else None

    def _seen(self, candidate: Candidate) -> Losses:
        """The losses of a setting on all images on which it was tried."""
        setting = self.settings[1 + candidate.index]
        parts = [
            losses_of(examples, self._rows[half][0], row, self._most)
            for half, examples in (("choosing", self.choosing), ("checking", self.checking))
            for row in self._rows_of(setting, half)
        ]
        return Losses(
            np.concatenate([part.lost for part in parts]), np.concatenate([part.asked for part in parts]), self._most
        )

    def result(self) -> dict[str, Any]:
        """What was found, for JSON: both halves' runs, what was promised, and if nothing was, how many images to have."""
        promised = self.promised
        return {
            "max_loss": self.max_loss,
            "confidence": self.confidence,
            "seed": self.seed,
            "pictures": len(self.examples),
            "promised": None if promised is None else self._described(promised),
            "pictures_needed": None if promised is not None else self.needed(),
            "choosing": self._half("choosing", self.choosing, self.candidates),
            "checking": self._half("checking", self.checking, self.checks),
        }

    def _described(self, done: Check) -> dict[str, Any]:
        """A setting with its visual tokens per image of both halves."""
        setting = self.settings[1 + done.candidate.index]
        parts = [(len(self.choosing), done.candidate.cost)]
        parts += [(len(self.checking), row["visual_tokens"]) for row in self._rows_of(setting, "checking")]
        tokens = sum(images * cost for images, cost in parts) / sum(images for images, _ in parts)
        return {**setting.described, "visual_tokens": tokens}

    def _rows_of(self, setting: EvalSetting, half: str) -> list[dict[str, Any]]:
        """The one row of a setting in a half; none where it was not tried."""
        described = setting.described
        return [row for row in self._rows[half][1:] if all(row[key] == value for key, value in described.items())]

    def _half(self, name: str, examples: Sequence[Example], found: Sequence[Candidate | Check]) -> dict[str, Any]:
        """One half: its runs as `evaluate` has them, and what was made of all but the first."""
        rows = self._rows[name]
        more = [{"loss": 0.0}, *map(_figures, found)] if rows else []
        return {
            "pictures": len(examples),
            "numbers": [example.number for example in examples],
            "runs": [{**row, **own} for row, own in zip(rows, more, strict=True)],
        }

    def _answered(
        self, examples: list[Example], settings: list[EvalSetting], progress: Progress, told_before: int = 0
    ) -> list[dict[str, Any]]:
        """Rows of `evaluate`; of its progress, the share of so many settings was told before."""
        done = told = 0

        def tell(more: int) -> None:
            nonlocal done, told
            done += more
            new = done * (len(settings) - told_before) // len(settings) - told
            told += new
            progress(new)

        return evaluate(
            self.model,
            self.processor,
            examples,
            settings,
            batch_size=self.batch_size,
            journal=self.journal,
            progress=tell,
        )


def _figures(found: Candidate | Check) -> dict[str, Any]:
    """A candidate's or a check's part of a run."""
    if isinstance(found, Candidate):
        return {"loss": found.loss, "bet": found.bet, "chance": found.chance}
    return {"loss": found.loss, "upper": found.upper, "holds": found.holds}


def losses_of(examples: Sequence[Example], full: dict[str, Any], row: dict[str, Any], most: int) -> Losses:
    """What a run of `evaluate` loses against another one, by image.

    Args:
        examples: The images of both runs.
        full: The row of all tokens.
        row: The other one.
        most: Most questions about any image.
    """
    asked = np.array([len(example.questions) for example in examples])
    return Losses(_by_image(full["right"], asked) - _by_image(row["right"], asked), asked, most)


def _by_image(right: str, asked: NDArray[np.int64]) -> NDArray[np.int64]:
    """Right answers per image, (images,), from one 0 or 1 per question."""
    hits = np.array([int(hit) for hit in right])
    return np.add.reduceat(hits, np.concatenate([[0], np.cumsum(asked)[:-1]]))
