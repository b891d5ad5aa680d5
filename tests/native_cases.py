"""Batches for models whose images keep their resolution, and what stands around a compressed call of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from families.native import NATIVE
from tiny import Tiny, footprint, picture

NEW = 8
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
LOGITS = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}
PLAIN = ("kimi_k25", "mistral3")
"""Families with plain positions, which "closed" and "original" both suit."""
PICTURES = [picture(120, 144, 1), picture(48, 40, 2), picture(160, 32, 3), picture(24, 136, 4)]
"""18 x 15 tokens, which are 2 x 2 windows, 5 x 6, 4 x 20 (two windows) and 17 x 3 (two windows)."""
SMALL = [picture(48, 40, 2), picture(160, 32, 3), picture(24, 136, 4), picture(40, 16, 1)]
"""5 x 6 tokens, 4 x 20 and 17 x 3 (two windows each), and 2 x 5."""


def words(tag: str) -> list[str]:
    """Prompts of unlike lengths: one image, two, none, one."""
    return [f"what {tag} is", f"{tag} or{tag}?", "no picture here", f"look: {tag} well"]


def left_padded(rows: list[Tensor], fill: int = 0) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack([torch.cat([row.new_full((longest - len(row),), fill), row]) for row in rows])


class Case(NamedTuple):
    """A model, a left-padded batch, and each of its prompts by itself."""

    name: str
    tiny: Tiny
    batch: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def model(self) -> Any:
        return self.tiny.model

    @property
    def length(self) -> int:
        return self.batch["input_ids"].shape[1]

    @property
    def suppressed(self) -> list[int]:
        return self.model.generation_config.suppress_tokens

    @property
    def tolerance(self) -> float:
        """Recurrent layers sum in another order when they read all at once."""
        return 5e-4 if self.name.startswith("qwen3_5") else 5e-5

    def real(self, places: Tensor, row: int) -> Tensor:
        """A row of (batch, length) places without its padding."""
        return places[row][self.batch["attention_mask"][row].bool()]


@cache
def tiny_of(name: str) -> Tiny:
    """One model per family for all tests, which must leave it unpatched."""
    tiny = NATIVE[name]()
    inputs = tiny.inputs([tiny.tag], PICTURES[1:2])
    tiny.model.generate(**inputs, max_new_tokens=2)  # transformers itself adds hooks on a model's first call
    return tiny


def images_of_rows(pictures: list[Image.Image]) -> list[list[Image.Image]]:
    """The images of each prompt."""
    return [pictures[:1], pictures[1:3], [], pictures[3:]]


@cache
def case_of(name: str, small: bool = False) -> Case:
    """The family's model with four prompts; `small` ones where neither windows nor guides are looked at."""
    tiny, pictures = tiny_of(name), SMALL if small else PICTURES
    texts = words(tiny.tag)
    rows = [dict(tiny.inputs([text], own)) for text, own in zip(texts, images_of_rows(pictures), strict=True)]
    return Case(name, tiny, dict(tiny.inputs(texts, pictures)), rows)


@contextmanager
def left_clean(case: Case) -> Iterator[Case]:
    """Check that nothing stays on the model, and that compressed calls wrote no positions into it."""
    base = case.model.base_model
    before, mark = footprint(case.model), torch.tensor([[12345]])
    if hasattr(base, "rope_deltas"):
        base.rope_deltas = mark
    yield case
    assert footprint(case.model) == before, "the model was left patched"


def grown(inputs: dict[str, Any], sequences: Tensor) -> dict[str, Any]:
    """The call of a conversation that went on with `sequences` (batch, longer) after the prompts of `inputs`."""
    longer = {"input_ids": sequences}
    for name, fill in (("attention_mask", 1), ("mm_token_type_ids", 0), ("moe_mm_token_type_ids", 0)):
        if name in inputs:
            added = sequences.shape[1] - inputs[name].shape[1]
            longer[name] = torch.nn.functional.pad(inputs[name], (0, added), value=fill)
    return {**inputs, **longer}


def picture_grids(images: list[Image.Image]) -> list[tuple[int, int]]:
    """(height, width) in tokens of 8 px."""
    return [(image.height // 8, image.width // 8) for image in images]
