"""One question about one image, answered with all visual tokens and with a part of them, in one or several settings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from globalcom2.adapters.families import load_adapter
from globalcom2.core.budget import LIMITS, budget_text
from globalcom2.errors import InputError, UnsupportedModelError
from globalcom2.hf.compression import Compression
from globalcom2.hf.inside import Drops
from globalcom2.hf.report import ImageReport
from globalcom2.lab.chat import question_inputs
from globalcom2.lab.costs import call_prefill_flops
from globalcom2.lab.labels import label
from globalcom2.lab.settings import Setting
from globalcom2.lab.vision_costs import padded_length, vision_cost

LONGEST_ANSWER = 32
Progress = Callable[[int, int], None]
"""Told how many answers of how many are there."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, and what it cost."""

    answer: str
    visual_tokens: int
    """Visual tokens of the prompt that the language model was given, newlines included."""
    prompt_tokens: int
    """Length of that prompt."""
    prefill_flops: int | None
    """Operations of the language model on the prompt; None for a model family whose formula is not known."""
    tower_flops: int | None
    """Operations of the vision tower on all views, alike in all settings but those whose guide it reads; None as above."""
    seconds: float
    """Of the whole `generate` call, vision tower included."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        names = ("answer", "visual_tokens", "prompt_tokens", "prefill_flops", "tower_flops", "seconds")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True)
class Run(Answer):
    """The answer in one setting."""

    method: str
    """The method's name."""
    options: dict[str, Any]
    retention_ratio: float | str
    """What was asked for: a number, or "auto"."""
    image_ratio: float
    """What the image got: its own ratio, where a limit or "auto" decides."""
    crop_ratios: list[float]
    """Fraction of valid tokens kept, per crop, row-major."""
    selection_seconds: float
    mean_retention: float
    """Fraction of the visual tokens that a layer of the language model read, mean over its layers."""
    entry: ImageReport | None
    """The image's entry in the report; None if nothing was compressed."""

    @property
    def label(self) -> str:
        """The method with its options but for limits in tokens, as tables name it."""
        options = {name: value for name, value in self.options.items() if name not in LIMITS}
        return label({"method": self.method, "options": options})

    @property
    def budget(self) -> str:
        """The ratio, or the limit in tokens, as tables have it."""
        return budget_text(self.retention_ratio, self.options)

    @property
    def setting(self) -> str:
        """The method with its options, and the budget."""
        return f"{self.label} at {self.budget}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; the setting is left out."""
        names = ("image_ratio", "mean_retention", "crop_ratios", "selection_seconds")
        return super().to_dict() | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Comparison:
    """One question, answered with all visual tokens once and then in each setting."""

    question: str
    image: Image.Image
    full: Answer
    runs: tuple[Run, ...]

    def table(self, name: str | None = None) -> list[dict[str, object]]:
        """Rows for people, column by name: all tokens first, then every run.

        Args:
            name: What the image is called, for a first column; None leaves it out.
        """
        first = {} if name is None else {"image": name}
        heads = [("all tokens", self.full), *((run.setting, run) for run in self.runs)]
        return [{**first, "setting": setting, **_row(answer)} for setting, answer in heads]


def _row(answer: Answer) -> dict[str, object]:
    """An answer's figures for people; operations in units of a thousand millions."""
    prefill = answer.prefill_flops
    return {
        "answer": answer.answer,
        "visual tokens": answer.visual_tokens,
        "prompt tokens": answer.prompt_tokens,
        "prefill GFLOPs": "-" if prefill is None else f"{prefill / 1e9:,.2f}",
        "seconds": f"{answer.seconds:.2f}",
    }


class Call:
    """One question about one image, ready to be asked in several settings.

    Args:
        model: A model of a supported family.
        processor: Its processor.
        image: The image that the question is about, RGB.
        question: Text without the tag that stands for the image.
        max_new_tokens: Length of the longest answer.

    Raises:
        InputError: The question is empty or holds the tag, or the processor gives the image no place in the prompt.
    """

    def __init__(self, model: Any, processor: Any, image: Image.Image, question: str, max_new_tokens: int):
        check_question(processor, question)
        self.model, self.processor, self.max_new_tokens = model, processor, max_new_tokens
        self.inputs = _prepared(model, processor, image, question)
        ids = self.inputs["input_ids"]
        self.visual = int((ids == model.config.image_token_id).sum())
        self.rest = ids.shape[1] - self.visual

    def full(self) -> Answer:
        """The answer with all visual tokens."""
        text, seconds = self._answer()
        return Answer(answer=text, seconds=seconds, tower_flops=self._tower(), **self._costs(self.visual))

    def run(self, setting: Setting, compression: Compression) -> Run:
        """The answer in one setting; `compression` is its block."""
        with compression:
            text, seconds = self._answer()
        report = compression.report
        entry = report[0] if len(report) else None  # at a ratio of 1 nothing may be compressed
        return Run(
            answer=text,
            seconds=seconds,
            method=setting.method,
            options=setting.options,
            retention_ratio=setting.retention_ratio,
            image_ratio=1.0 if entry is None else entry.retention_ratio,
            crop_ratios=[] if entry is None else entry.crop_ratios,
            selection_seconds=report.seconds.get("selection", 0.0),
            entry=entry,
            tower_flops=self._tower(None if entry is None else setting.options.get("guide")),
            mean_retention=1.0 if report.mean_retention is None else report.mean_retention,
            **self._costs(*((self.visual, None) if entry is None else (report.tokens_after, compression.drops))),
        )

    def warm_up(self, block: AbstractContextManager[Any] | None = None) -> None:
        """Generate one token, with all visual tokens or in a block, so that the next answer pays for no first time."""
        with block or nullcontext():
            self._generate(1)

    def _costs(self, visual: int, drops: Drops | None = None) -> dict[str, Any]:
        prompt = self.rest + visual
        return {
            "visual_tokens": visual,
            "prompt_tokens": prompt,
            "prefill_flops": _known(lambda: call_prefill_flops(self.model.config, prompt, visual, drops)),
        }

    def _tower(self, guide: str | None = None) -> int | None:
        """Operations of the vision tower on the call's one image, and on its guide if the tower reads one."""
        model, call = self.model, {**self.inputs, "input_ids": self.inputs["input_ids"].cpu()}

        def count() -> int:
            layouts = load_adapter(model.config.model_type).guided(guide).layouts(model.base_model, call)
            return sum(vision_cost(model.config, layout, padded_length(call)).tower for layout in layouts)

        return _known(count)

    def _generate(self, new: int) -> torch.Tensor:
        out: torch.Tensor = self.model.generate(**self.inputs, max_new_tokens=new, do_sample=False)
        return out

    def _answer(self) -> tuple[str, float]:
        """The answer, and the seconds that it took."""
        start = time.perf_counter()
        out = self._generate(self.max_new_tokens)
        if out.device.type == "cuda":
            torch.cuda.synchronize(out.device)
        seconds = time.perf_counter() - start
        new = out[0, self.inputs["input_ids"].shape[1] :]
        return str(self.processor.decode(new, skip_special_tokens=True)).strip(), seconds


def compare(
    model: Any,
    processor: Any,
    image: Image.Image,
    question: str,
    settings: Sequence[Setting],
    *,
    max_new_tokens: int = LONGEST_ANSWER,
    progress: Progress | None = None,
) -> Comparison:
    """Answer a question with all visual tokens once, then in each setting.

    Each timed call follows a call of one token in the same setting, so that no answer pays for a first time.

    Args:
        model: A model of a supported family.
        processor: Its processor.
        image: The image that the question is about, RGB.
        question: Text without the tag that stands for the image.
        settings: What to compare; may be empty.
        max_new_tokens: Length of the longest answer.
        progress: Called after each answer.

    Raises:
        InputError: The question is empty or holds the tag, or a setting has a wrong option: before anything is asked.
    """
    call = Call(model, processor, image, question, max_new_tokens)
    blocks = [setting.block(model) for setting in settings]
    told, total = progress or (lambda done, total: None), 1 + len(settings)
    call.warm_up()
    full, runs = call.full(), []
    told(1, total)
    for setting, block in zip(settings, blocks, strict=True):
        call.warm_up(block)
        runs.append(call.run(setting, block))
        told(1 + len(runs), total)
    return Comparison(question, image, full, tuple(runs))


def check_question(processor: Any, question: str) -> None:
    """Raise `InputError` for a question that is empty or holds the tag that stands for the image."""
    tag = getattr(processor, "image_token", "<image>")
    if not question.strip() or tag in question:
        raise InputError(f"question must be text without {tag!r}, got {question!r}. The image is put in by itself.")


def _prepared(model: Any, processor: Any, image: Image.Image, question: str) -> dict[str, Any]:
    """What the model takes for one question about one image, on its device and in its number format."""

    def moved(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)

    made = question_inputs(model.config, processor, image, question)
    return {name: moved(value) for name, value in made.items()}


def _known(count: Callable[[], int]) -> int | None:
    """What `count` returns, or None where it raises because no formula is known."""
    try:
        return count()
    except UnsupportedModelError:
        return None


def described(found: Comparison, run: Run) -> dict[str, Any]:
    """One run beside all tokens, as `globalcom2 ask --json` has it: plain values."""
    return {
        "retention_ratio": run.retention_ratio,
        "method": run.method,
        "options": run.options,
        "full": found.full.to_dict(),
        "compressed": run.to_dict(),
    }


def title(found: Comparison, run: Run) -> str:
    """Two lines for a drawing of a run: the question, and both answers with their tokens."""
    before, after = found.full.visual_tokens, run.visual_tokens
    return f"{found.question}\nall {before} tokens: {found.full.answer}    {after} tokens ({after / before:.0%}): {run.answer}"
