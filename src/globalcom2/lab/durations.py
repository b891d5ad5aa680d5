"""How long an evaluation will take, told before it runs: its first batch is timed, and the rest is in proportion."""

from __future__ import annotations

from statistics import mean
from typing import Any

from globalcom2.lab.dataset import Example
from globalcom2.lab.evals import EvalSetting, answer_in, batches
from globalcom2.lab.journal import Journal, Outcome
from globalcom2.lab.shared_tower import shared_tower


def seconds_left(
    model: Any, processor: Any, examples: list[Example], settings: list[EvalSetting], batch_size: int, journal: Journal
) -> float:
    """About how many seconds `evaluate` will take from here.

    The first batch is answered in the settings with the longest and the shortest prompt, and kept in the journal, so that
    nothing is asked twice. Between the two, time is taken to grow evenly with the prompt. Settings in which tokens leave
    inside the language model are timed in the same way among themselves. What the tower remembers from one setting to the
    next is counted once per image.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        examples: The evaluation set.
        settings: What is to be tried; the first is all tokens.
        batch_size: Images per batch.
        journal: What `evaluate` will be given.
    """
    first = next(batches(examples, batch_size))
    plain, inside = ([(_prompt(s, model), s) for s in settings if s.inside is kind] for kind in (False, True))
    ends = [(max(group, key=_length), min(group, key=_length)) for group in (plain, inside) if group]
    new = [s for pair in ends for _, s in pair if any(_missing(s, example, journal) for example in first)]
    new = list({setting.name: setting for setting in new}.values())
    for setting in new:
        answer_in(model, processor, setting, first[:1])  # whatever a first time costs
    with shared_tower(model) as shared:
        for setting in new:
            journal.add(answer_in(model, processor, setting, first, shared))
    tower = _mean(journal, ends[0][1][1], "saved_seconds")
    pictures = sum(any(_missing(setting, example, journal) for setting in settings) for example in examples)
    groups = zip((group for group in (plain, inside) if group), ends, strict=True)
    return pictures * tower + sum(_seconds(group, pair, examples, journal) for group, pair in groups)


def _seconds(
    group: list[tuple[float, EvalSetting]],
    ends: tuple[tuple[float, EvalSetting], tuple[float, EvalSetting]],
    examples: list[Example],
    journal: Journal,
) -> float:
    """What is left of some settings, without the tower, from what the journal holds of the two at their ends."""
    (longest, slow), (shortest, fast) = ends
    saved = _mean(journal, fast, "saved_seconds")
    most, least = (_mean(journal, setting, "seconds") - saved for setting in (slow, fast))
    total = 0.0
    for prompt, setting in group:
        missing = sum(_missing(setting, example, journal) for example in examples)
        share = (prompt - shortest) / (longest - shortest) if longest > shortest else 1.0
        total += missing * max(0.0, least + (most - least) * share)
    return total


def _prompt(setting: EvalSetting, model: Any) -> float:
    """Of an image's visual tokens, what the prompt keeps."""
    fitted = setting.fitted(model)
    return setting.retention_ratio if fitted is None else fitted.prompt_ratio


def _length(pair: tuple[float, EvalSetting]) -> float:
    return pair[0]


def _missing(setting: EvalSetting, example: Example, journal: Journal) -> bool:
    return (setting.name, example.number) not in journal.found


def _mean(journal: Journal, setting: EvalSetting, what: str) -> float:
    """Mean over images of a field of one setting's outcomes."""
    own: list[Outcome] = [outcome for (name, _), outcome in journal.found.items() if name == setting.name]
    return float(mean(getattr(outcome, what) for outcome in own))


def told(seconds: float) -> str:
    """A duration in words, rounded: "40 s", "5 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
