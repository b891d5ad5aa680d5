"""Questions about fresh pictures over tuning photographs, answered by transformers' own model class, token by token."""

from __future__ import annotations

import random
import time
from collections import defaultdict
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from native.asking import KINDS, question
from native.build import END, IMAGE, START, TOKEN, WINDOW, image_processor, tokenizer
from native.pictures import usual
from scenes import GRID_WEIGHTS, GRIDS, TUNING_PHOTOS

ROWS = 64  # questions that are answered side by side
LONGEST = 5  # tokens of an answer with its end


class Question(NamedTuple):
    """One question about one picture."""

    image: Image.Image
    kind: str
    text: str
    answer: str


def questions(seed: str, each: int) -> list[Question]:
    """`each` of every kind, at most one of a kind about a picture but three about a document's lines."""
    left, found, number = dict.fromkeys(KINDS, each), [], 0
    rng = random.Random(f"{seed}-questions")
    while any(left.values()):
        rows, cols = rng.choices(GRIDS, GRID_WEIGHTS)[0]
        size = WINDOW * rows, WINDOW * cols
        shown = usual(f"{seed}-{number}", size, documents=0.25, photos=TUNING_PHOTOS)
        number += 1
        for kind in (*KINDS, "document", "document"):
            asked = question(rng, shown, kind) if left[kind] else None
            if asked is not None:
                found.append(Question(shown.image, *asked))
                left[kind] -= 1
    return found


def batches_of(asked: list[Question]) -> list[list[Question]]:
    """At most ROWS questions about pictures of one size."""
    by_size = defaultdict(list)
    for one in asked:
        by_size[one.image.size].append(one)
    return [some[at : at + ROWS] for some in by_size.values() for at in range(0, len(some), ROWS)]


def inputs_of(some: list[Question], device: str) -> dict[str, Tensor]:
    """What the processor would make of them, but each picture is read once."""
    words, images = tokenizer(), image_processor()
    processed = {id(one.image): one.image for one in some}
    pixels = {at: images(images=[image], return_tensors="pt") for at, image in processed.items()}
    width, height = some[0].image.size
    shown = f"{START}{IMAGE * (width * height // TOKEN**2)}{END}"
    texts = [f"<s><user>{shown}{one.text}<assistant>" for one in some]
    made = dict(words(texts, padding=True, add_special_tokens=False, return_tensors="pt"))
    made.pop("token_type_ids", None)
    made["pixel_values"] = torch.cat([pixels[id(one.image)]["pixel_values"] for one in some])
    made["image_grid_thw"] = torch.cat([pixels[id(one.image)]["image_grid_thw"] for one in some])
    made["mm_token_type_ids"] = (made["input_ids"] == words.convert_tokens_to_ids(IMAGE)).int()
    return {name: value.to(device) for name, value in made.items()}


def generated(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    found = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
    return found[:, inputs["input_ids"].shape[1] :]


def closed(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Greedy as well, with the positions 0, 1, 2, ... in all three rows: as if a picture were a line of words."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    start = ids.shape[1]
    for _ in range(LONGEST):
        positions = (mask.cumsum(-1) - 1).clamp(min=0).expand(3, -1, -1)
        step = inputs | {"input_ids": ids, "attention_mask": mask}
        step["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
        new = model(**step, position_ids=positions, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
    return ids[:, start:]


@torch.no_grad()
def checked(model: nn.Module, asked: list[Question], device: str, most: float, way=generated) -> dict[str, float]:
    """Share of right answers by kind, how many were asked, and what five wrong ones said.

    Args:
        model: In evaluation mode.
        asked: What `questions` returned.
        device: Of the model.
        most: Seconds after which no further batch is begun.
        way: `generated` or `closed`.
    """
    begin, right, many, wrong = time.perf_counter(), defaultdict(int), defaultdict(int), []
    some = batches_of(asked)
    random.Random(0).shuffle(some)
    for batch in some:
        if time.perf_counter() - begin > most:
            break
        tokens = way(model, inputs_of(batch, device)).tolist()
        for one, row in zip(batch, tokens, strict=True):
            end = tokenizer().eos_token_id
            said = tokenizer().decode(row[: row.index(end)] if end in row else row).strip()
            many[one.kind] += 1
            right[one.kind] += said == one.answer
            if said != one.answer:
                wrong.append(f"{one.text} {one.answer}, got {said}")
    result = {kind: round(right[kind] / many[kind], 4) for kind in KINDS if many[kind]}
    total = max(1, sum(many.values()))
    return result | {"all": round(sum(right.values()) / total, 4), "asked": total, "wrong": wrong[::7][:12]}
