"""Which guide commands the crops as well as a thumbnail, asked of the mini model on its tuning set.

    OMP_NUM_THREADS=1 python benchmarks/guides.py runs/tuning.parquet --out benchmarks/results/mini-guides.json

Families whose images keep their resolution have no thumbnail to read; a guide commands in its place. The mini model has a
thumbnail, so it stands in for them like this: its thumbnail keeps one token, its newlines none, and the crops get the rest
of the budget. The order over the crops is the default one, and only the commander changes:

- thumbnail: the scores of the mini model's own thumbnail, a real view of the whole picture.
- pooled: the scores of the crops themselves, stitched and averaged to a third of their size, as native families do.
- nothing: no commander. Tokens compete by what they are above the mean of their own crop.

`uniform`, which gives every crop the same ratio, is the floor. Settings of the joint order were chosen on the first 200
pictures with the thumbnail as commander, so this runs on the others. The evaluation set is never looked at. Resumes after
a stop.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from globalcom2 import Ranking, Views, load_mini
from globalcom2._version import __version__
from globalcom2.adapters.windows import guide_size
from globalcom2.core.budget import keep_counts
from globalcom2.core.method import Method
from globalcom2.core.methods import register_method
from globalcom2.errors import InputError
from globalcom2.lab.dataset import Example, load_examples
from globalcom2.lab.evals import EvalSetting, evaluate
from globalcom2.lab.intervals import Bootstrap, interval
from globalcom2.lab.journal import Journal, journal_header
from globalcom2.lab.labels import FULL, percent
from globalcom2.lab.machine import machine
from globalcom2.selectors.canvas import Canvas
from globalcom2.selectors.globalcom2 import globalcom2

FIRST, PICTURES = 200, 400
PART = 100
"""Pictures that are done in all settings before the next ones begin, so that a stopped run has whole pictures."""
SCORES = ("logits", "mean_query", "received", "similarity")
"""Score types. "attention" is left out: it is read from the same rows as "logits"."""
RATIOS = (0.1, 0.05)
ALL = "mean of all"
ORDERED = "globalcom2, guided"
COMMANDERS = ("thumbnail", "pooled", "nothing")
LEAST = 1e-6
"""`thumbnail_weight` that leaves the thumbnail one token."""
AS_NATIVE = {"newlines": "none", "thumbnail_weight": LEAST}


def guided(views: Views, retention_ratio: float, *, commander: str) -> Ranking:
    """The default order over the crops, under another commander than the thumbnail that the views have.

    Args:
        views: Images with a thumbnail and crops.
        retention_ratio: Fraction to keep, in (0, 1].
        commander: One of `COMMANDERS`.

    Raises:
        InputError: No such commander.
    """
    if commander not in COMMANDERS:
        raise InputError(f"commander must be one of {', '.join(COMMANDERS)}, got {commander!r}.")
    if commander == "thumbnail":
        scores, grid = views.thumbnail_scores, views.thumbnail_grid
    elif commander == "pooled":
        scores, grid = pooled(views)
    else:  # a map without features commands nothing
        scores, grid = views.scores.new_zeros(len(views.scores), 1), (1, 1)
    native = dataclasses.replace(views, thumbnail_scores=None, guide_scores=scores, guide_grid=grid, lines=None)
    budget = keep_counts(retention_ratio, views.thumbnail_tokens, views.valid_count, views.line_count, LEAST).crops
    ratio = min(1.0, max(1, budget) / views.valid_count)
    order = globalcom2(native, ratio, allocation="joint", alpha=0.0 if commander == "nothing" else None)
    return Ranking(views.thumbnail_scores, order.crops)


def pooled(views: Views) -> tuple[Tensor, tuple[int, int]]:
    """The crops' own scores as a guide: (batch, tokens), and (height, width) of its tokens."""
    (rows, cols), (height, width) = views.grid, views.token_grid  # type: ignore[misc]
    canvas = Canvas(views)
    tiles = views.scores.float().unflatten(2, (height, width)).unflatten(1, (rows, cols))
    stitched = tiles.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    shown = stitched[:, canvas.y[0] : canvas.y[1], canvas.x[0] : canvas.x[1]]
    size = guide_size(*shown.shape[1:])
    return F.adaptive_avg_pool2d(shown, size).flatten(1).to(views.scores.dtype), size


def settings() -> list[EvalSetting]:
    """All tokens, then every commander with every score type, and `uniform`."""
    found = [EvalSetting(FULL, 1.0)]
    for score in SCORES:
        for ratio in RATIOS:
            own = {"score": score, **AS_NATIVE}
            found += [EvalSetting(ORDERED, ratio, {"commander": name, **own}) for name in COMMANDERS]
            found.append(EvalSetting("uniform", ratio, own))
    return found


def commander_of(row: dict[str, Any]) -> str:
    """Who commands in a row of the result."""
    return str(row["options"].get("commander", row["method"]))


def differences(rows: list[dict[str, Any]], examples: list[Example]) -> list[dict[str, Any]]:
    """Every two commanders on the same questions: the first one's accuracy minus the second's, drawn in pairs.

    Args:
        rows: What `evaluate` returned.
        examples: The pictures, in the order of the rows' `right`.

    Returns:
        Per ratio and two commanders one entry per score type, and one of their mean, `ALL`.
    """
    owners = np.repeat(np.arange(len(examples)), [len(example.questions) for example in examples])
    bootstrap = Bootstrap(owners)
    right: dict[tuple[float, str], list[NDArray[np.bool_]]] = {}
    for row in rows[1:]:  # score types in one order for every commander
        right.setdefault((row["retention_ratio"], commander_of(row)), []).append(_right(row))
    found = []
    for ratio in RATIOS:
        for second, first in combinations((*COMMANDERS, "uniform"), 2):
            pairs = list(zip(right[ratio, first], right[ratio, second], strict=True))
            exact = np.array([one.mean() - other.mean() for one, other in pairs])
            drawn = np.stack([bootstrap.accuracies(one) - bootstrap.accuracies(other) for one, other in pairs])
            named = {"retention_ratio": ratio, "commander": first, "against": second}
            for score, value, values in zip(
                (*SCORES, ALL), [*exact, exact.mean()], [*drawn, drawn.mean(0)], strict=True
            ):
                found.append(
                    {**named, "score": score, "difference": float(value), "difference_interval": interval(values)}
                )
    return found


def _right(row: dict[str, Any]) -> NDArray[np.bool_]:
    return np.array([digit == "1" for digit in row["right"]])


def table(result: dict[str, Any]) -> str:
    """For docs: accuracies under every commander, and paired differences in points, one row per ratio and score type."""
    names = (*COMMANDERS, "uniform")
    pairs = (("pooled", "thumbnail"), ("nothing", "pooled"), ("uniform", "nothing"))
    heads = [*names, *(f"{first} minus {second}" for first, second in pairs)]
    lines = [f"| ratio | score | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    accuracies: dict[tuple[float, str, str], float] = {}
    for row in result["runs"][1:]:
        accuracies[row["retention_ratio"], row["options"]["score"], commander_of(row)] = row["accuracy"]
    apart = {(d["retention_ratio"], d["score"], d["commander"], d["against"]): d for d in result["differences"]}
    for ratio in RATIOS:
        for name in names:
            accuracies[ratio, ALL, name] = mean(accuracies[ratio, score, name] for score in SCORES)
        for score in (*SCORES, ALL):
            cells = [percent(accuracies[ratio, score, name]) for name in names]
            for first, second in pairs:
                found = apart[ratio, score, first, second]
                low, high = (100 * end for end in found["difference_interval"])
                cells.append(f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})")
            lines.append(f"| {ratio:g} | {score} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="how many, from the 201st on")
    args = parser.parse_args()
    register_method(Method(ORDERED, guided, "another commander", "this benchmark", reads=("crop_features",)))
    everything = load_examples(args.dataset)
    examples = everything[FIRST : FIRST + args.pictures]
    torch.set_num_threads(1)
    model, processor = load_mini()
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
        "benchmark": "mini model, commanders of crops whose thumbnail is hardly read, on the tuning set",
        "command": " ".join(["python benchmarks/guides.py", *sys.argv[1:]]),
        **machine(model.device),
        "pictures": len(examples),
        "differences": differences(rows, examples),
    }
    for row in rows:
        for name in ("right", "kind_intervals", "difference", "difference_interval"):
            del row[name]
    args.out.write_text(json.dumps({**result, "runs": rows}, indent=1) + "\n")
    partial.unlink()


if __name__ == "__main__":
    main()
