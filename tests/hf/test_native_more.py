"""More families whose images keep their resolution, against two ways to the same answers from unpatched models alone.

Cut: the model runs on the full prompt, and its language model is handed what it would be handed, less the dropped places and
with the answer's own tokens behind, in one pass. Holed: the unpatched model on the full prompt with holes in its mask.
"""

import re
from contextlib import contextmanager
from functools import cache
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from families.native_more import MORE, cut
from globalcom2 import compress
from globalcom2.adapters.families import load_adapter
from native_cases import IMAGES_OF_ROWS, PICTURES, words
from native_oracles import follows, keep_of
from tiny import footprint

NEW = 6
LOGITS = {"max_new_tokens": NEW, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
STATEFUL = ("glm5_next", "lfm3_vl", "qwen4_exp")
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
ROW_BY_ROW = ("gemma4", "mistral_large4", "muse_glimmer")


@cache
def case_of(name):
    """A model, a left-padded batch and each of its prompts by itself."""
    tiny = MORE[name]()
    texts = words(tiny.tag)
    batch = dict(tiny.inputs(texts, PICTURES))
    rows = [dict(tiny.inputs([text], images)) for text, images in zip(texts, IMAGES_OF_ROWS, strict=True)]
    tiny.model.generate(**rows[3], max_new_tokens=2)  # transformers itself adds hooks on a model's first call
    return tiny, batch, rows


@pytest.fixture(params=MORE)
def case(request):
    tiny, batch, rows = case_of(request.param)
    before = footprint(tiny.model)
    yield request.param, tiny, batch, rows
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
    if "image_sizes" in batch:
        return [(h // 8, w // 8) for h, w in batch["image_sizes"].tolist()]
    side = 1 if name == "gemma4_unified" else 3
    return [
        ((int(own[:, 1].max()) + 1) // side, (int(own[:, 0].max()) + 1) // side) for own in batch["image_position_ids"]
    ]


@pytest.mark.parametrize("setting", ["a tenth", "two fifths"])
def test_equal_to_both_oracles(case, setting):
    """Budgets, greedy tokens and logits. A real guide and scores read in attention with the greater ratio."""
    name, tiny, batch, rows = case
    model, ratio, options = tiny.model, 0.1, {}
    if setting == "two fifths":
        ratio, options = 0.4, {"guide": "thumbnail", "score": "similarity" if name in SIMILARITY else "received"}
    closed = name in CLOSED or (name not in ROTARY and setting == "a tenth")
    if not closed:
        options["positions"] = "original"
    with torch.no_grad(), compress(model, ratio, **options) as compression:
        out = model.generate(**batch, **LOGITS)
        report = list(compression.report)
        direct = model(**batch).logits[:, -1]
    sizes = sizes_of(name, batch)
    assert [image.layout.size for image in report] == sizes
    assert [image.tokens_after for image in report] == [max(1, int(ratio * h * w + 0.5)) for h, w in sizes]
    length = batch["input_ids"].shape[1]
    assert torch.equal(out.sequences[:, :length], batch["input_ids"])
    answers, logits = out.sequences[:, length:], torch.stack(out.logits, 1)
    same = {"atol": 5e-4 if name in STATEFUL else 5e-5, "rtol": 0}
    torch.testing.assert_close(direct, logits[:, 0], **same)
    keep, barred = keep_of(model, batch, report), model.generation_config.suppress_tokens
    with torch.no_grad():
        for row, one in enumerate(rows):
            real = keep[row][batch["attention_mask"][row].bool()]
            expected = cut_logits(model, one, real, answers[row], closed)
            torch.testing.assert_close(logits[row], expected, **same)
            assert follows(expected, answers[row], barred)
        if name not in (*STATEFUL, "minimax_m3_vl"):
            expected = holed_logits(model, batch, keep, answers, name, closed)
            torch.testing.assert_close(logits, expected, **same)


def test_all_tokens_and_beams(case):
    """Ratio 1 is the unpatched model bit for bit; beams of a batch are those of its prompts by themselves."""
    _, tiny, batch, rows = case
    model, beams = tiny.model, {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    with torch.no_grad():
        stock = model(**batch).logits
        with compress(model, 1.0):
            assert torch.equal(model(**batch).logits, stock)
    with compress(model, 0.2):
        together = model.generate(**batch, **beams)[:, -3:]
        alone = [model.generate(**one, **beams)[0, -3:] for one in rows[1:]]
    assert torch.equal(together[1:], torch.stack(alone))


@contextmanager
def without_places(model):
    """Learned embeddings of places set to zero: random ones are larger than any picture's texture."""
    tables = [p for n, p in model.named_parameters() if n.endswith(("pos_embedding", "position_embedding_table"))]
    before = [table.detach().clone() for table in tables]
    with torch.no_grad():
        for table in tables:
            table.zero_()
        yield
        for table, own in zip(tables, before, strict=True):
            table.copy_(own)


@pytest.mark.parametrize("guide", ["pooled", "thumbnail"])
def test_the_one_textured_corner_gets_the_largest_budget(case, guide):
    """A picture of 30 x 21 tokens at least, which are several windows, one grey but for noise at its right and bottom."""
    name, tiny, _, _ = case
    width, height = {"gemma4": (400, 100), "gemma4_unified": (240, 216)}.get(name, (240, 168))
    pixels = np.full((height, width, 3), 60, np.uint8)
    corner = (slice(2 * height // 3, None), slice(3 * width // 4, None))
    pixels[corner] = np.random.default_rng(0).integers(0, 256, pixels[corner].shape)
    inputs = tiny.inputs([f"a {tiny.tag} b"], [Image.fromarray(pixels)])
    with without_places(tiny.model), compress(tiny.model, 0.2, score="similarity", guide=guide) as compression:
        tiny.model(**inputs)
    ratios = compression.report[0].crop_ratios
    assert len(ratios) > 1
    assert ratios[-1] > 1.5 * max(ratios[:-1])


def places_of_patches(name, height, width):
    """Row and column of each patch of an image of that many tokens, in the order in which a tower reads them."""
    side = {"gemma4": 3, "video_llama_3": 1}.get(name, 2)
    places = [(y, x) for y in range(height * side) for x in range(width * side)]
    if name not in ROW_BY_ROW:
        places.sort(key=lambda p: (p[0] // side, p[1] // side, *p))
    if name in WINDOWED:
        places.sort(key=lambda p: (p[0] // 4, p[1] // 4))
    return side, torch.tensor(places).T


def received(query, key):
    """Attention received by each patch, from queries (heads, patches, dim), scaled, and keys of as many heads or fewer."""
    key = key.repeat_interleave(len(query) // len(key), 0)
    return (query @ key.mT).softmax(-1).mean((0, 1))


@pytest.mark.parametrize("name", [name for name in MORE if name not in SIMILARITY])
def test_scores_read_in_attention(name):
    """Against queries and keys of the unpatched tower's last layer that sees the whole image, patch by patch."""
    tiny, batch, _ = case_of(name)
    base, calls = tiny.model.base_model, []
    stock = torch.nn.functional.scaled_dot_product_attention

    def spy(query, key, value, attn_mask=None, scale=None, **more):
        calls[-1].append((query * (query.shape[-1] ** -0.5 if scale is None else scale), key))
        return stock(query, key, value, attn_mask=attn_mask, scale=scale, **more)

    layers = [
        module
        for path, module in base.named_modules()
        if re.search(r"\.\d+\.(attn|self_attn|attention)$", path) and not re.search("language_model|audio", path)
    ]
    hooks = [layer.register_forward_pre_hook(lambda *_: calls.append([])) for layer in layers]
    given = {n: x for n, x in batch.items() if n.startswith(("pixel", "image"))}
    with torch.no_grad(), mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", spy):
        base.get_image_features(**given, return_dict=True)
    for hook in hooks:
        hook.remove()
    seen = calls[1 if name in WINDOWED else -1]
    with torch.no_grad(), compress(tiny.model, 0.2, score="received") as compression:
        tiny.model(**batch)
    seen = [pair for query, key in seen for pair in zip(query, key, strict=True)]  # padded images come as one batch
    sizes, start = sizes_of(name, batch), 0
    for n, (image, (height, width)) in enumerate(zip(compression.report, sizes, strict=True)):
        side, (y, x) = places_of_patches(name, height, width)
        query, key = seen[n] if len(seen) == len(sizes) else (own[:, start:] for own in seen[0])
        start += len(y)
        patches = torch.empty(height * side, width * side)
        patches[y, x] = received(query[:, : len(y)], key[:, : len(y)])
        expected = patches.view(height, side, width, side).mean((1, 3))
        (rows, cols), (tall, wide) = image.layout.grid, image.layout.token_grid
        got = image.scores.view(rows, cols, tall, wide).transpose(1, 2).reshape(rows * tall, cols * wide)
        torch.testing.assert_close(got[:height, :width], expected, atol=1e-4 * float(expected.max()), rtol=1e-4)


@pytest.mark.parametrize("name", MORE)
def test_a_guide_is_the_picture_at_a_third_of_its_size(name):
    """Against what the processor makes of a smaller picture; Gemma 4's would enlarge it, so there its patches are cut here."""
    tiny, batch, _ = case_of(name)
    adapter, base = load_adapter(name).guided("thumbnail"), tiny.model.base_model
    layouts = adapter.layouts(base, batch)
    made = adapter.with_guides(base, adapter.encode_arguments(base, batch), layouts)["pixel_values"]
    token = {"gemma4": 12, "gemma4_unified": 12}.get(name, 8)
    sizes = [(max(1, round(width / 3)), max(1, round(height / 3))) for height, width in sizes_of(name, batch)]
    smaller = [
        picture.resize((width * token, height * token), Image.Resampling.BICUBIC)
        for picture, (width, height) in zip(PICTURES, sizes, strict=True)
    ]
    if token == 12:
        side = adapter.side(base)
        cuts = [cut(picture, side, token // side)[0].flatten(1) for picture in smaller]
        expected, made = torch.cat(cuts), torch.cat([own[: len(c)] for own, c in zip(made, cuts, strict=True)])
    else:
        expected = tiny.inputs([tiny.tag * 4], smaller)["pixel_values"]
        made = made[-len(expected) :]
        if name in PIXTRAL:  # padded to the size of the images
            made = made[..., : expected.shape[-2], : expected.shape[-1]]
    assert made.shape == expected.shape
    assert float((made - expected).abs().mean()) < 0.03 * float(expected.std())
