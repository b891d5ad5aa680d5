"""Two ways to the answers of a model without some of its image tokens, from unpatched models alone.

Cut: what the full model hands its language model for one prompt, less the dropped places, read at once with the answer's
own tokens behind it. Holed: the unpatched `generate` on the full prompts, with holes in the mask at the dropped places.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

RECURRENT = ("qwen3_5", "qwen3_5_moe")
"""Layers with a state, which a masked token changes all the same: holes prove nothing."""


class Caught(Exception):
    """The language model was called."""


def language_inputs(model: Any, inputs: Any) -> dict[str, Any]:
    """What the unpatched model hands its language model: embeddings, positions (None where plain), deeper features.

    Call it outside of compressed blocks.
    """
    seen: dict[str, Any] = {}

    def catch(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise Caught

    before = getattr(model.base_model, "rope_deltas", None)
    handle = model.base_model.language_model.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(**inputs, use_cache=False)
    except Caught:
        return seen
    finally:
        handle.remove()
        if hasattr(model.base_model, "rope_deltas"):
            model.base_model.rope_deltas = before
    raise AssertionError("the language model was not called")


def rotary(seen: dict[str, Any]) -> Tensor:
    """Positions of one prompt, (3, 1, length), or (1, length) where they are plain."""
    places = seen.get("position_ids")
    if places is None:
        return torch.arange(seen["inputs_embeds"].shape[1])[None]
    return places[-3:]


def cut_logits(
    model: Any, one: Any, keep: Tensor, answer: Tensor, closed: bool = False, everywhere: bool = False
) -> Tensor:
    """Logits (tokens, vocabulary) with which each token of `answer` (tokens,) follows a prompt without what is dropped.

    `one` is one prompt without padding and `keep` (length,) its places that stay, at their own positions, or numbered
    anew if `closed`. All tokens are read in one pass, so nothing here knows of caches or of the way to a next position.
    If `everywhere`, logits (kept places and answer but its last, vocabulary).
    """
    seen = language_inputs(model, one)
    places, more = rotary(seen), len(answer) - 1
    steps = torch.arange(1, 1 + more).expand(*places.shape[:-1], -1)
    places = torch.cat([places[..., keep], places[..., -1:] + steps], -1)
    if closed:
        places = torch.arange(places.shape[-1])[None]
    call: dict[str, Any] = {}
    if seen.get("visual_pos_masks") is not None:
        visual = seen["visual_pos_masks"]
        call["visual_pos_masks"] = torch.cat([visual[:, keep], visual.new_zeros(1, more)], 1)
        call["deepstack_visual_embeds"] = [level[keep[visual[0]]] for level in seen["deepstack_visual_embeds"]]
    for name in ("mm_token_type_ids", "moe_mm_token_type_ids"):
        if seen.get(name) is not None:
            call[name] = torch.cat([seen[name][:, keep], seen[name].new_zeros(1, more)], 1)
    embeds = torch.cat([seen["inputs_embeds"][:, keep], model.get_input_embeddings()(answer[None, :more])], 1)
    # Without a mask, gaps in plain positions would be taken for the ends of packed sequences.
    mask = torch.ones(embeds.shape[:2], dtype=torch.long)
    read = {"inputs_embeds": embeds, "position_ids": places, "attention_mask": mask, "use_cache": False}
    hidden = model.base_model.language_model(input_ids=None, **read, **call)[0]
    logits: Tensor = model.lm_head(hidden[0] if everywhere else hidden[0, -len(answer) :])
    return logits


def holed(model: Any, inputs: Any, keep: Tensor, closed: bool = False) -> dict[str, Any]:
    """The full call with a hole in its mask wherever `keep` (batch, length) is False.

    Positions are the full prompt's, with a row before the rotary ones that numbers text. If `closed`, none are given, and
    `generate` numbers what the mask leaves.
    """
    full = inputs["attention_mask"]
    call = {**inputs, "attention_mask": full * keep.long()}
    if closed:
        return call
    plain = (full.cumsum(-1) - 1).clamp(min=0)
    places = language_inputs(model, inputs).get("position_ids")
    call["position_ids"] = plain if places is None else torch.cat([plain[None], places[-3:]])
    return call


def follows(logits: Tensor, answer: Tensor, suppressed: list[int]) -> bool:
    """Whether greedy decoding from these logits (tokens, vocabulary) gives that answer (tokens,)."""
    allowed = logits.clone()
    allowed[:, suppressed] = -torch.inf
    return torch.equal(allowed.argmax(-1), answer)


def keep_of(model: Any, inputs: Any, report: Any) -> Tensor:
    """Places (batch, length) that a report says are kept: all text, and its images' tokens."""
    keep = torch.ones_like(inputs["input_ids"], dtype=torch.bool)
    keep[inputs["input_ids"] == model.config.image_token_id] = torch.cat([image.kept for image in report])
    return keep


def some(model: Any, inputs: Any, share: float, seed: int = 0) -> Tensor:
    """Places (batch, length) kept by chance: all text, and about that share of image tokens."""
    chance = torch.rand(inputs["input_ids"].shape, generator=torch.Generator().manual_seed(seed))
    return (inputs["input_ids"] != model.config.image_token_id) | (chance < share)
