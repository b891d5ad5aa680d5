"""Batches of more families that keep resolution, and two ways to their answers from unpatched models alone.

Cut: the model runs on the full prompt, and its language model is handed what it would be handed, less the dropped places and
with the answer's own tokens behind, in one pass. Holed: the unpatched model on the full prompt with holes in its mask.
"""

from contextlib import contextmanager
from functools import cache

import torch

from families import native_more
from families.native_omni import OMNI
from tiny import footprint, picture

MORE = {**native_more.MORE, **OMNI}
PICTURES = [picture(120, 136, 1), picture(48, 40, 2), picture(24, 136, 4)]
"""17 x 15 tokens of 8 px, which are 2 x 2 windows, 5 x 6, and 17 x 3, which are two windows."""
IMAGES_OF_ROWS = [PICTURES[:1], PICTURES[1:], []]
NEW = 4
LOGITS = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
STATEFUL = ("glm5_next", "lfm3_vl", "nemotron_h_omni", "qwen4_exp")
"""Recurrent layers or convolutions over the prompt, which a masked token changes all the same: holes prove nothing.

Nor do they in `minimax_m3_vl`, whose sparse layers take positions for places among the keys.
"""
CLOSED = ("exaone4_5", "hyperclovax_vision_v2", "minimax_m3_vl")
THINKERS = ("qwen2_5_omni_thinker", "qwen3_omni_moe_thinker")
ROTARY = ("cohere_compass", "cosmos3_edge", "cosmos3_omni", "qwen4_exp", *THINKERS)
SIMILARITY = ("gemma4_unified", "lighton_ocr")
"""Families without scores that are read in attention."""
WINDOWED = ("exaone4_5", "hyperclovax_vision_v2", "muse_glimmer", "qwen2_5_omni_thinker")
"""Towers whose middle layer alone sees the whole image, and which read windows of 4 x 4 patches one after another."""
PIXTRAL = ("lighton_ocr", "mistral_large4")
ROW_BY_ROW = ("gemma4", "mistral_large4", "muse_glimmer", "nemotron_h_omni")


@cache
def case_of(name):
    """A model, a left-padded batch and each of its prompts by itself."""
    tiny = MORE[name]()
    texts = [f"what {tiny.tag} is", f"{tiny.tag} or{tiny.tag}?", "no picture here"]
    batch = dict(tiny.inputs(texts, PICTURES))
    rows = [dict(tiny.inputs([text], images)) for text, images in zip(texts, IMAGES_OF_ROWS, strict=True)]
    tiny.model.generate(**rows[1], max_new_tokens=2)  # transformers itself adds hooks on a model's first call
    return tiny, batch, rows


@contextmanager
def left_clean(name):
    """The case of a family, and a check that nothing stays on its model."""
    tiny, batch, rows = case_of(name)
    before = footprint(tiny.model)
    yield name, tiny, batch, rows
    assert footprint(tiny.model) == before, "the model was left patched"


def cut_logits(model, one, keep, answer, closed):
    """Logits (tokens, vocabulary) with which each token of `answer` follows a prompt less its dropped places."""
    more = len(answer) - 1
    embed = model.get_input_embeddings()

    def grown(values, new):
        return torch.cat([values[:, keep], new.to(values)], 1)

    def cut(module, args, given):
        length = int(keep.sum()) + more
        places = given.get("position_ids")
        places = torch.arange(len(keep))[None] if places is None else places[-3:]
        steps = torch.arange(1, 1 + more).expand(*places.shape[:-1], -1)
        places = torch.cat([places[..., keep], places[..., -1:] + steps], -1)
        changed = {
            "inputs_embeds": grown(given["inputs_embeds"], embed(answer[None, :more])),
            "position_ids": torch.arange(length)[None] if closed else places,
            "attention_mask": torch.ones(1, length, dtype=torch.long),
        }
        if isinstance(given.get("attention_mask"), dict):  # Gemma 4: tokens of an image see one another
            towered = model.config.model_type == "gemma4"  # in sliding layers alone
            image = grown(one["input_ids"] == model.config.image_token_id, torch.zeros(1, more))[0]
            runs = (image.long().diff(prepend=torch.zeros(1, dtype=torch.long)) == 1).cumsum(0) * image
            causal = torch.ones(length, length).tril().bool()
            sliding = causal | ((runs[:, None] == runs) & image)
            changed["attention_mask"] = {"full_attention": (causal if towered else sliding)[None, None]}
            changed["attention_mask"]["sliding_attention"] = sliding[None, None]
        if given.get("per_layer_inputs") is not None:
            new = module.get_per_layer_inputs(answer[None, :more], embed(answer[None, :more]))
            changed["per_layer_inputs"] = grown(given["per_layer_inputs"], new)
        if given.get("ple_input_ids") is not None:
            changed["ple_input_ids"] = grown(given["ple_input_ids"], answer[None, :more])
        if given.get("visual_pos_masks") is not None:
            visual = given["visual_pos_masks"]
            changed["visual_pos_masks"] = grown(visual, torch.zeros(1, more))
            changed["deepstack_visual_embeds"] = [level[keep[visual[0]]] for level in given["deepstack_visual_embeds"]]
        return args, {**given, **changed}

    handle = model.base_model.language_model.register_forward_pre_hook(cut, with_kwargs=True)
    deltas = getattr(model.base_model, "rope_deltas", None)
    try:
        return model(**one, use_cache=False).logits[0, -len(answer) :]
    finally:
        handle.remove()
        if hasattr(model.base_model, "rope_deltas"):
            model.base_model.rope_deltas = deltas


def holed_logits(model, batch, keep, answers, name, closed):
    """The same, (batch, tokens, vocabulary), from full prompts with their answers and holes in the mask, in one pass."""
    more = answers[:, :-1]
    ids = torch.cat([batch["input_ids"], more], 1)
    full, mask = (torch.cat([own, torch.ones_like(more)], 1) for own in (batch["attention_mask"], keep.long()))
    mask = mask * full
    numbered = ((mask if closed else full).cumsum(1) - 1).clamp(min=0)
    call = {**batch, "input_ids": ids, "attention_mask": mask, "position_ids": numbered}
    if "mm_token_type_ids" in batch:
        types = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(more)], 1)
        call["mm_token_type_ids"] = types
    if name in ROTARY:
        sizes = {
            "image_grid_thw": batch["image_grid_thw"],
            **({} if name in THINKERS else {"mm_token_type_ids": types}),
        }
        call["position_ids"] = model.base_model.get_rope_index(ids, attention_mask=full, **sizes)[0]
    return model(**call, use_cache=False).logits[:, -answers.shape[1] :]


def sizes_of(name, batch):
    """(height, width) in tokens of the batch's images, from what its processor returned."""
    if "image_grid_thw" in batch:
        side = 1 if name == "video_llama_3" else 2
        return [(h // side, w // side) for _, h, w in batch["image_grid_thw"].tolist()]
    if "image_grid_hw" in batch:
        return [(h // 2, w // 2) for h, w in batch["image_grid_hw"].tolist()]
    if "image_sizes" in batch:
        return [(h // 8, w // 8) for h, w in batch["image_sizes"].tolist()]
    side = 1 if name == "gemma4_unified" else 3
    return [
        ((int(own[:, 1].max()) + 1) // side, (int(own[:, 0].max()) + 1) // side) for own in batch["image_position_ids"]
    ]
