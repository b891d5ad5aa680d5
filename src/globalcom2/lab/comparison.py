"""One question about one image, answered with all visual tokens and with a part of them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from globalcom2.core.methods import parse_method
from globalcom2.errors import InputError
from globalcom2.hf.compression import compress
from globalcom2.hf.report import Report
from globalcom2.lab.chat import chat_prompt
from globalcom2.lab.costs import prefill_flops, tower_flops
from globalcom2.lab.picture import draw_picture


@dataclass(frozen=True)
class Asked:
    """What `compare_answers` is asked to do."""

    question: str
    retention_ratio: float = 0.1
    method: str = "globalcom2"
    """A method, with options if you like, as `parse_method` reads it."""
    drawing: Path | None = None
    """Where to draw what was kept; None draws nothing."""
    max_new_tokens: int = 32


def compare_answers(model: Any, processor: Any, image: Image.Image, asked: Asked) -> dict[str, Any]:
    """Answer a question twice, with all visual tokens and with a part of them, and measure both.

    Args:
        model: A model of a supported family.
        processor: Its processor.
        image: The image that the question is about.
        asked: Question, ratio, method, and where to draw what was kept.

    Returns:
        The object that `globalcom2 ask --json` prints, without the model's name. Seconds are of the whole `generate`
        call, vision tower included, each after a warm-up of one token.

    Raises:
        InputError: The question is empty, or holds the tag that stands for the image.
    """
    tag = getattr(processor, "image_token", "<image>")
    if not asked.question.strip() or tag in asked.question:
        raise InputError(
            f"question must be text without {tag!r}, got {asked.question!r}. The image is put in by itself."
        )
    inputs = processor(text=chat_prompt(processor, asked.question), images=image, return_tensors="pt").to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    method, options = parse_method(asked.method)
    compression = compress(model, asked.retention_ratio, method, **options)
    model.generate(**inputs, max_new_tokens=1, do_sample=False)
    with compression:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    full = _answer(model, processor, inputs, asked.max_new_tokens)
    with compression:
        short = _answer(model, processor, inputs, asked.max_new_tokens)
    report = compression.report
    _add_costs(model, inputs, report, full, short)
    drawn = asked.drawing is not None and len(report) > 0
    if drawn:
        draw_picture(image, report[0], asked.drawing, title=_title(asked.question, full, short))
    return {
        "question": asked.question,
        "retention_ratio": asked.retention_ratio,
        "method": method,
        "options": options,
        "full": full,
        "compressed": short,
        "picture": str(asked.drawing) if drawn else None,
    }


def _add_costs(model: Any, inputs: Any, report: Report, full: dict[str, Any], short: dict[str, Any]) -> None:
    """Add tokens and operations to both answers, and to the compressed one what its crops kept."""
    before = int((inputs["input_ids"] == model.config.image_token_id).sum())
    compressed = len(report) > 0  # at a ratio of 1 nothing is
    after = report.tokens_after if compressed else before
    views = report[0].layout.views if compressed else inputs["pixel_values"].shape[1]
    prompt = inputs["input_ids"].shape[1]
    text = model.config.get_text_config()
    tower = tower_flops(model.config.vision_config, views)
    for answer, visual in ((full, before), (short, after)):
        length = prompt - before + visual
        answer |= {
            "visual_tokens": visual,
            "prompt_tokens": length,
            "prefill_flops": prefill_flops(text, length),
            "tower_flops": tower,
        }
    short["crop_ratios"] = report[0].crop_ratios if compressed else []
    short["selection_seconds"] = report.seconds.get("selection", 0.0)


def _answer(model: Any, processor: Any, inputs: Any, max_new_tokens: int) -> dict[str, Any]:
    start = time.perf_counter()
    out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    if out.device.type == "cuda":
        torch.cuda.synchronize(out.device)
    seconds = time.perf_counter() - start
    new = out[0, inputs["input_ids"].shape[1] :]
    return {"answer": processor.decode(new, skip_special_tokens=True).strip(), "seconds": seconds}


def _title(question: str, full: dict[str, Any], short: dict[str, Any]) -> str:
    share = short["visual_tokens"] / full["visual_tokens"]
    return (
        f"{question}\nall {full['visual_tokens']} tokens: {full['answer']}    "
        f"{short['visual_tokens']} tokens ({share:.0%}): {short['answer']}"
    )
