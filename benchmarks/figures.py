"""Draws the pictures and plots of README and docs again, from the results in benchmarks/results.

python benchmarks/figures.py           writes docs/*.png; takes seconds
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import compared
import numpy as np
import torch
from tables import evaluation as evaluation_rows
from tables import whole_evaluation

from globalcom2 import ImageReport, Views, select
from globalcom2.adapters.qwen_vl import QwenVLAdapter
from globalcom2.adapters.windows import windows
from globalcom2.core.groups import places_of
from globalcom2.core.selection import Keep
from globalcom2.lab.comparison import compare, title
from globalcom2.lab.dataset import load_examples
from globalcom2.lab.images import open_image
from globalcom2.lab.labels import label
from globalcom2.lab.picture import draw_picture
from globalcom2.lab.plots import draw_analysis, draw_bench, draw_eval, draw_summary
from globalcom2.lab.settings import Setting
from globalcom2.lab.standings import draw_standings
from globalcom2.mini import DEMO_PICTURE, DEMO_QUESTION, EVALUATION_SET, load_mini

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
TOKEN = 8
"""px on a side of a token of `native`."""
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


def native() -> None:
    """How an image that keeps its resolution is commanded. No model: scores are the contrast inside each token."""
    image = load_examples(EVALUATION_SET, 3)[2].image
    height, width = (side // TOKEN for side in (image.height, image.width))
    layout = windows(height, width)
    grey = torch.from_numpy(np.asarray(image.convert("L"), np.float32))
    contrast = grey.unfold(0, TOKEN, TOKEN).unfold(1, TOKEN, TOKEN).flatten(2).std(-1).flatten()
    guide, crops = QwenVLAdapter().parts(contrast, layout)
    views = Views.of(layout, guide[None], crops[None], "similarity")
    keep = select(views, 0.1)
    kept = places_of(keep, layout)[0]
    entry = ImageReport(
        0, layout, Keep(keep.thumbnail[0], keep.crops[0]), guide, kept, scores=crops, retention_ratio=0.1
    )
    share = (
        f"{entry.tokens_before:,} tokens in {entry.grid[0]} x {entry.grid[1]} windows, {entry.tokens_after} are kept"
    )
    draw_picture(
        image, entry, DOCS / "native.png", title=f"{share}\nScores: contrast inside a token, in place of a model's"
    )


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
    native()


if __name__ == "__main__":
    main()
