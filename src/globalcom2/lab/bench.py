"""Measures what compression saves: time to first token by phase, decoding, memory, for ratios x methods x batch sizes.

All settings run interleaved in one process on the same inputs, so that a busy machine slows them alike. Inputs are
random pixels and words: the time of a call does not depend on what an image shows. The phases of a call are timed inside
that call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from globalcom2.adapters.families import load_adapter
from globalcom2.adapters.resizing import token_side
from globalcom2.adapters.windows import WINDOW
from globalcom2.core.limits import limited_ratio
from globalcom2.core.methods import parse_method
from globalcom2.errors import UnsupportedModelError
from globalcom2.hf.compression import compress
from globalcom2.hf.inside import Drops
from globalcom2.lab.estimates import estimate_costs, speedup
from globalcom2.lab.labels import FULL, is_full
from globalcom2.lab.memory import PeakMemory, freed_memory_kept
from globalcom2.lab.phases import plain_phases
from globalcom2.lab.random_inputs import layout_of
from globalcom2.lab.random_inputs import random_inputs as inputs_of_size

DERIVED = ("projection_seconds", "prefill_seconds", "decode_seconds_per_token")
"""Differences of times. Noise can make them negative; None is reported then."""


@dataclass(frozen=True)
class BenchSetting:
    """One thing to measure: a method at a ratio and a batch size, or all tokens."""

    method: str
    retention_ratio: float
    batch_size: int


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    image: tuple[int, int] = (672, 672)
    """(width, height) in px."""
    text_tokens: int = 40
    """Length of a prompt without its image."""
    new_tokens: int = 16
    """Tokens to decode after the first."""
    rounds: int = 5
    """Measured rounds after one warm-up."""


def settings_of(methods: list[str], ratios: list[float], batch_sizes: list[int]) -> list[BenchSetting]:
    """Every combination, the uncompressed model once per batch size and first."""
    found = []
    for batch in batch_sizes:
        found.append(BenchSetting(FULL, 1.0, batch))
        found += [
            BenchSetting(method, ratio, batch)
            for ratio in ratios
            for method in methods
            if ratio < 1.0 or "inside" in parse_method(method)[1]
        ]
    return list(dict.fromkeys(found))


def limit_ratios(model: Any, plan: Plan, limits: Iterable[int]) -> list[float]:
    """The ratios that values of `max_visual_tokens` come to for the planned image; none for one that limits nothing."""
    layout = layout_of(model.config, plan.image)
    return [ratio for limit in limits if (ratio := limited_ratio(limit, layout)) < 1.0]


def random_inputs(model: Any, plan: Plan, batch: int) -> dict[str, torch.Tensor]:
    """A batch of prompts, each with one image of the planned size and random words around it."""
    return inputs_of_size(model, plan.image, plan.text_tokens, batch)


def measure(
    model: Any, settings: list[BenchSetting], plan: Plan, progress: Callable[[Iterable[int]], Iterable[int]] = iter
) -> list[dict[str, Any]]:
    """Run all settings interleaved, one warm-up round discarded, after one call each for the peak of memory.

    On a CPU, freed memory stays with the process meanwhile (`freed_memory_kept`).

    Args:
        model: A supported model in eval mode.
        settings: What to measure; all tokens at every batch size are among them.
        plan: How to measure.
        progress: Wraps the rounds, for a progress bar.

    Returns:
        One row per setting: medians over the rounds, with `*_spread` = (max - min) / median for the time to first
        token; `speedup` against all tokens at the same batch size and what `estimate_costs` predicts for it;
        `share_of_flops` as torch's counter has it, the masked half of attention included. A phase that is the
        difference of two times (`DERIVED`) is None where noise made it negative.
    """
    inputs = {batch: random_inputs(model, plan, batch) for batch in {s.batch_size for s in settings}}
    samples: dict[BenchSetting, list[dict[str, float]]] = {setting: [] for setting in settings}
    peaks = {setting: _peak_memory(model, inputs[setting.batch_size], setting) for setting in settings}
    with freed_memory_kept():
        for number in progress(range(plan.rounds + 1)):
            for setting in settings:
                sample = _sample(model, inputs[setting.batch_size], setting, plan)
                if number:
                    samples[setting].append(sample)
    rows = [_row(setting, taken, peaks[setting]) for setting, taken in samples.items()]
    _compare(model, rows, plan)
    return rows


def _row(setting: BenchSetting, taken: list[dict[str, float]], peak: int | None) -> dict[str, Any]:
    """Medians over the rounds."""
    row: dict[str, Any] = {
        "method": setting.method,
        "retention_ratio": setting.retention_ratio,
        "batch_size": setting.batch_size,
    }
    row |= {name: statistics.median(sample[name] for sample in taken) for name in taken[0]}
    row |= {name: None for name in DERIVED if row[name] < 0}
    times = [sample["ttft_seconds"] for sample in taken]
    row["ttft_spread"] = (max(times) - min(times)) / statistics.median(times)
    row["peak_memory_bytes"] = peak
    row["visual_tokens"] = int(row["visual_tokens"])
    row["images_per_second"] = setting.batch_size / row["ttft_seconds"]
    return row


def _compare(model: Any, rows: list[dict[str, Any]], plan: Plan) -> None:
    """Add to every row how it compares with all tokens at its batch size, and what the closed form predicts."""
    plain = {row["batch_size"]: row for row in rows if is_full(row)}
    eager = model.config.get_text_config()._attn_implementation == "eager"
    whole = estimate_costs(model.config, plan.image, [1.0], text_tokens=plan.text_tokens)[0]
    for row in rows:
        drops = None if is_full(row) else _drops(model, row["method"])
        ratios = [row["retention_ratio"]]
        costs = estimate_costs(model.config, plan.image, ratios, text_tokens=plan.text_tokens, drops=drops)[0]
        row["speedup"] = plain[row["batch_size"]]["ttft_seconds"] / row["ttft_seconds"]
        row["predicted_speedup"] = speedup(whole, costs, eager=eager)
        row["share_of_flops"] = costs["share_of_whole"]


def _drops(model: Any, method: str) -> Drops | None:
    """When visual tokens leave inside the language model under a method's text."""
    name, options = parse_method(method)
    return compress(model, 1.0, name, **options).drops


def _generate(model: Any, inputs: dict[str, torch.Tensor], new_tokens: int) -> None:
    greedy = {"do_sample": False, "eos_token_id": None, "suppress_tokens": [model.config.image_token_id]}
    model.generate(**inputs, **greedy, max_new_tokens=new_tokens)


def _block(model: Any, setting: BenchSetting) -> AbstractContextManager[Any]:
    if setting.method == FULL:
        return nullcontext()
    method, options = parse_method(setting.method)
    return compress(model, setting.retention_ratio, method, **options)


def _peak_memory(model: Any, inputs: dict[str, torch.Tensor], setting: BenchSetting) -> int | None:
    memory = PeakMemory(model.device)
    with _block(model, setting):
        _generate(model, inputs, 1)
    return memory.bytes()


def _sample(model: Any, inputs: dict[str, torch.Tensor], setting: BenchSetting, plan: Plan) -> dict[str, float]:
    """One round of one setting: a call of one token, whose phases are timed inside it, and a longer one."""
    with _block(model, setting) as compression:
        if compression is None:
            with plain_phases(model) as clock:
                first = _timed(lambda: _generate(model, inputs, 1), model.device)
            phases, visual = clock.seconds(), _placeholders(model, inputs)
            phases["projection"] = phases["features"] - phases["tower"]
        else:
            first = _timed(lambda: _generate(model, inputs, 1), model.device)
            phases, visual = compression.report.seconds, compression.report[0].tokens_after
        longer = _timed(lambda: _generate(model, inputs, 1 + plan.new_tokens), model.device)
    tower, selection, projection = (phases.get(name, 0.0) for name in ("tower", "selection", "projection"))
    return {
        "ttft_seconds": first,
        "tower_seconds": tower,
        "selection_seconds": selection,
        "projection_seconds": projection,
        "prefill_seconds": first - tower - selection - projection,
        "decode_seconds_per_token": (longer - first) / plan.new_tokens,
        "visual_tokens": float(visual),
    }


def _placeholders(model: Any, inputs: dict[str, torch.Tensor]) -> int:
    return int((inputs["input_ids"][0] == model.config.image_token_id).sum())


def default_image(config: Any) -> tuple[int, int]:
    """(width, height) in px of an image of 2 x 2 crops; of 2 x 2 full windows where images keep their resolution."""
    if load_adapter(config.model_type).native:
        return (2 * WINDOW * token_side(config),) * 2
    return (2 * config.vision_config.image_size,) * 2


def check_comparable(config: Any) -> None:
    """Raise `UnsupportedModelError` for a model whose tower `compare_attention` cannot run by itself."""
    if load_adapter(config.model_type).native:
        raise UnsupportedModelError(
            f"--compare must be left out for {config.model_type}, got 'eager': its images keep their resolution, and such a "
            "tower is not run by itself here."
        )


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the device's queue drained on both sides."""
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@torch.no_grad()
def compare_attention(model: Any, plan: Plan) -> dict[str, float]:
    """Compare one tapped attention row with `output_attentions`: seconds of the vision tower on one image.

    Args:
        model: A supported model; its attention implementation is restored afterwards.
        plan: How to measure.

    Returns:
        Median seconds of three ways to run the tower: plain, with one row tapped, and with `output_attentions`.
    """
    from globalcom2.adapters import tap  # noqa: PLC0415

    base, inputs = model.base_model, random_inputs(model, plan, 1)
    adapter = load_adapter(model.config.model_type)
    tower, pixels = base.vision_tower, inputs["pixel_values"][0]
    module = adapter.attention(base, adapter.default_layer(base))
    before = tower.config._attn_implementation

    def plain() -> None:
        tower(pixels)

    def tapped() -> None:
        with tap.record(module, tap.reader("logits", adapter.cls_index)):
            tower(pixels)

    def eager() -> None:
        tower(pixels, output_attentions=True)

    seconds: dict[str, list[float]] = {"plain": [], "tapped": [], "output_attentions": []}
    with freed_memory_kept():
        for number in range(plan.rounds + 1):
            took = {"plain": _timed(plain, model.device)}
            tap.install(module)
            took["tapped"] = _timed(tapped, model.device)
            tap.uninstall(module)
            tower.set_attn_implementation("eager")
            took["output_attentions"] = _timed(eager, model.device)
            tower.set_attn_implementation(before)
            if number:
                for name, value in took.items():
                    seconds[name].append(value)
    return {f"{name}_seconds": statistics.median(values) for name, values in seconds.items()}
