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
from globalcom2.lab.estimates import named_configs
from globalcom2.lab.machine import machine

RUNS, WIDTH = 200, 4096


def timed(work: Callable[[], object]) -> list[float]:
    """Seconds of `RUNS` runs, after twenty that are not counted."""
    for _ in range(20):
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
    scores, features = torch.randn(5, 576) * 3, torch.randn(len(layout.slots), WIDTH)
    rows = []
    for method in list_methods():
        for ratio in (0.25, 0.1):
            views = Views(scores[1:], layout.valid, layout.grid, None, scores[0], layout.token_grid, layout.lines)

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
