"""What the outcomes of an evaluation come to: accuracies with their intervals, tokens and times, one row per run."""

from __future__ import annotations

from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from globalcom2.lab.dataset import Example
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.journal import Outcome
from globalcom2.lab.labels import label, percent


def summarize(examples: list[Example], runs: list[tuple[dict[str, Any], list[Outcome]]]) -> list[dict[str, Any]]:
    """Rows with accuracy, per kind too, relative to the first run, each with a 95 % interval over images.

    Args:
        examples: The evaluation set.
        runs: What describes a run, and its outcomes in the set's order.

    Returns:
        Per run what describes it and: questions, accuracy, interval, relative and relative_interval (None where the
        first run got nothing right), visual_tokens (mean per image, newlines included), kinds and kind_intervals,
        seconds_per_picture, selection_ms (per image of a batch) and selection_share (of the time to the first token), both
        medians over images and None where nothing was selected, and `right`, one 0 or 1 per question in the set's order,
        from which accuracies can be computed again.
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
                **_selection(outcomes),
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


def _selection(outcomes: list[Outcome]) -> dict[str, float | None]:
    """What selection takes. The median over images: one hiccup of the machine must not count."""
    timed = [(o.selection_seconds, o.first_token_seconds) for o in outcomes]
    pairs = [(own, whole) for own, whole in timed if own is not None and whole is not None]
    if not pairs:
        return {"selection_ms": None, "selection_share": None}
    return {
        "selection_ms": 1e3 * median(own for own, _ in pairs),
        "selection_share": median(own / whole for own, whole in pairs),
    }


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `evals.evaluate` as the Markdown table of README and model card."""
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
