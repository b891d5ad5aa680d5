"""Answers to many questions about one image: what their prompts share, the image included, is read once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from globalcom2.adapters.families import load_adapter
from globalcom2.errors import InputError
from globalcom2.hf.cache import CACHE
from globalcom2.hf.prompt import ALIGNED
from globalcom2.lab.chat import chat_prompt

ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Answers:
    """Answers per image, and how many visual tokens each image has."""

    texts: list[list[str]]
    """One list per image, with one answer per question."""
    placeholders: list[int]
    """Visual tokens per image, uncompressed."""


@torch.inference_mode()
def answer_questions(
    model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], max_new_tokens: int
) -> Answers:
    """Greedy answers to several questions about each of several images of one size.

    The prompt up to the end of the image and its tags is prefilled once per image; each question then continues a copy
    of the cache, so answers equal those of separate calls up to rounding, and the vision tower runs once per image.
    Works inside and outside of `compress`.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        images: RGB images of one size.
        questions: For each image its questions, the same number for all.
        max_new_tokens: Length of the longest answer.

    Raises:
        InputError: Images of several sizes, or with different numbers of questions; questions of several lengths
            about several images where the language model has recurrent layers; a processor or a prompt whose image tag
            or question cannot be found in its tokens.
    """
    sizes = {image.size for image in images}
    if len(sizes) != 1 or len({len(asked) for asked in questions}) != 1 or len(images) != len(questions):
        raise InputError(
            f"images must have one size and as many questions each, got {len(sizes)} sizes and "
            f"{sorted({len(asked) for asked in questions})} questions. Group them first."
        )
    token = model.config.image_token_id
    prompts = [[chat_prompt(processor, text) for text in asked] for asked in questions]
    tag = _tag(processor)
    turns = [[_tail(processor.tokenizer(text).input_ids, tag) for text in turn] for turn in zip(*prompts, strict=True)]
    _check_padding(model.config.get_text_config(), turns)
    inputs = processor(
        text=[asked[0] for asked in prompts], images=[[image] for image in images], return_tensors="pt", padding=True
    )
    inputs = inputs.to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    begin = _common(turns) if load_adapter(model.config.model_type).native else 0
    turns = [[tail[begin:] for tail in tails] for tails in turns]
    head = _head(model, inputs, turns[0])
    filled = model.generate(**inputs, **head, max_new_tokens=1, do_sample=False, return_dict_in_generate=True)
    answers: list[list[str]] = [[] for _ in images]
    for tails in turns:
        call = _continued(head, *_padded(tails, processor.tokenizer.pad_token_id or 0, model.device))
        out = model.generate(
            **call, max_new_tokens=max_new_tokens, do_sample=False, **{CACHE: copy.deepcopy(getattr(filled, CACHE))}
        )
        new = processor.batch_decode(out[:, call["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(answers, new, strict=True):
            row.append(text.strip())
    return Answers(answers, (head["input_ids"] == token).sum(1).tolist())


@torch.inference_mode()
def answer_apart(
    model: Any, processor: Any, images: Sequence[Image.Image], questions: Sequence[Sequence[str]], max_new_tokens: int
) -> Answers:
    """Greedy answers as `answer_questions` gives them, each question in a call of its own with its image.

    For settings in which the question decides what is dropped.

    Args:
        model: A supported model in eval mode.
        processor: Its processor.
        images: RGB images.
        questions: For each image its questions, the same number for all.
        max_new_tokens: Length of the longest answer.
    """
    answers: list[list[str]] = [[] for _ in images]
    placeholders: list[int] = []
    for asked in zip(*questions, strict=True):
        inputs = processor(
            text=[chat_prompt(processor, text) for text in asked],
            images=[[image] for image in images],
            return_tensors="pt",
            padding=True,
            padding_side="left",
        ).to(model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        out = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for row, text in zip(answers, new, strict=True):
            row.append(text.strip())
        placeholders = (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist()
    return Answers(answers, placeholders)


def _check_padding(config: Any, turns: list[list[list[int]]]) -> None:
    """Raise where questions would be padded: attention masks padding, but a recurrent layer's state takes it in."""
    recurrent = [kind for kind in getattr(config, "layer_types", None) or () if kind not in ATTENTION]
    if recurrent and any(len(set(map(len, tails))) > 1 for tails in turns):
        raise InputError(
            f"questions must have one length where the language model has recurrent layers ({recurrent[0]}), got "
            f"several for {len(turns[0])} images. Ask about one image at a time."
        )


def _tag(processor: Any) -> int:
    """The id of what stands for an image in a prompt before the processor fills it in."""
    tag = getattr(processor, "image_token", None)
    found = processor.tokenizer.convert_tokens_to_ids(tag) if isinstance(tag, str) else None
    if not isinstance(found, int) or found == processor.tokenizer.unk_token_id:
        raise InputError(
            f"the processor's image_token must be one token of its tokenizer, got {tag!r}. Ask one question per call of "
            "generate instead."
        )
    return found


def _head(model: Any, inputs: Any, tails: list[list[int]]) -> dict[str, Tensor]:
    """Take what is as long as a prompt out of `inputs`, without the questions and without the padding on the left.

    What tells the kinds of tokens stays with images that keep their resolution: their positions follow from it. For others
    generate makes it itself.

    Returns:
        Arguments of `generate`, (batch, n) each.
    """
    long = {name: inputs.pop(name) for name in ("input_ids", "attention_mask", *ALIGNED) if name in inputs}
    rows = []
    for row, shown, tail in zip(long["input_ids"], long["attention_mask"].bool(), tails, strict=True):
        places = shown.nonzero()[:, 0]
        if row[places[len(places) - len(tail) :]].tolist() != tail:
            raise InputError(
                "a prompt must end with its question as the tokenizer alone splits it, got other tokens. Ask one "
                "question per call of generate instead."
            )
        rows.append(places[: len(places) - len(tail)])
    index = torch.stack(rows)
    native = load_adapter(model.config.model_type).native
    kept = long if native else {name: long[name] for name in ("input_ids", "attention_mask")}
    return {name: given.gather(1, index) for name, given in kept.items()}


def _continued(head: dict[str, Tensor], ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Arguments of `generate` for a question (batch, length) behind what `_head` returned.

    Padding stands between image and question: the image's cache serves all questions.
    """
    more = {**dict.fromkeys(head, torch.zeros_like(ids)), "input_ids": ids, "attention_mask": mask}
    return {name: torch.cat([given, more[name]], 1) for name, given in head.items()}


def _tail(ids: list[int], tag: int) -> list[int]:
    """The ids after the last tag of an image."""
    if tag not in ids:
        raise InputError(
            "a prompt must hold the processor's image_token, got one without it. Ask one question per call of generate "
            "instead."
        )
    return ids[len(ids) - ids[::-1].index(tag) :]


def _common(turns: list[list[list[int]]]) -> int:
    """How many tokens all questions begin with, one of each left over.

    They are read with the image, so that no prompt ends with a visual token: that may be dropped, and new tokens are
    numbered from the last one.
    """
    tails = [tail for turn in turns for tail in turn]
    shortest = min(map(len, tails)) - 1
    return next((n for n in range(shortest) if len({tail[n] for tail in tails}) > 1), shortest)


def _padded(rows: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows padded on the left: (batch, longest) ids and mask."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + row for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)
