"""Images that keep their resolution under what `generate` and direct calls offer, in every family."""

from functools import cache

import pytest
import torch
from transformers import DynamicCache

from families.native import NATIVE
from globalcom2 import compress
from globalcom2.hf.cache import CACHE
from native_cases import LOGITS, PLAIN, SMALL, case_of, grown, images_of_rows, left_clean, words
from native_oracles import RECURRENT, cut_logits, follows, holed, keep_of

RATIO = 0.2
KINDS = ("qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "ernie4_5_vl_moe", "kimi_k25", "mistral3")
"""A windowed tower, deeper features, recurrent layers, wrong beams, kinds of tokens, latent keys, and breaks in images.

One family each, for what nothing of a family has a part in."""
NEW = 3
FEW = {"max_new_tokens": NEW, "do_sample": False}
LOGITS = {**LOGITS, **FEW}
STOCK_BEAMS_ARE_WRONG = ("glm4v", "glm4v_moe", "glm46v", "glm_ocr")
"""With several images in a prompt: transformers 5.24 hands a beam another prompt's image."""
NEW_CACHES = CACHE == "cache"
"""From transformers 5.24 on. Before, stock models expand images wrongly for beams and several returns."""


@pytest.fixture(params=NATIVE)
def case(request):
    with left_clean(case_of(request.param, small=True)) as case:
        yield case


@cache
def answered(name):
    """The answers (batch, new tokens) of a family's batch, their first logits, and what was kept."""
    case = case_of(name, small=True)
    with compress(case.model, RATIO) as compression:
        out = case.model.generate(**case.batch, **LOGITS)
        keep = keep_of(case.model, case.batch, compression.report)
    return out.sequences[:, case.length :], out.logits[0], keep


def test_beams_and_several_returns(case):
    """Against the unpatched model on a prompt of one image or two; where that fits none, against the prompt by itself."""
    model, beams = case.model, {**FEW, "num_beams": 3, "num_return_sequences": 2}
    with compress(model, RATIO) as compression:
        ours = model.generate(**case.batch, **beams)
        keep = keep_of(model, case.batch, compression.report)
    assert torch.equal(ours[:, : case.length], case.batch["input_ids"].repeat_interleave(2, 0))
    for row, several in ((1, True), (3, False)):
        one = case.rows[row]
        if case.name in RECURRENT or not NEW_CACHES or (several and case.name in STOCK_BEAMS_ARE_WRONG):
            with compress(model, RATIO):
                theirs = model.generate(**one, **beams)
        else:
            call = holed(model, one, case.real(keep, row)[None], closed=case.name in PLAIN)
            theirs = model.generate(**call, **beams)
        assert torch.equal(ours[2 * row : 2 * row + 2, -NEW:], theirs[:, -NEW:])


@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_sampling_with_a_seed(case):
    model, options = case.model, {"max_new_tokens": 3, "do_sample": True, "num_return_sequences": 2, "temperature": 2.0}
    torch.manual_seed(5)
    with compress(model, RATIO) as compression:
        ours = model.generate(**case.batch, **options)
        keep = keep_of(model, case.batch, compression.report)
    torch.manual_seed(5)
    if (
        case.name in RECURRENT or not NEW_CACHES or case.name in STOCK_BEAMS_ARE_WRONG
    ):  # returns are expanded as beams are
        twice = {"text": [t for t in words(case.tiny.tag) for _ in range(2)], "images": doubled()}
        with compress(model, RATIO):
            inputs = case.tiny.inputs(twice["text"], twice["images"])
            theirs = model.generate(**inputs, **{**options, "num_return_sequences": 1})
    else:
        theirs = model.generate(**holed(model, case.batch, keep, closed=case.name in PLAIN), **options)
    assert torch.equal(ours, theirs)


def doubled():
    return [image for images in images_of_rows(SMALL) for _ in range(2) for image in images]


def test_ways_through_generate_that_answer_alike(case):
    """A static cache, a cache of the caller's, prefill in chunks, no cache, no mask, ids as a positional argument."""
    model, batch = case.model, case.batch
    answers, _, _ = answered(case.name)
    ways = [{"cache_implementation": "static", "disable_compile": True}]
    # Before 5.24, prefill in chunks is wrong in the unpatched model, too.
    chunks = {"prefill_chunk_size": 16} if NEW_CACHES else {}
    ways.append({**chunks, CACHE: DynamicCache(config=model.config.get_text_config())})
    ways += [] if case.name == "ernie4_5_vl_moe" else [{"use_cache": False}]  # fails in the unpatched model, too
    with compress(model, RATIO):
        for way in ways:
            assert torch.equal(model.generate(**batch, **FEW, **way)[:, case.length :], answers), way
        bare = {k: v for k, v in case.rows[1].items() if k not in ("attention_mask", "input_ids")}
        assert torch.equal(model.generate(case.rows[1]["input_ids"], **bare, **FEW)[0, -NEW:], answers[1])


def test_a_second_turn_on_the_cache(case):
    """Equal to one pass over the whole conversation, though another call came between and left its own positions."""
    if case.name == "ernie4_5_vl_moe" and not NEW_CACHES:
        pytest.skip("before transformers 5.24, the unpatched model continues no cache: kinds of tokens are not cut")
    model = case.model
    more = torch.randint(3, 180, (4, 5), generator=torch.Generator().manual_seed(4))
    with compress(model, RATIO) as compression:
        first = model.generate(**case.batch, **LOGITS)
        keep = keep_of(model, case.batch, compression.report)
        whole = grown(case.batch, torch.cat([first.sequences, more], 1))
        text = {k: v for k, v in whole.items() if not k.startswith(("pixel_values", "image_"))}
        with compress(model, 1.0):
            model.generate(**case.rows[0], max_new_tokens=1)
        second = model.generate(**text, **LOGITS, **{CACHE: first[CACHE]})
    answers = second.sequences[:, whole["input_ids"].shape[1] :]
    assert torch.equal(second.sequences[:, : whole["input_ids"].shape[1]], whole["input_ids"])
    keep = torch.cat([keep, keep.new_ones(4, NEW + 5)], 1)
    real = torch.cat([case.batch["attention_mask"].bool(), keep.new_ones(4, NEW + 5)], 1)
    with torch.no_grad():
        for row, one in enumerate(case.rows):
            conversation = grown(one, whole["input_ids"][row][real[row]][None])
            expected = cut_logits(model, conversation, keep[row][real[row]], answers[row], case.name in PLAIN)
            torch.testing.assert_close(torch.stack(second.logits, 1)[row], expected, atol=case.tolerance, rtol=0)
            assert follows(expected, answers[row], case.suppressed)


def test_direct_calls_token_by_token(case):
    """A cache of one's own, filled by a direct call with two images and continued by direct calls."""
    model, one = case.model, case.rows[1]
    answers, _, _ = answered(case.name)
    steps = {"moe_mm_token_type_ids": torch.zeros(1, 1, dtype=torch.long)} if "moe_mm_token_type_ids" in one else {}
    with compress(model, RATIO), torch.no_grad():
        out, got = model(**one, use_cache=True), []
        for _ in range(NEW):
            scores = out.logits[:, -1].clone()
            scores[:, case.suppressed] = -torch.inf
            got.append(scores.argmax(-1))
            out = model(input_ids=got[-1][None], use_cache=True, **{CACHE: out[CACHE]}, **steps)
    assert torch.equal(torch.cat(got), answers[1])


@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_right_padding_in_a_direct_call(case):
    """Padding keeps its place, counted from the end."""
    tokenizer = case.tiny.processor.tokenizer
    _, first, keep = answered(case.name)
    tokenizer.padding_side = "right"
    try:
        inputs = case.tiny.inputs(words(case.tiny.tag), SMALL)
    finally:
        tokenizer.padding_side = "left"
    right = (inputs["attention_mask"] == 0).sum(1)
    with compress(case.model, RATIO), torch.no_grad():
        logits = case.model(**inputs).logits
    assert logits.shape[1] == max(int(case.real(keep, row).sum()) + int(right[row]) for row in range(4))
    torch.testing.assert_close(logits[range(4), -1 - right], first, atol=case.tolerance, rtol=0)


def test_labels_and_gradients(case):
    """The loss of the same embeddings cut by hand, and its gradients in the tower and in the head."""
    model, one = case.model, case.rows[1]
    labels = one["input_ids"].masked_fill(one["input_ids"] == model.config.image_token_id, -100)
    with compress(model, RATIO) as compression:
        ours = model(**one, labels=labels).loss
        keep = keep_of(model, one, compression.report)[0]
    logits = cut_logits(model, one, keep, one["input_ids"][0, -1:], case.name in PLAIN, everywhere=True)
    theirs = torch.nn.functional.cross_entropy(logits[:-1], labels[0, keep][1:])
    torch.testing.assert_close(ours, theirs, atol=case.tolerance, rtol=0)
    named = dict(model.named_parameters())
    towers = ("visual.", "vision_tower.")
    weights = [model.lm_head.weight, *(v for k, v in named.items() if any(t in k for t in towers) and "att" in k)]
    mine, by_hand = (torch.autograd.grad(loss, weights, allow_unused=True) for loss in (ours, theirs))
    assert sum(g is not None and g.abs().sum() > 0 for g in by_hand) > 2
    for got, expected in zip(mine, by_hand, strict=True):
        if expected is not None:
            torch.testing.assert_close(got, expected, atol=1e-4 * float(expected.abs().max()) + 1e-5, rtol=1e-2)
