"""How often `globalcom2 tune` promises something, how often falsely, and what other bounds would have promised.

python benchmarks/tune_trials.py      reads mini-tuning.json, writes mini-tune-trials.json; takes a minute

Nothing is answered here. The recorded outcomes of the mini model on the tuning set stand for a population whose losses are
known: sets are drawn from its pictures, with repetitions, and tuned on.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from globalcom2.lab.machine import machine
from globalcom2.lab.promises import BETS, CONFIDENCE, Losses, check, choose, holds, plan, split, walk

RESULTS = Path(__file__).parent / "results"
QUESTIONS = 8
BOUNDS = (0.01, 0.015, 0.02, 0.03)
SETS = 200
HALVES = 100

Array = NDArray[Any]


def outcomes() -> tuple[list[dict[str, Any]], Array]:
    """The runs but for all tokens, and what each loses per picture, (runs, pictures)."""
    runs = json.loads((RESULTS / "mini-tuning.json").read_text())["runs"]
    right = np.array([[int(hit) for hit in run["right"]] for run in runs]).reshape(len(runs), -1, QUESTIONS).sum(-1)
    return runs[1:], right[0] - right[1:]


def losses(lost: Array) -> Losses:
    """Of some pictures."""
    return Losses(lost, np.full(len(lost), QUESTIONS), QUESTIONS)


def promise(lost: Array, costs: list[float], bound: float, seed: int) -> int | None:
    """Which run is promised on pictures that lose `lost`, (runs, pictures); None for nothing."""
    choosing, checking = split(lost.shape[1], seed)
    found = choose([losses(own[choosing]) for own in lost], costs, bound, len(checking), seed=seed)
    done = check(walk(found), lambda one: losses(lost[one.index][checking]), bound)
    held = [one.candidate.index for one in done if one.holds]
    return held[-1] if held else None


def drawn_sets(lost: Array, runs: list[dict[str, Any]], bound: float) -> dict[str, Any]:
    """Sets as large as the population, drawn from it: promises, false ones, and the ratios promised."""
    costs, true = [run["visual_tokens"] for run in runs], lost.mean(1) / QUESTIONS
    got = []
    for seed in range(SETS):
        pictures = np.random.default_rng(seed).integers(0, lost.shape[1], lost.shape[1])
        got.append(promise(lost[:, pictures], costs, bound, seed))
    made = [index for index in got if index is not None]
    ratios = {ratio: sum(runs[index]["retention_ratio"] == ratio for index in made) for ratio in (0.25, 0.1)}
    false = sum(bool(true[index] >= bound) for index in made)
    return {"sets": SETS, "promised": len(made), "false": false, "promised_ratios": ratios}


def held_out_halves(lost: Array, runs: list[dict[str, Any]], bound: float) -> dict[str, Any]:
    """Half of the pictures are tuned on; what is promised is measured on the other half."""
    costs = [run["visual_tokens"] for run in runs]
    made = broken = 0
    for seed in range(HALVES):
        own, other = split(lost.shape[1], 1000 + seed)
        index = promise(lost[:, own], costs, bound, seed)
        made += index is not None
        broken += index is not None and bool(losses(lost[index][other]).rate >= bound)
    return {"resamplings": HALVES, "promised": made, "not_under_the_bound": broken}


def other_bounds(found: Losses, bound: float, rng: np.random.Generator) -> dict[str, bool]:
    """Whether the loss is under a bound by other bounds, of which the last two promise too much."""
    share, needed = found.lost / found.asked, -math.log(1 - CONFIDENCE)
    count, mean, spread = len(share), share.mean(), share.std(ddof=1)
    more = math.log(2 / (1 - CONFIDENCE))
    grown = np.log1p(BETS[:, None] * found.margins(bound)).sum(1)
    means = (rng.multinomial(count, np.full(count, 1 / count), 500) @ share) / count
    return {
        "average of bets": bool(np.logaddexp.reduce(grown) - math.log(len(BETS)) >= needed),
        "empirical Bernstein": bool(
            mean + spread * math.sqrt(2 * more / count) + 14 * more / (3 * (count - 1)) < bound
        ),
        "Hoeffding": bool(mean + math.sqrt(2 * needed / count) < bound),
        "normal": bool(mean + 1.645 * spread / math.sqrt(count) < bound),
        "bootstrap": bool(np.quantile(means, CONFIDENCE) < bound),
    }


def compared(population: Array, bound: float) -> dict[str, float]:
    """Shares of sets of 300 checking pictures, with 300 others to choose the bet, in which each bound promises."""
    counts: dict[str, float] = {}
    for seed in range(SETS):
        rng = np.random.default_rng(seed)
        choosing, checking = (losses(rng.choice(population, 300)) for _ in range(2))
        bet, _ = plan(choosing, bound, 300, seed=seed)
        told = {"one bet, chosen": holds(checking, bet, bound), **other_bounds(checking, bound, rng)}
        for name, passes in told.items():
            counts[name] = counts.get(name, 0) + passes / SETS
    return {name: round(count, 3) for name, count in counts.items()}


def main() -> None:
    """Run all trials."""
    runs, lost = outcomes()
    uniform = next(n for n, run in enumerate(runs) if run["method"] == "uniform" and not run["options"])
    rare = np.repeat([QUESTIONS, 0], [1, 99])  # one picture in a hundred loses all its answers
    result = {
        "command": "python benchmarks/tune_trials.py",
        "outcomes": "mini-tuning.json",
        **machine(torch.device("cpu")),
        "runs": [
            {**{key: run[key] for key in ("method", "retention_ratio", "options", "visual_tokens")}, "loss": loss}
            for run, loss in zip(runs, (lost.mean(1) / QUESTIONS).tolist(), strict=True)
        ],
        "drawn_sets": {bound: drawn_sets(lost, runs, bound) for bound in BOUNDS},
        "held_out_halves": {bound: held_out_halves(lost, runs, bound) for bound in BOUNDS},
        "bounds": {
            "uniform at 0.25": {bound: compared(lost[uniform], bound) for bound in BOUNDS},
            "total losses at the bound of 0.01": compared(rare, 0.01),
        },
    }
    (RESULTS / "mini-tune-trials.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
