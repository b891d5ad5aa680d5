"""Part of `gpu.py`: a model whose images keep their resolution, at Qwen2.5-VL-7B's geometry with random weights.

All tokens and a tenth with both guides run interleaved on the same random inputs.

Most layers of this tower see windows of 8 x 8 patches. With "sdpa", transformers calls a kernel per window, 96 for an image of
1344 x 896 px, and the time goes into starting them. "flash_varlen" calls torch's own flash attention once per layer for all
windows together, as transformers does where the flash-attn package is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, Qwen2_5_VLConfig

from globalcom2 import compress
from globalcom2.hf.loading import random_model
from globalcom2.hf.report import Clock
from globalcom2.lab.memory import PeakMemory, freed_memory_kept

GUIDES = (None, "pooled", "thumbnail")
"""None: all tokens, uncompressed."""
KERNELS = ("sdpa", "flash_varlen")
"""The tower's attention; the language model's is always sdpa."""


@dataclass(frozen=True)
class Plan:
    """How to measure."""

    image: tuple[int, int] = (1344, 896)
    """(width, height) in px."""
    ratio: float = 0.1
    text_tokens: int = 40
    new_tokens: int = 32
    """Tokens to decode after the first."""
    rounds: int = 5
    """Measured rounds after one warm-up."""


def plan(tiny: bool) -> Plan:
    """Full size, or small enough for a CPU."""
    return Plan((448, 336), new_tokens=2, rounds=2) if tiny else Plan()


def config(tiny: bool) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL-7B's geometry, or a small one."""
    width, wide, layers, heads, shared, vocabulary = (3584, 18944, 28, 28, 4, 152064)
    depth, vision_width, vision_wide, vision_heads, full = (32, 1280, 3420, 16, [7, 15, 23, 31])
    tags, sections = (151652, 151653, 151655, 151656), [16, 24, 24]
    if tiny:
        width, wide, layers, heads, shared, vocabulary = (64, 96, 2, 4, 2, 200)
        depth, vision_width, vision_wide, vision_heads, full = (4, 32, 64, 2, [0, 2])
        tags, sections = (192, 193, 190, 191), [2, 3, 3]
    start, end, image, video = tags
    text = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": shared,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 128000,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections},
    }
    vision = {
        "depth": depth,
        "hidden_size": vision_width,
        "intermediate_size": vision_wide,
        "num_heads": vision_heads,
        "out_hidden_size": width,
        "fullatt_block_indexes": full,
    }
    ids = {"image_token_id": image, "video_token_id": video, "vision_start_token_id": start, "vision_end_token_id": end}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)


def model(tiny: bool) -> Any:
    """The model, on a GPU if there is one."""
    made = random_model(config(tiny))
    made.generation_config.pad_token_id = 0
    return made


def told(model: Any, plan: Plan) -> dict[str, Any]:
    """What was measured, for the result."""
    width = model.config.get_text_config().hidden_size
    return {
        "model": "qwen2.5-vl-7b" if width == 3584 else "qwen2.5-vl, tiny",
        "weights": "random",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attn": model.config.get_text_config()._attn_implementation,
        "image": f"{plan.image[0]}x{plan.image[1]}",
        "rounds": plan.rounds,
        "new_tokens": plan.new_tokens,
        "text_tokens": plan.text_tokens,
    }


def use(model: Any, plan: Plan, kernel: str) -> dict[str, Any]:
    """Give the tower one of `KERNELS`. Returns how far features of one image are from those with sdpa, relative."""
    AttentionInterface.register("flash_varlen", _varlen)
    given = inputs(model, plan, 1)
    pixels, grid = given["pixel_values"], given["image_grid_thw"]
    model.set_attn_implementation({"vision_config": "sdpa"})
    with torch.no_grad():
        usual = model.base_model.visual(pixels, grid).pooler_output.float()
        model.set_attn_implementation({"vision_config": kernel})
        own = model.base_model.visual(pixels, grid).pooler_output.float()
    return {f"{kernel}_difference": float((own - usual).norm() / usual.norm())}


def _varlen(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *, cu_seq_lens_q: Tensor, **more: Any
) -> tuple[Tensor, None]:
    """One kernel for all windows. Query, key and value are (1, heads, patches, dim), as is usual; out (1, patches, heads, dim)."""
    if query.device.type != "cuda":  # torch has it for CUDA alone; shows that the rest runs
        lengths = cu_seq_lens_q.diff().tolist()
        parts = zip(*(x.split(lengths, 2) for x in (query, key, value)), strict=True)
        return torch.cat([scaled_dot_product_attention(*part) for part in parts], 2).transpose(1, 2), None
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

    longest, ends = more["max_length_q"], cu_seq_lens_q.int()
    flat = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    return varlen_attn(*flat, ends, ends, longest, longest)[None], None


def inputs(model: Any, plan: Plan, batch: int) -> dict[str, Tensor]:
    """Prompts with one image of random pixels each, among random words."""
    vision, generator = model.config.vision_config, torch.Generator().manual_seed(0)
    columns, rows = (side // vision.patch_size for side in plan.image)
    tokens = rows * columns // vision.spatial_merge_size**2
    vocabulary = model.config.get_text_config().vocab_size
    words = torch.randint(vocabulary // 4, vocabulary // 2, (batch, plan.text_tokens), generator=generator)
    ids = torch.full((batch, plan.text_tokens + tokens + 2), model.config.image_token_id)
    half = plan.text_tokens // 2
    ids[:, :half], ids[:, half + tokens + 2 :] = words[:, :half], words[:, half:]
    ids[:, half], ids[:, half + tokens + 1] = model.config.vision_start_token_id, model.config.vision_end_token_id
    values = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(batch * rows * columns, values, generator=generator)
    return {
        "input_ids": ids.to(model.device),
        "attention_mask": torch.ones_like(ids).to(model.device),
        "mm_token_type_ids": (ids == model.config.image_token_id).int().to(model.device),
        "pixel_values": pixels.to(model.device, model.dtype),
        "image_grid_thw": torch.tensor([[1, rows, columns]] * batch).to(model.device),
    }


def measure(model: Any, plan: Plan, batch: int) -> list[dict[str, Any]]:
    """One row per way of guiding: medians over interleaved rounds, each with `*_spread` = (max - min) / median.

    `prefill_seconds` is what the other phases leave of the time to the first token, as in `globalcom2 bench`.
    `generation_seconds` is the report's own phase, for compressed calls.
    """
    given = inputs(model, plan, batch)
    peaks, samples = {guide: _peak(model, given, plan, guide) for guide in GUIDES}, {guide: [] for guide in GUIDES}
    with freed_memory_kept():
        for number in range(plan.rounds + 1):
            for guide in GUIDES:
                sample = _sample(model, given, plan, guide)
                if number:
                    samples[guide].append(sample)
    rows = []
    for guide, taken in samples.items():
        row: dict[str, Any] = {"method": "none" if guide is None else "globalcom2", "guide": guide}
        row |= {"retention_ratio": 1.0 if guide is None else plan.ratio, "batch_size": batch}
        row |= {"visual_tokens": int(taken[0].pop("visual_tokens")), "peak_memory_bytes": peaks[guide]}
        for name in taken[0]:
            values = [sample[name] for sample in taken]
            row[name] = statistics.median(values)
            row[f"{name}_spread"] = (max(values) - min(values)) / row[name] if row[name] > 0 else None
            if row[name] < 0:  # a difference of two times, lost in noise
                row[name] = None
        rows.append(row)
    for row in rows:
        row["speedup"] = rows[0]["ttft_seconds"] / row["ttft_seconds"]
    return rows


def _generate(model: Any, given: dict[str, Tensor], new_tokens: int) -> None:
    suppressed = [model.config.image_token_id, model.config.video_token_id]
    greedy = {"do_sample": False, "eos_token_id": None, "suppress_tokens": suppressed}
    model.generate(**given, **greedy, max_new_tokens=new_tokens)


def _block(model: Any, plan: Plan, guide: str | None) -> Any:
    return nullcontext() if guide is None else compress(model, plan.ratio, guide=guide)


def _peak(model: Any, given: dict[str, Tensor], plan: Plan, guide: str | None) -> int | None:
    memory = PeakMemory(model.device)
    with _block(model, plan, guide):
        _generate(model, given, 1)
    return memory.bytes()


def _sample(model: Any, given: dict[str, Tensor], plan: Plan, guide: str | None) -> dict[str, float]:
    """One round: a call of one token, whose phases are timed inside it, and a longer one."""
    with _block(model, plan, guide) as compression:
        if compression is None:
            with _tower_timed(model) as clock:
                first = _timed(lambda: _generate(model, given, 1), model.device)
            phases = clock.seconds()
            visual = int((given["input_ids"][0] == model.config.image_token_id).sum())
        else:
            first = _timed(lambda: _generate(model, given, 1), model.device)
            phases, visual = dict(compression.report.seconds), compression.report[0].tokens_after
        longer = _timed(lambda: _generate(model, given, 1 + plan.new_tokens), model.device)
    row = {"ttft_seconds": first, "visual_tokens": float(visual)}
    row |= {f"{name}_seconds": phases.get(name, 0.0) for name in ("tower", "selection", "projection")}
    row["prefill_seconds"] = first - sum(phases.get(name, 0.0) for name in ("tower", "selection", "projection"))
    if "generation" in phases:
        row["generation_seconds"] = phases["generation"]
    return {**row, "decode_seconds_per_token": (longer - first) / plan.new_tokens}


@contextmanager
def _tower_timed(model: Any) -> Iterator[Clock]:
    """Time the tower, its merger included, in calls of an unpatched model."""
    clock, running, tower = Clock(model.device), ExitStack(), model.base_model.visual

    def start(*_: Any) -> None:
        running.enter_context(clock.phase("tower"))

    def stop(*_: Any) -> None:
        running.close()

    hooks = [tower.register_forward_pre_hook(start), tower.register_forward_hook(stop)]
    try:
        yield clock
    finally:
        running.close()
        for hook in hooks:
            hook.remove()


def _timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one run, the device's queue drained on both sides."""
    _drain(device)
    start = time.perf_counter()
    work()
    _drain(device)
    return time.perf_counter() - start


def _drain(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
