"""Which settings answer best with a tenth of the tokens: one option varied at a time, on the tuning set only.

    python training/mini/evaluation_set.py tuning runs/tuning.parquet
    python benchmarks/sweep.py runs/tuning.parquet --out benchmarks/results/mini-sweep.json

The evaluation set is never looked at. Resumes after a stop; benchmarks/tables.py makes the table of docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.progress import Progress

from globalcom2 import load_mini
from globalcom2._version import __version__
from globalcom2.core.presets import preset_settings
from globalcom2.lab.dataset import load_examples
from globalcom2.lab.evals import EvalSetting, evaluate
from globalcom2.lab.journal import Journal, journal_header
from globalcom2.lab.labels import FULL
from globalcom2.lab.machine import machine

AXES: dict[str, tuple[Any, ...]] = {
    "score": ("logits", "attention", "mean_query", "received", "similarity"),
    "layer": (-1, -2, -3),
    "allocation": ("joint", "attention", "softmax"),
    "likeness": (0.0, 0.75, 1.5, 3.0),
    "crop_price": (0.0, 0.25, 0.5, 1.0),
    "temperature": (3.0, 10.0, 30.0, 100.0),
    "alpha": (0.0, 0.15, 0.3, 0.5, 1.0),
    "crop_mass": ("sum", "mean", "max"),
    "newlines": ("counted", "from_2", "from_3", "from_4", "none", "all"),
    "thumbnail_weight": (0.5, 0.75, 1.0, 2.0),
    "thumbnail_order": ("raster", "score"),
    "positions": ("closed", "original"),
}


OF_GLOBALCOM2 = ("temperature", "alpha", "crop_mass", "regions", "allocation", "likeness", "crop_price")
OF_SOFTMAX = ("temperature", "crop_mass")  # options that nothing else has


def settings_of(base: dict[str, Any], axes: list[str], ratio: float) -> list[EvalSetting]:
    """All tokens, the baseline, the paper's choices, `base`, and `base` with every value of every axis."""
    shared = {name: value for name, value in base.items() if name not in OF_GLOBALCOM2}
    found = [
        EvalSetting(FULL, 1.0),
        EvalSetting("uniform", ratio, shared),
        EvalSetting("uniform", ratio, {**shared, "newlines": "none"}),
        EvalSetting("uniform", ratio, {**shared, "thumbnail_weight": 0.5}),
    ]
    found += [EvalSetting("globalcom2", ratio, preset_settings("paper")), EvalSetting("globalcom2", ratio, base)]
    for axis in axes:
        softmax = {"allocation": "softmax"} if axis in OF_SOFTMAX else {}
        found += [EvalSetting("globalcom2", ratio, {**base, **softmax, axis: value}) for value in AXES[axis]]
    return list({setting.name: setting for setting in found}.values())


def main() -> None:
    """Run the sweep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--ratio", type=float, default=0.1)
    parser.add_argument("--pictures", type=int)
    parser.add_argument("--base", type=json.loads, default={}, help='options to start from, as JSON: {"alpha": 0.25}')
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    examples = load_examples(args.dataset, args.pictures)
    model, processor = load_mini()
    settings = settings_of(args.base, args.axes, args.ratio)
    partial = args.out and args.out.with_suffix(".partial.jsonl")
    journal = Journal(partial, journal_header(model, examples, __version__))
    with Progress() as bar:
        task = bar.add_task("Answering", total=len(settings) * len(examples))
        rows = evaluate(
            model, processor, examples, settings, journal=journal, progress=lambda done: bar.advance(task, done)
        )
    for row in rows:
        print(f"{row['accuracy']:.3f} {row['visual_tokens']:6.1f} tokens  {row['method']} {row['options']}")
    if args.out:
        result = {
            "benchmark": "mini model, sweep on the tuning set",
            "command": " ".join(["python benchmarks/sweep.py", *sys.argv[1:]]),
            **machine(model.device),
            "pictures": len(examples),
        }
        for row in rows:
            del row["right"]
        args.out.write_text(json.dumps({**result, "runs": rows}, indent=1) + "\n")
        partial.unlink()


if __name__ == "__main__":
    main()
