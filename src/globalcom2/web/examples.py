"""Examples to click: the demo, and pictures of the evaluation set with one of their questions each.

They were chosen to be unlike each other, not because answers are right: the mini model is wrong about some.
"""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageChops

from globalcom2.errors import InputError
from globalcom2.mini import DEMO_PICTURE, DEMO_QUESTION

FOLDER = Path(__file__).parent / "examples"
THUMBNAIL = 224
"""Longest side, in px, of what the strip of examples shows."""


@dataclass(frozen=True)
class Example:
    """A picture and a question about it."""

    number: int | None
    """Of the picture in the evaluation set; None for the demo."""
    question: str
    answer: str
    """The only right answer."""

    @property
    def path(self) -> Path:
        """The picture's file."""
        return DEMO_PICTURE if self.number is None else FOLDER / f"{self.number}.jpg"

    def picture(self) -> Image.Image:
        """The picture, RGB."""
        with Image.open(self.path) as found:
            return found.convert("RGB")


EXAMPLES = (
    Example(None, DEMO_QUESTION, "29"),
    Example(14, "what is the total?", "34"),
    Example(48, "what number is on the red square?", "38"),
    Example(8, "which is on the left, the white star or the blue triangle?", "white star"),
    Example(30, "how many tags are there?", "7"),
    Example(23, "which is on the left, the red star or the green square?", "green square"),
)


def example(number: object) -> Example:
    """The example at a place of `EXAMPLES`; raises `InputError` for any other number."""
    if not isinstance(number, int) or not 0 <= number < len(EXAMPLES):
        raise InputError(f"an example must be 0 to {len(EXAMPLES) - 1}, got {number!r}.")
    return EXAMPLES[number]


def right_answer(image: Image.Image, question: str) -> str | None:
    """The right answer to an example's question about its picture; None for anything else."""
    for one in EXAMPLES:
        if one.question == question.strip() and _same(one.picture(), image):
            return one.answer
    return None


def strip() -> str:
    """The examples as HTML: one button each, with the picture and the question."""
    buttons = "".join(
        f'<button type="button" class="gc-example" data-example="{number}">'
        f'<img src="{_inline(one.picture())}" alt=""><span>{html.escape(one.question)}</span></button>'
        for number, one in enumerate(EXAMPLES)
    )
    return f'<div class="gc-strip"><h2>Or try an example</h2><div class="gc-examples">{buttons}</div></div>'


def _same(one: Image.Image, other: Image.Image) -> bool:
    return one.size == other.size and ImageChops.difference(one, other).getbbox() is None


def _inline(image: Image.Image) -> str:
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
