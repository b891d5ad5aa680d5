"""Measures how long selection takes for one 672 x 672 image of LLaVA-NeXT (5 x 576 tokens) on one CPU thread.

python benchmarks/selection.py            prints a table, then one JSON line
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch

from globalcom2 import Views, list_methods, select
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.core.methods import get_method
from globalcom2.lab.estimates import named_configs
from globalcom2.lab.machine import machine

RUNS, WIDTH, TOWER_WIDTH, KEYS = 50, 4096, 1024, 64


def timed(work: Callable[[], object]) -> list[float]:
    """Seconds of `RUNS` runs, after five that are not counted."""
    for _ in range(5):
        work()
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Print how long each method takes at two ratios, with and without the gathering of features."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layout = LlavaNextAdapter().layout(named_configs()["llava-next-7b"], 672, 672)
    scores, features = torch.randn(5, 576).mul(3).softmax(-1), torch.randn(len(layout.slots), WIDTH)
    read = {"features": torch.randn(5, 576, TOWER_WIDTH), "keys": torch.randn(5, 576, KEYS)}
    rows = []
    for method in list_methods():
        for ratio in (0.25, 0.1, 0.05):
            layers = scores.expand(len(get_method(method).layers), -1, -1) if get_method(method).layers else None
            views = Views(
                scores[1:],
                layout.valid,
                layout.grid,
                thumbnail_scores=scores[0],
                token_grid=layout.token_grid,
                lines=layout.lines,
                score_type="attention",
                layer_scores=layers,
                **read,
            )

            def mask(views: Views = views, ratio: float = ratio, method: str = method) -> torch.Tensor:
                keep = select(views, ratio, method)
                return torch.cat([keep.thumbnail, keep.crops.flatten(), keep.newlines])[layout.slots]

            def gather() -> torch.Tensor:
                return features[mask().nonzero().flatten()]

            for name, work in (("scores to mask", mask), ("with features gathered", gather)):
                seconds = timed(work)
                low, middle, high = (q * 1e3 for q in statistics.quantiles(seconds, n=20)[::9])
                rows.append(
                    {
                        "method": method,
                        "retention_ratio": ratio,
                        "what": name,
                        "ms_p5": low,
                        "ms_median": middle,
                        "ms_p95": high,
                    }
                )
                print(f"{method:12} {ratio:<5} {name:24} {middle:6.2f} ms  (p5 {low:.2f}, p95 {high:.2f})")
    print(
        json.dumps(
            {
                "benchmark": "selection",
                "image": "672x672",
                "width": WIDTH,
                "runs": RUNS,
                **machine(torch.device("cpu")),
                "rows": rows,
            }
        )
    )


if __name__ == "__main__":
    main()
