"""One question about one picture, answered with all visual tokens and with a part of them."""

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
from globalcom2.lab.costs import prefill_flops, tower_flops
from globalcom2.lab.picture import draw_picture


@dataclass(frozen=True)
class Asked:
    """What `compare_answers` is asked to do."""

    question: str
    retention_ratio: float = 0.1
    method: str = "globalcom2"
    picture: Path | None = None
    max_new_tokens: int = 32


def chat_prompt(processor: Any, question: str) -> str:
    """A prompt with one image and a question, in the model's own chat format where its processor knows one."""
    if getattr(processor, "chat_template", None):
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
        return str(processor.apply_chat_template([message], add_generation_prompt=True))
    return f"USER: {getattr(processor, 'image_token', '<image>')}\n{question} ASSISTANT:"


def compare_answers(model: Any, processor: Any, image: Image.Image, asked: Asked) -> dict[str, Any]:
    """Answer twice and measure both.

    Args:
        model: A model of a supported family.
        processor: Its processor.
        image: The picture.
        asked: Question, ratio, method, and where to draw the picture of what was kept.

    Returns:
        The object that `globalcom2 ask --json` prints, without the model's name. Seconds are of the whole `generate`
        call, vision tower included, each after a warm-up of one token.
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
    before = int((inputs["input_ids"] == model.config.image_token_id).sum())
    after = report.tokens_after if len(report) else before
    views = report[0].layout.views if len(report) else inputs["pixel_values"].shape[1]
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
    short["crop_ratios"] = report[0].crop_ratios if len(report) else []
    short["selection_seconds"] = report.seconds.get("selection", 0.0)
    if asked.picture is not None and len(report):
        draw_picture(image, report[0], asked.picture, title=_title(asked.question, full, short))
    return {
        "question": asked.question,
        "retention_ratio": asked.retention_ratio,
        "method": method,
        "options": options,
        "full": full,
        "compressed": short,
        "picture": str(asked.picture) if asked.picture is not None and len(report) else None,
    }


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
