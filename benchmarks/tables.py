"""Puts the tables of README, docs and model card in place, from the results in benchmarks/results.

python benchmarks/tables.py            rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from globalcom2.evals import markdown_table, percent

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "docs/evaluation.md", "src/globalcom2/mini/MODEL_CARD.md")
BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def runs(name: str) -> list[dict[str, Any]]:
    """Rows of a committed result."""
    found: list[dict[str, Any]] = json.loads((RESULTS / f"{name}.json").read_text())["runs"]
    return found


def short() -> str:
    """Evaluation, three ratios."""
    return markdown_table([row for row in runs("mini-eval") if row["retention_ratio"] in (1.0, 0.25, 0.1)])


def reading() -> str:
    """Reading with its intervals, which decide whether one method is better than another."""
    lines = ["| method | ratio | read | 95 % interval |", "|---|---|---|---|"]
    for row in runs("mini-eval"):
        low, high = row["kind_intervals"]["read"]
        cells = (row["method"], f"{row['retention_ratio']:g}", percent(row["kinds"]["read"]))
        lines.append(f"| {' | '.join(cells)} | {percent(low)} to {percent(high)} |")
    return "\n".join(lines)


def analysis() -> str:
    """Whole views."""
    rows = runs("mini-analysis")
    kinds = list(rows[0]["kinds"])
    lines = [
        "| views | visual tokens | " + " | ".join(kinds) + " | all | 95 % interval | of all tokens' |",
        "|---|---|" + "---|" * (len(kinds) + 3),
    ]
    for row in rows:
        low, high = row["interval"]
        cells = [row["condition"], f"{row['visual_tokens']:.0f}", *(percent(row["kinds"][kind]) for kind in kinds)]
        cells += [percent(row["accuracy"]), f"{percent(low)} to {percent(high)}", percent(row["relative"])]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sweep() -> str:
    """Settings on the tuning set."""
    rows = runs("mini-sweep")
    kinds = list(rows[0]["kinds"])
    lines = [
        "| method | options | visual tokens | " + " | ".join(kinds) + " | all | 95 % interval |",
        "|---|---|---|" + "---|" * (len(kinds) + 2),
    ]
    for row in rows:
        options = ", ".join(f"{name}={value}" for name, value in row["options"].items()) or "defaults"
        low, high = row["interval"]
        cells = [row["method"], options, f"{row['visual_tokens']:.1f}", *(percent(row["kinds"][k]) for k in kinds)]
        lines.append("| " + " | ".join([*cells, percent(row["accuracy"])]) + f" | {percent(low)} to {percent(high)} |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "eval-short": short,
    "eval": lambda: markdown_table(runs("mini-eval")),
    "reading": reading,
    "analysis": analysis,
    "sweep": sweep,
}


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        path = ROOT / page
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
