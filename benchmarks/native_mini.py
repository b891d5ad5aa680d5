"""Which defaults serve images that keep their resolution, asked of the native mini on its tuning set.

    python training/mini/evaluation_set.py tuning runs/tuning.parquet
    (cd training; python -m native.evaluation_set tuning ../runs/tuning.parquet ../runs/native/tuning.parquet)
    OMP_NUM_THREADS=1 python benchmarks/native_mini.py runs/tuning.parquet runs/native/tuning.parquet \
        --out benchmarks/results/native-mini-tuning.json

Settings of the joint order were chosen on the first 200 pictures, with the first mini, so this runs on the others. The
evaluation set is never looked at. Resumes after a stop.

The size of windows is no option of `compress`. Where a row says `window`, the constant in adapters/windows.py was changed
for its calls. Closed positions are refused for this family, so they are not asked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress

from globalcom2 import compress, load_mini
from globalcom2._version import __version__
from globalcom2.adapters import windows
from globalcom2.lab.dataset import Example, load_examples
from globalcom2.lab.evals import EvalSetting, evaluate
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.journal import Journal, journal_header
from globalcom2.lab.labels import FULL, percent
from globalcom2.lab.machine import machine

FIRST, PICTURES = 200, 120
PART = 120
"""Pictures that are done in all settings before the next ones begin, so that a stopped run has whole pictures."""
RATIOS = (0.25, 0.15, 0.1, 0.05)
ALL = "all"
KINDS = (ALL, "read", "count", "where")
"""Kinds of question whose differences are written down."""
SMALL = 7
"""Tokens on a side of the other windows: the tower's own."""
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "default": ("globalcom2", {}),
    "uniform": ("uniform", {}),
    "received": ("globalcom2", {"score": "received"}),
    "received, uniform": ("uniform", {"score": "received"}),
    "mean_query": ("globalcom2", {"score": "mean_query"}),
    "mean_query, uniform": ("uniform", {"score": "mean_query"}),
    f"windows of {SMALL}": ("globalcom2", {"window": SMALL}),
    f"windows of {SMALL}, uniform": ("uniform", {"window": SMALL}),
    "guide thumbnail": ("globalcom2", {"guide": "thumbnail"}),
}
"""What is asked at every ratio. The guide of its own comes last: the tower then reads something else."""


@dataclass(frozen=True)
class Windowed(EvalSetting):
    """A setting whose option `window` is the most tokens on a side of a window."""

    def block(self, model: Any) -> AbstractContextManager[Any]:
        """`compress` under windows of that size."""
        options = {name: value for name, value in self.options.items() if name != "window"}
        inner = compress(model, self.retention_ratio, self.method, **options)
        return _within(self.options["window"], inner) if "window" in self.options else inner


@contextmanager
def _within(window: int, inner: AbstractContextManager[Any]) -> Iterator[Any]:
    before = windows.WINDOW
    windows.WINDOW = window
    windows.windows.cache_clear()
    try:
        with inner as compression:
            yield compression
    finally:
        windows.WINDOW = before
        windows.windows.cache_clear()


def settings() -> list[EvalSetting]:
    """All tokens, then every way at every ratio, those with one pass of the tower together."""
    ways = [(ratio, *way) for way in WAYS.values() for ratio in RATIOS]
    return [EvalSetting(FULL, 1.0), *(Windowed(method, ratio, options) for ratio, method, options in ways)]


def compared(rows: list[dict[str, Any]], examples: list[Example]) -> list[dict[str, Any]]:
    """Every way against the default, against `uniform` of the same score and windows, and against all tokens.

    Args:
        rows: What `evaluate` returned for `settings`.
        examples: The pictures, in the order of the rows' `right`.

    Returns:
        Per ratio, way and kind: accuracy, what is kept of all tokens' accuracy, and paired differences, each with its 95 %
        interval over pictures; None for a way against itself.
    """
    kinds = np.array([question.kind for example in examples for question in example.questions])
    bootstrap = Bootstrap(np.repeat(np.arange(len(examples)), [len(example.questions) for example in examples]))
    right = [np.array([digit == "1" for digit in row["right"]]) for row in rows]
    by_way = dict(zip([(ratio, way) for way in WAYS for ratio in RATIOS], right[1:], strict=True))
    found = []
    for (ratio, way), own in by_way.items():
        for kind in KINDS:
            among = np.ones(len(kinds), bool) if kind == ALL else kinds == kind
            pairs = {"default": by_way[ratio, "default"], "uniform": by_way[ratio, _floor(way)]}
            found.append(
                {
                    "retention_ratio": ratio,
                    "way": way,
                    "kind": kind,
                    "accuracy": float(own[among].mean()),
                    **_kept(bootstrap, own, right[0], among),
                    **{f"minus_{name}": _minus(bootstrap, own, other, among) for name, other in pairs.items()},
                }
            )
    return found


def _floor(way: str) -> str:
    """The way with `uniform` that has a way's score and windows."""
    if way.endswith("uniform"):
        return way
    return f"{way}, uniform" if f"{way}, uniform" in WAYS else "uniform"


def _kept(
    bootstrap: Bootstrap, own: NDArray[np.bool_], full: NDArray[np.bool_], among: NDArray[np.bool_]
) -> dict[str, Any]:
    drawn = bootstrap.accuracies(own, among) / bootstrap.accuracies(full, among)
    return {"kept": float(own[among].mean() / full[among].mean()), "kept_interval": interval(drawn)}


def _minus(
    bootstrap: Bootstrap, own: NDArray[np.bool_], other: NDArray[np.bool_], among: NDArray[np.bool_]
) -> dict[str, Any] | None:
    if own is other:
        return None
    drawn = bootstrap.accuracies(own, among) - bootstrap.accuracies(other, among)
    return {"difference": float(own[among].mean() - other[among].mean()), "interval": interval(drawn)}


def table(result: dict[str, Any]) -> str:
    """For docs: accuracy of every way, by kind, and its paired differences in points."""
    first = result["runs"][0]
    lines = [
        "| ratio | setting | read | count | where | all | kept of all tokens' | minus default | minus uniform |",
        "|---|---|---|---|---|---|---|---|---|",
        f"| 1 | {FULL} | "
        + " | ".join(percent(first["kinds"][kind]) for kind in KINDS[1:])
        + f" | {percent(first['accuracy'])} | 100.0% | | |",
    ]
    found = {(row["retention_ratio"], row["way"], row["kind"]): row for row in result["compared"]}
    for ratio in RATIOS:
        for way in WAYS:
            if way.endswith(", uniform"):  # told by the last column
                continue
            whole = found[ratio, way, ALL]
            cells = [percent(found[ratio, way, kind]["accuracy"]) for kind in (*KINDS[1:], ALL)]
            cells += [percent(whole["kept"]), *(_points(whole[f"minus_{name}"]) for name in ("default", "uniform"))]
            lines.append(f"| {ratio:g} | {way} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _points(minus: dict[str, Any] | None) -> str:
    if minus is None:
        return ""
    low, high = (100 * end for end in minus["interval"])
    return f"{100 * minus['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("questions", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=PICTURES, help="how many pictures, from the 201st on")
    args = parser.parse_args()
    everything = load_examples(args.questions, pictures=args.pictures)
    examples = everything[FIRST : FIRST + args.count]
    torch.set_num_threads(1)
    model, processor = load_mini("native")
    found = settings()
    partial = args.out.with_suffix(".partial.jsonl")
    journal = Journal(partial, journal_header(model, everything, __version__))
    with Progress() as bar:
        task = bar.add_task("Answering", total=len(found) * len(examples))
        for first in range(0, len(examples), PART):
            part = examples[first : first + PART]
            evaluate(model, processor, part, found, journal=journal, progress=lambda done: bar.advance(task, done))
    rows = evaluate(model, processor, examples, found, journal=journal)
    result = {
        "benchmark": "native mini, score, guide and windows, on the tuning set",
        "command": " ".join(["python benchmarks/native_mini.py", *sys.argv[1:]]),
        **machine(model.device),
        "pictures": len(examples),
        "windows": f"rows with `window` changed the constant {windows.WINDOW} in adapters/windows.py for their calls",
        "compared": compared(rows, examples),
    }
    for row in rows:
        for name in ("right", "kind_intervals", "difference", "difference_interval"):
            del row[name]
    args.out.write_text(json.dumps({**result, "runs": rows}, indent=1) + "\n")
    partial.unlink()


if __name__ == "__main__":
    main()
