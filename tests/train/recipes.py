"""Conversations for the trainers, and what a compressed model must say about them, from embeddings cut by hand."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.nn.functional import log_softmax

from families import FAMILIES
from independent import visual_features
from tiny import Tiny, picture

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] }}:{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'image' %}TAG{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
    "{% endif %};{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
SIZES = [(168, 168), (60, 200)]
PROMPTS = ["what is it", "and that, say"]
CHOSEN = ["a cat", "two red buses"]
REJECTED = ["nothing at all", "no"]
QUIET = {"report_to": [], "use_cpu": True, "bf16": False, "save_strategy": "no", "disable_tqdm": True}
IGNORED = -100


def chatty(name: str) -> Tiny:
    """A family's tiny model whose processor has a chat template."""
    tiny = FAMILIES[name]()
    tiny.processor.chat_template = tiny.processor.tokenizer.chat_template = TEMPLATE.replace("TAG", tiny.tag)
    pad = tiny.processor.tokenizer.pad_token_id
    for config in (tiny.model.config, tiny.model.config.get_text_config()):
        config.pad_token_id = pad
    return tiny


def fresh(tiny: Tiny) -> Any:
    """A copy of the model to train. Dropout is off in all tiny models."""
    return copy.deepcopy(tiny.model)


def images() -> list:
    return [picture(*size, seed) for seed, size in enumerate(SIZES, 1)]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def examples(**columns: list[str]) -> list[dict[str, Any]]:
    """Rows for trl: a prompt with an image, and the answers given, as conversations."""
    rows = []
    for number, (prompt, image) in enumerate(zip(PROMPTS, images(), strict=True)):
        answers = {name: assistant(texts[number]) for name, texts in columns.items()}
        rows.append({"prompt": user(prompt), "images": [image], **answers})
    return rows


def batch(tiny: Tiny, rows: tuple[int, ...] = (0, 1)) -> tuple[dict[str, Any], int]:
    """Left-padded prompts with an image each and right-padded completions, and the length of the completions."""
    tokenizer, pictures = tiny.processor.tokenizer, images()
    prompts = tiny.inputs([f"u:{tiny.tag}{PROMPTS[row]};a:" for row in rows], [pictures[row] for row in rows])
    answers = tokenizer([CHOSEN[row] for row in rows], padding=True, padding_side="right", return_tensors="pt")
    inputs = dict(prompts)
    for name in ("input_ids", "attention_mask"):
        inputs[name] = torch.cat([prompts[name], answers[name]], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in prompts:
            inputs[name] = torch.cat([prompts[name], torch.zeros_like(answers["input_ids"])], 1)
    return inputs, answers["input_ids"].shape[1]


def all_labels(inputs: dict[str, Any]) -> torch.Tensor:
    """The ids, without padding and without each row's first token, which nothing predicts."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    labels = ids.masked_fill(mask == 0, IGNORED)
    labels[range(len(ids)), mask.long().argmax(1)] = IGNORED
    return labels


def text_labels(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """The same without images."""
    return all_labels(inputs).masked_fill(inputs["input_ids"] == model.config.image_token_id, IGNORED)


def columns_kept(model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> list[list[int]]:
    """For each row, the columns of the caller's prompt that the language model reads."""
    kept, rows = iter(keep.tolist()), []
    for ids, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist(), strict=True):
        tags = [bool(real) and token == model.config.image_token_id for token, real in zip(ids, mask, strict=True)]
        rows.append(
            [c for c, (tag, real) in enumerate(zip(tags, mask, strict=True)) if real and (not tag or next(kept))]
        )
    return rows


def logits_by_hand(model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> list[torch.Tensor]:
    """For each row, (kept tokens, vocabulary): the uncompressed model on embeddings cut by hand, with gradients."""
    ids = inputs["input_ids"]
    tags = ids == model.config.image_token_id
    embeds = model.get_input_embeddings()(ids.masked_fill(tags, 0))
    embeds = embeds.masked_scatter(tags[..., None], visual_features(model, inputs).to(embeds.dtype))
    rows = []
    for row, columns in enumerate(columns_kept(model, inputs, keep)):  # one by one, so that padding cannot matter
        rows.append(model(inputs_embeds=embeds[row, columns][None], use_cache=False).logits[0])
    return rows


def full_logits_by_hand(model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
    """(batch, long, vocabulary): every place of the caller has the logits of the last kept token up to it, or zeros."""
    rows = logits_by_hand(model, inputs, keep)
    full = torch.zeros(*inputs["input_ids"].shape, rows[0].shape[-1])
    for row, (logits, columns) in enumerate(zip(rows, columns_kept(model, inputs, keep), strict=True)):
        for place in range(full.shape[1]):
            before = sum(column <= place for column in columns)
            if before:
                full[row, place] = logits[before - 1]
    return full


def logps_by_hand(
    model: Any, inputs: dict[str, Any], keep: torch.Tensor, labels: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """(batch, long - 1) log-probabilities of the labels, 0 where ignored; as trl aligns them."""
    out = torch.zeros(labels.shape[0], labels.shape[1] - 1)
    kept = columns_kept(model, inputs, keep)
    for row, (logits, columns) in enumerate(zip(logits_by_hand(model, inputs, keep), kept, strict=True)):
        logps = log_softmax(logits / temperature, -1)
        for rank, column in enumerate(columns[1:], 1):
            if labels[row, column] != IGNORED:
                out[row, column - 1] = logps[rank - 1, labels[row, column]]
    return out


def loss_by_hand(model: Any, inputs: dict[str, Any], keep: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean over the labels that are left."""
    wanted = labels[:, 1:] != IGNORED
    return -logps_by_hand(model, inputs, keep, labels)[wanted].mean()


def everything(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Keep every image token."""
    return torch.ones(int((inputs["input_ids"] == model.config.image_token_id).sum()), dtype=torch.bool)
