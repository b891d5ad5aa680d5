"""What decided the defaults of `globalcom2`: allocations, newline rules and scores on the tuning set, with and without stress.

    python training/mini/evaluation_set.py tuning runs/tuning.parquet
    python benchmarks/commander.py runs/tuning.parquet --out benchmarks/results/mini-commander.json

Stress: every view's scores are shifted by an amount of its own. The mini model's tower learnt to compare views, published
towers did not, so a method that compares them must stand it. Settings of the joint order were chosen on the first 200
pictures, the rules for newlines compared on all; this runs on the others. The evaluation set is never looked at. Resumes after a stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from globalcom2 import Ranking, Views, load_mini
from globalcom2._version import __version__
from globalcom2.core.method import Method
from globalcom2.core.methods import get_method, register_method
from globalcom2.lab.dataset import load_examples
from globalcom2.lab.evals import EvalSetting, evaluate
from globalcom2.lab.journal import Journal, journal_header
from globalcom2.lab.labels import FULL
from globalcom2.lab.machine import machine

FIRST = 200
RATIOS = (0.25, 0.1, 0.05, 0.03)
BEFORE = {"allocation": "attention", "newlines": "counted"}
"""The defaults before the joint order."""
SHIFTED, SHIFT = "globalcom2, views shifted", 2.0


def shifted(views: Views, retention_ratio: float, **options: Any) -> Ranking:
    """`globalcom2` on scores to which every view's own draw from N(0, 2) is added."""
    seed = int(views.scores.double().abs().sum() * 1e6) % 2**31  # the picture's, whatever the method
    shift = SHIFT * torch.randn(len(views.scores), 1 + views.crops, 1, generator=torch.Generator().manual_seed(seed))
    moved = dataclasses.replace(
        views, scores=views.scores + shift[:, 1:], thumbnail_scores=views.thumbnail_scores + shift[:, 0]
    )
    ranking: Ranking = get_method("globalcom2").load()(moved, retention_ratio, **options)
    return ranking


def settings() -> list[EvalSetting]:
    """All tokens, then what the page's table shows."""
    found = [EvalSetting(FULL, 1.0)]
    rules = ("counted", "from_2", "from_3", "from_4", "none")
    ways = [{**BEFORE, "allocation": "softmax"}, BEFORE, {"allocation": "attention"}]
    for ratio in RATIOS:
        found += [EvalSetting("globalcom2", ratio, way) for way in ways]
        found += [EvalSetting("globalcom2", ratio, {"newlines": rule}) for rule in rules]
    for score in ("attention", "mean_query", "received", "similarity"):
        for way in ({**BEFORE, "allocation": "softmax"}, {}):
            found += [EvalSetting("globalcom2", ratio, {"score": score, **way}) for ratio in (0.1, 0.05)]
    for way in (BEFORE, {"allocation": "attention"}, {}):
        found += [EvalSetting(SHIFTED, ratio, way) for ratio in (0.1, 0.05)]
    varied = {
        "likeness": (0.0, 1.0, 3.0),
        "crop_price": (0.0, 0.25, 1.0),
        "alpha": (0.0, 0.3, 0.5),
        "thumbnail_weight": (0.5, 2.0),
    }
    for option, values in varied.items():
        found += [EvalSetting("globalcom2", ratio, {option: value}) for value in values for ratio in (0.25, 0.05)]
    return found


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    register_method(Method(SHIFTED, shifted, "stress", "this benchmark", reads=("crop_features",)))
    examples = load_examples(args.dataset)[FIRST:]
    model, processor = load_mini()
    found = settings()
    partial = args.out.with_suffix(".partial.jsonl")
    journal = Journal(partial, journal_header(model, examples, __version__))
    with Progress() as bar:
        task = bar.add_task("Answering", total=len(found) * len(examples))
        rows = evaluate(
            model, processor, examples, found, journal=journal, progress=lambda done: bar.advance(task, done)
        )
    result = {
        "benchmark": "mini model, defaults of globalcom2 on the tuning set",
        "command": " ".join(["python benchmarks/commander.py", *sys.argv[1:]]),
        **machine(model.device),
        "pictures": len(examples),
    }
    for row in rows:
        del row["right"], row["kind_intervals"]
    args.out.write_text(json.dumps({**result, "runs": rows}, indent=1) + "\n")
    partial.unlink()


if __name__ == "__main__":
    main()
