"""Draws the pictures and plots of README and docs again, from the results in benchmarks/results.

python benchmarks/figures.py           writes docs/*.png; takes seconds
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compared
from tables import evaluation as evaluation_rows
from tables import whole_evaluation

from globalcom2.lab.comparison import compare, title
from globalcom2.lab.images import open_image
from globalcom2.lab.labels import label
from globalcom2.lab.picture import draw_picture
from globalcom2.lab.plots import draw_analysis, draw_bench, draw_eval, draw_summary
from globalcom2.lab.settings import Setting
from globalcom2.lab.standings import draw_standings
from globalcom2.mini import DEMO_PICTURE, DEMO_QUESTION, load_mini

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
IN_SUMMARY = ("all tokens", "globalcom2", "globalcom2, paper", "uniform", "random")


def result(name: str) -> dict[str, Any]:
    """A committed result."""
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return found


def demo() -> None:
    """What `globalcom2 ask --picture docs/demo.png` draws."""
    found = compare(*load_mini(), open_image(DEMO_PICTURE), DEMO_QUESTION, [Setting()])
    (run,) = found.runs
    if run.entry is not None:
        draw_picture(found.image, run.entry, DOCS / "demo.png", title=title(found, run))


def main() -> None:
    """Draw all of them."""
    evaluation = whole_evaluation()
    rows = evaluation["runs"]
    draw_eval(evaluation_rows(), DOCS / "mini-eval.png")
    draw_standings(compared.rows_of(result("mini-eval")), DOCS / "methods-compared.png")
    draw_analysis(result("mini-analysis")["runs"], DOCS / "mini-analysis.png")
    draw_bench(result("bench-7b-h200")["rows"], DOCS / "bench-7b-h200.png")
    benches = [result(name) for name in ("bench-7b-h200", "bench-86m-cpu")]
    shown = {**evaluation, "runs": [row for row in rows if label(row) in IN_SUMMARY]}
    draw_summary(shown, benches, DOCS / "summary.png")
    demo()


if __name__ == "__main__":
    main()
