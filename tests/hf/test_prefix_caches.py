"""A text prefix in a cache, then a prompt with images on it; and caches in whatever container a call returns."""

import copy
import functools

import pytest
import torch
from transformers import DynamicCache, StaticCache

from calls import GREEDY, NEW, generate
from families import FAMILIES
from globalcom2 import compress
from globalcom2.hf.cache import CACHE
from independent import cut_call, reports_keep
from tiny import picture

PREFIX = "you are a helpful assistant. "


@functools.cache
def built(name):
    return FAMILIES[name]()


@pytest.fixture(params=list(FAMILIES))
def family(request):
    return built(request.param)


def prefilled(model, ids):
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=ids, use_cache=True, **{CACHE: cache})
    return cache


def on_prefix(tiny, texts, images):
    """Prompts that begin with the prefix, unpadded, and the prefix alone."""
    inputs = tiny.inputs([PREFIX + text for text in texts], images)
    alone = tiny.inputs([PREFIX], None)["input_ids"]
    assert torch.equal(inputs["input_ids"][:1, : alone.shape[1]], alone)
    return inputs, alone


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_generate_on_a_prefix_equals_generate_without_a_cache(family, where):
    tiny = family
    inputs, alone = on_prefix(tiny, [f"a {tiny.tag} b"], [picture(168, 84)])
    if where == "outside":
        cache = prefilled(tiny.model, alone)
    with compress(tiny.model, 0.25) as compression:
        expected = generate(tiny.model, inputs)
        report = compression.report
        if where == "inside":
            cache = prefilled(tiny.model, alone)
            assert len(compression.report) == 0
        ours = generate(tiny.model, inputs, **{CACHE: cache})
        assert torch.equal(ours, expected)
        assert compression.report.tokens_after == report.tokens_after < report.tokens_before
        assert all(torch.equal(a.kept, b.kept) for a, b in zip(compression.report, report, strict=True))


def test_a_direct_call_on_a_prefix(family):
    """The call brings new tokens only; its mask may be left out, or covers the cached ones too."""
    tiny = family
    inputs, alone = on_prefix(tiny, [f"a {tiny.tag} b"], [picture(168, 84)])
    count = alone.shape[1]
    aligned = {name: inputs[name][:, count:] for name in ("token_type_ids", "mm_token_type_ids") if name in inputs}
    for mask in (inputs["attention_mask"], None):
        cache = prefilled(tiny.model, alone)
        call = {**inputs, **aligned, "input_ids": inputs["input_ids"][:, count:], "attention_mask": mask, CACHE: cache}
        with compress(tiny.model, 0.25) as compression, torch.no_grad():
            logits = tiny.model(**call).logits
        by_hand = cut_call(tiny.model, inputs, reports_keep(compression))
        positions = (by_hand["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            expected = tiny.model(**by_hand, position_ids=positions).logits
        torch.testing.assert_close(logits[0, -2:], expected[0, -2:], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("positions", ["closed", "original"])
def test_a_padded_batch_on_a_prefix_and_a_conversation_after_it(tiny, positions):
    model = tiny.model
    texts, images = ["a <image> b", "look: <image>?"], [picture(168, 168, 1), picture(60, 200, 2)]
    tails = tiny.inputs(texts, images)
    alone = tiny.inputs([PREFIX], None)["input_ids"].expand(2, -1)
    inputs = {
        **tails,
        "input_ids": torch.cat([alone, tails["input_ids"]], 1),  # padding between prefix and prompt
        "attention_mask": torch.cat([torch.ones_like(alone), tails["attention_mask"]], 1),
    }
    more = tiny.processor.tokenizer([" and three?"] * 2, return_tensors="pt")["input_ids"]
    with compress(model, 0.25, positions=positions) as compression:
        shown = {"output_logits": True, "return_dict_in_generate": True}
        expected = generate(model, inputs, **shown)
        cache = prefilled(model, alone)
        ours = generate(model, inputs, **shown, **{CACHE: cache})
        lost = [entry.tokens_before - entry.tokens_after for entry in compression.report]
        lengths = [int(row.sum()) - n for row, n in zip(inputs["attention_mask"], lost, strict=True)]
        assert 0 < abs(lengths[0] - lengths[1]) < alone.shape[1]  # padding on the left would shift the prefix
        torch.testing.assert_close(torch.stack(ours.logits), torch.stack(expected.logits), atol=5e-5, rtol=1e-4)
        ours = ours.sequences
        ids = torch.cat([ours, more], 1)
        mask = torch.cat(
            [inputs["attention_mask"], torch.ones(2, ids.shape[1] - inputs["input_ids"].shape[1])], 1
        ).long()
        whole = generate(model, {**inputs, "input_ids": ids, "attention_mask": mask})
        assert torch.equal(generate(model, {"input_ids": ids, "attention_mask": mask}, **{CACHE: cache}), whole)


def test_a_static_cache_with_a_prefix(tiny):
    model = tiny.model
    inputs, alone = on_prefix(tiny, ["a <image> b"], [picture(168, 84)])
    cache = StaticCache(config=model.config.get_text_config(), max_cache_len=400)
    with torch.no_grad():
        model(input_ids=alone, use_cache=True, **{CACHE: cache})
    with compress(model, 0.25):
        assert torch.equal(generate(model, inputs, **{CACHE: cache}), generate(model, inputs))


def test_a_cache_with_uncompressed_images_passes_through(tiny):
    model = tiny.model
    first = tiny.inputs(["a <image> b"], [picture(168, 84)])
    plain = model.generate(**first, **GREEDY, return_dict_in_generate=True)
    with compress(model, 0.25) as compression:
        generate(model, first)
        ids = torch.cat([plain.sequences, plain.sequences[:, -2:]], 1)
        generate(model, {"input_ids": ids}, **{CACHE: copy.deepcopy(plain.past_key_values)})
        assert len(compression.report) == 0  # not that of the call before


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("as_tuple", [False, True])
def test_a_cache_in_a_tuple_is_continued_rightly(tiny, own, as_tuple):
    """A padded batch, continued by hand with the caller's own mask and positions, token by token."""
    model = tiny.model
    inputs = tiny.inputs(["a <image> b", "look: <image>?"], [picture(168, 168, 1), picture(60, 200, 2)])
    start = inputs["input_ids"].shape[1]
    with compress(model, 0.25), torch.no_grad():
        expected = generate(model, inputs, output_logits=True, return_dict_in_generate=True)
        cache = DynamicCache(config=model.config.get_text_config()) if own else None
        given = {CACHE: cache} if own else {}
        out = model(**inputs, use_cache=True, return_dict=not as_tuple, **given)
        if not own:
            cache = next(x for x in out if isinstance(x, DynamicCache)) if as_tuple else getattr(out, CACHE)
        mask = inputs["attention_mask"]
        for step in range(NEW - 1):
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            call = {
                "input_ids": expected.sequences[:, start + step][:, None],
                "attention_mask": mask,
                "position_ids": mask.sum(1, keepdim=True) - 1,
                CACHE: cache,
            }
            out = model(**call, return_dict=not as_tuple)
            logits = (out[0] if as_tuple else out.logits)[:, -1]
            torch.testing.assert_close(logits, expected.logits[step + 1], atol=5e-5, rtol=1e-4)


def test_a_report_is_never_that_of_another_call(tiny):
    model, inputs = tiny.model, tiny.inputs(["a <image> b"], [picture(168, 84)])
    with compress(model, 0.25) as compression, torch.no_grad():
        generate(model, inputs)
        short = model.forward(**inputs)
        assert len(compression.report) == 1
        assert torch.equal(short.logits, model(**inputs).logits)
        assert short.logits.shape[1] < inputs["input_ids"].shape[1]
        hidden = model.model(**inputs).last_hidden_state  # goes round the head: not compressed
        assert hidden.shape[1] == inputs["input_ids"].shape[1]
        assert len(compression.report) == 0
        generate(model, inputs)
        embeds = model.get_input_embeddings()(tiny.inputs(["text"], None)["input_ids"])
        model(inputs_embeds=embeds)
        assert len(compression.report) == 0
