"""Part of `gpu.py`: how long `select` takes on a device, plain and captured in a CUDA graph.

Images are LLaVA-NeXT's at 672 x 672 px: five views of 576 tokens. Scores are given, or made as the similarity of features 1,024
wide. A native image of 1344 x 896 px (windows of 32 x 48 tokens, with a guide) goes beside them.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from globalcom2 import Views, select
from globalcom2.adapters.llava_next import LlavaNextAdapter
from globalcom2.adapters.native import windows
from globalcom2.core.layout import Layout
from globalcom2.core.scores import similarity
from globalcom2.lab.estimates import named_configs

RATIOS, BATCHES, PRESETS, WIDTH = (0.1, 0.05, 0.25), (1, 16), ("default", "paper"), 1024
SCORES = {"tiled, scores given": "logits", "tiled, from features": "similarity", "native, scores given": "similarity"}
"""What is timed, with its score type."""
Work = Callable[[], list[Tensor]]


def runs(tiny: bool) -> int:
    """Measured runs of each row."""
    return 5 if tiny else 100


def rows(tiny: bool) -> Iterator[list[dict[str, Any]]]:
    """One row per way of running, for each image, ratio, batch and preset.

    Medians in milliseconds, the device's queue drained on both sides of every run; `spread` is (p95 - p5) / median.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = 64 if tiny else WIDTH
    for what, ratio, batch, preset in itertools.product(SCORES, RATIOS, BATCHES, PRESETS):
        named = {"what": what, "preset": preset, "retention_ratio": ratio, "batch_size": batch}
        selection = _selection(what, ratio, batch, preset, device, width)
        yield [{**named, **row} for row in _ways(selection, device, runs(tiny))]


def _ways(selection: Callable[[bool], list[Tensor]], device: torch.device, count: int) -> list[dict[str, Any]]:
    """Checked (which waits for the device), unchecked, and the latter as a graph."""
    ways: dict[str, Work] = {"plain": lambda: selection(True), "unchecked": lambda: selection(False)}
    found = [{"how": how, **_timed(work, device, count)} for how, work in ways.items()]
    if device.type != "cuda":
        return found
    try:
        replay = captured(ways["unchecked"])
    except RuntimeError as error:
        return [*found, {"how": "graph", "error": str(error)[:300]}]
    return [*found, {"how": "graph", **_timed(replay, device, count)}]


def captured(work: Work) -> Work:
    """The work as a CUDA graph, replayed by every call; checked once to give what the work itself gives."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # kernels must have run once before they are captured
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = work()

    def replay() -> list[Tensor]:
        graph.replay()
        return made

    replay()
    if not all(torch.equal(one, other) for one, other in zip(made, work(), strict=True)):
        raise RuntimeError("the graph selects other tokens than a plain call")
    return replay


def _selection(
    what: str, ratio: float, batch: int, preset: str, device: torch.device, width: int
) -> Callable[[bool], list[Tensor]]:
    """A function(check) that makes the masks of a batch."""
    native = what.startswith("native")
    layout = windows(32, 48) if native else LlavaNextAdapter().layout(named_configs()["llava-next-7b"], 672, 672)
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).to(device)

    valid, lines = (_pinned(x, device) for x in (layout.valid, layout.lines))
    given = {"valid": valid, "grid": layout.grid, "token_grid": layout.token_grid, "lines": lines}
    crops = drawn(*layout.valid.shape)
    commander = drawn(_commander(layout))
    features = None
    if what == "tiled, from features":
        features = drawn(1 + len(layout.valid), layout.tokens, width)
        features = features.to(torch.bfloat16 if device.type == "cuda" else torch.float32)

    def run(check: bool) -> list[Tensor]:
        own, head = crops, commander
        if features is not None:
            scores = similarity(features)
            own, head = scores[:, 1:], scores[:, 0]
        role = {"guide_scores": head, "guide_grid": layout.guide_grid} if native else {"thumbnail_scores": head}
        views = Views(own, score_type=SCORES[what], **given, **role)
        keep = select(views, ratio, preset=preset, check=check)
        return [mask for mask in (keep.thumbnail, keep.crops, keep.newlines) if mask is not None]

    return run


def _commander(layout: Layout) -> int:
    """Tokens of the thumbnail, or of the guide."""
    if layout.guide_grid is None:
        return layout.thumbnail_tokens
    return layout.guide_grid[0] * layout.guide_grid[1]


def _pinned(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    """What a graph copies from the host must lie in pinned memory."""
    return tensor.pin_memory() if tensor is not None and device.type == "cuda" else tensor


def _timed(work: Work, device: torch.device, count: int) -> dict[str, Any]:
    milliseconds = []
    for number in range(count + 5):
        _drain(device)
        start = time.perf_counter()
        work()
        _drain(device)
        if number >= 5:
            milliseconds.append(1e3 * (time.perf_counter() - start))
    quantiles = statistics.quantiles(milliseconds, n=20)
    middle = statistics.median(milliseconds)
    spread = (quantiles[-1] - quantiles[0]) / middle
    return {"ms_median": middle, "ms_p5": quantiles[0], "ms_p95": quantiles[-1], "spread": spread}


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
