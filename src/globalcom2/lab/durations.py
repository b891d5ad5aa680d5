"""How long an evaluation will take, told before it runs: its first batch is timed, and the rest is in proportion."""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Any

from globalcom2.lab.dataset import Example
from globalcom2.lab.evals import EvalSetting, Journal, answer_examples, batches


def seconds_left(
    model: Any, processor: Any, examples: list[Example], settings: list[EvalSetting], batch_size: int, journal: Journal
) -> float:
    """About how many seconds `evaluate` will take from here.

    The first batch is answered in the first setting and in the one with the lowest ratio, and kept in the journal, so
    that nothing is asked twice. Between the two, time is taken to grow evenly with the ratio.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        examples: The evaluation set.
        settings: What is to be tried; the first is all tokens.
        batch_size: Images per batch.
        journal: What `evaluate` will be given.
    """
    full, least = settings[0], min(settings, key=lambda setting: setting.retention_ratio)
    first = next(batches(examples, batch_size))
    for setting in (full, least):
        if any((setting.name, example.number) not in journal.found for example in first):
            block = partial(setting.block, model)
            answer_examples(model, processor, block, setting.name, first[:1])  # whatever a first time costs
            journal.add(answer_examples(model, processor, block, setting.name, first))
    slow, fast = (_pace(journal, setting.name) for setting in (full, least))
    total = 0.0
    for setting in settings:
        missing = sum((setting.name, example.number) not in journal.found for example in examples)
        span = full.retention_ratio - least.retention_ratio
        share = (setting.retention_ratio - least.retention_ratio) / span if span else 1.0
        total += missing * (fast + (slow - fast) * share)
    return total


def _pace(journal: Journal, setting: str) -> float:
    """Seconds per image in one setting, from what the journal holds."""
    return mean(outcome.seconds for (name, _), outcome in journal.found.items() if name == setting)


def told(seconds: float) -> str:
    """A duration in words, rounded: "40 s", "5 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
