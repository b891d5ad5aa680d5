"""A cache filled by a compressed call goes on as the whole conversation would; what cannot go on is refused."""

import pytest
import torch
from transformers import DynamicCache, TextStreamer

from calls import GREEDY, NEW, generate
from globalcom2 import InputError, compress
from globalcom2.hf.cache import CACHE
from tiny import picture


@pytest.mark.parametrize("positions", ["closed", "original"])
@pytest.mark.parametrize("how", ["returned", "given", "direct call"])
def test_a_continued_cache(tiny, positions, how):
    """Three turns on one cache equal one call with the whole conversation."""
    model, inputs = tiny.model, tiny.inputs(["one <image> two"], [picture(168, 168)])
    more = tiny.processor.tokenizer(" and three?", return_tensors="pt")["input_ids"]
    with compress(model, 0.2, positions=positions) as compression, torch.no_grad():
        if how == "direct call":
            cache = model(**inputs, use_cache=True).past_key_values
            ids = inputs["input_ids"]
        else:
            given = (
                {} if how == "returned" else {"past_key_values": DynamicCache(config=model.config.get_text_config())}
            )
            out = generate(model, inputs, return_dict_in_generate=how == "returned", **given)
            cache = out.past_key_values if how == "returned" else given["past_key_values"]
            ids = out.sequences if how == "returned" else out
        for _ in range(2):
            ids = torch.cat([ids, more], 1)
            mask = torch.ones_like(ids)
            whole = generate(model, {**inputs, "input_ids": ids, "attention_mask": mask})
            report = compression.report
            assert len(report) == 1
            ids = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **GREEDY)
            assert torch.equal(ids, whole)
        with pytest.raises(InputError, match="continued, got new images"):
            model.generate(**{**inputs, "input_ids": ids}, past_key_values=cache, **GREEDY)


def test_a_continued_cache_of_a_padded_batch(tiny, batch):
    model = tiny.model
    more = tiny.processor.tokenizer([" and three?"] * 4, return_tensors="pt")["input_ids"]
    with compress(model, 0.2):
        first = generate(model, batch, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], 1)
        mask = torch.cat([batch["attention_mask"], torch.ones(4, NEW + more.shape[1], dtype=torch.long)], 1)
        second = model.generate(input_ids=ids, attention_mask=mask, past_key_values=first.past_key_values, **GREEDY)
        assert torch.equal(second, generate(model, {**batch, "input_ids": ids, "attention_mask": mask}))


def test_a_cache_of_beams_cannot_be_continued(tiny):
    model, inputs = tiny.model, tiny.inputs(["one <image> two"], [picture(84, 84)])
    with compress(model, 0.2):
        out = generate(model, inputs, num_beams=2, num_return_sequences=2, return_dict_in_generate=True)
        with pytest.raises(InputError, match="beams and several returns fill one for each"):
            model.generate(input_ids=out.sequences, past_key_values=out.past_key_values, **GREEDY)


def test_a_cache_that_its_owner_reset_is_forgotten(tiny):
    model = tiny.model
    inputs, text = tiny.inputs(["one <image> two"], [picture(168, 168)]), tiny.inputs(["only words, many words"], None)
    more = tiny.processor.tokenizer(" more", return_tensors="pt")["input_ids"]
    whole = torch.cat([generate(model, text), more], 1)
    expected = model.generate(input_ids=whole, attention_mask=torch.ones_like(whole), **GREEDY)
    cache = DynamicCache(config=model.config.get_text_config())
    with compress(model, 0.2):
        generate(model, inputs, past_key_values=cache)
        cache.crop(-cache.get_seq_length())
        first = generate(model, text, past_key_values=cache)
        ids = torch.cat([first, more], 1)
        got = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache, **GREEDY)
    assert torch.equal(got, expected)


def test_caches_that_cannot_be_continued(tiny):
    model, inputs = (
        tiny.model,
        tiny.inputs(["one <image> two", "six <image> ten"], [picture(168, 168), picture(168, 168, 1)]),
    )
    more = tiny.processor.tokenizer([" and three?"] * 2, return_tensors="pt")["input_ids"]

    def filled():
        out = generate(model, inputs, return_dict_in_generate=True)
        return torch.cat([out.sequences, more], 1), out.past_key_values

    with compress(model, 0.2):
        ids, cache = filled()
        for wrong in (more, inputs["input_ids"], ids.flip(0)):
            with pytest.raises(InputError, match="must begin with the"):
                model.generate(input_ids=wrong, past_key_values=cache, **GREEDY)
        with pytest.raises(InputError, match="got inputs_embeds"):
            model.generate(inputs_embeds=torch.zeros(2, 3, 64), past_key_values=cache, **GREEDY)
        with pytest.raises(InputError, match="continued, got new images"):
            model(**inputs, past_key_values=cache)
        cache.crop(10 - cache.get_seq_length())
        with pytest.raises(InputError, match="it was cropped"):
            model.generate(input_ids=ids, past_key_values=cache, **GREEDY)
        ids, cache = filled()
        cache.reorder_cache(torch.tensor([1, 0]))
        with pytest.raises(InputError, match="reordered or filled again"):
            model.generate(input_ids=ids, past_key_values=cache, **GREEDY)


@pytest.mark.parametrize("chunk", [None, 7])
def test_a_stopped_call_leaves_a_cache_that_can_be_continued(tiny, chunk):
    model, inputs = tiny.model, tiny.inputs(["one <image> two"], [picture(168, 168)])
    more = tiny.processor.tokenizer(" more", return_tensors="pt")["input_ids"]

    class Stop(TextStreamer):
        def __init__(self):
            self.count = 0

        def put(self, value):
            self.count += 1
            if self.count == 2:  # the prompt, then the first new token
                raise KeyboardInterrupt

    cache = DynamicCache(config=model.config.get_text_config())
    with compress(model, 0.2):
        with pytest.raises(KeyboardInterrupt):
            generate(model, inputs, past_key_values=cache, streamer=Stop(), prefill_chunk_size=chunk)
        ids = torch.cat([inputs["input_ids"], more], 1)
        mask = torch.ones_like(ids)
        got = model.generate(input_ids=ids, attention_mask=mask, past_key_values=cache, **GREEDY)
        assert torch.equal(got, generate(model, {**inputs, "input_ids": ids, "attention_mask": mask}))


@pytest.mark.parametrize("positions", ["closed", "original"])
def test_a_continued_cache_with_the_callers_positions(tiny, batch, positions):
    model = tiny.model
    more = tiny.processor.tokenizer([" and three?"] * 4, return_tensors="pt")["input_ids"]
    with compress(model, 0.2, positions=positions):
        first = generate(model, batch, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], 1)
        mask = torch.cat([batch["attention_mask"], torch.ones(4, NEW + more.shape[1], dtype=torch.long)], 1)
        places = (mask.cumsum(1) - 1).clamp(min=0)
        call = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        second = model.generate(**call, past_key_values=first.past_key_values, **GREEDY)
        assert torch.equal(second, generate(model, {**batch, "input_ids": ids, "attention_mask": mask}))


@pytest.mark.parametrize("positions", ["closed", "original"])
@pytest.mark.parametrize("filled_by", ["generate", "direct"])
@pytest.mark.parametrize("given", ["nothing", "mask", "positions", "both"])
def test_rows_that_shrink_by_different_amounts(tiny, positions, filled_by, given):
    """Two unpadded prompts of one length whose images keep different numbers of tokens, continued by a direct call."""
    model = tiny.model
    texts = ["ab <image> c", "ab" + "b" * 30 + " <image> c"]
    inputs = tiny.inputs(texts, [picture(168, 168, 1), picture(60, 200, 2)])
    assert bool(inputs["attention_mask"].all())
    more = tiny.processor.tokenizer([" and three?", " or a four?"], return_tensors="pt")["input_ids"]
    with compress(model, 0.2, positions=positions) as compression, torch.no_grad():
        if filled_by == "generate":
            out = generate(model, inputs, max_new_tokens=1, return_dict_in_generate=True)
            cache, new = out.past_key_values, torch.cat([out.sequences[:, -1:], more], 1)
        else:
            cache, new = model(**inputs, use_cache=True).past_key_values, more
        kept = [image.tokens_after for image in compression.report]
        assert kept[0] != kept[1]
        ids = torch.cat([inputs["input_ids"], new], 1)
        mask = torch.ones_like(ids)
        extra = {"attention_mask": mask} if given in ("mask", "both") else {}
        if given in ("positions", "both"):
            extra["position_ids"] = torch.arange(inputs["input_ids"].shape[1], ids.shape[1]).expand(2, -1)
        got = model(input_ids=new, past_key_values=cache, **extra).logits
        for row in range(2):
            alone = {"input_ids": ids[row][None], "attention_mask": mask[row][None]}
            images = {k: inputs[k][row][None] for k in ("pixel_values", "image_sizes")}
            expected = model(**alone, **images).logits
            torch.testing.assert_close(got[row], expected[0, -new.shape[1] :], atol=2e-5, rtol=0)


@pytest.mark.parametrize("positions", ["closed", "original"])
@pytest.mark.parametrize("numbered", [False, True])
def test_a_decoding_loop_by_hand(tiny, batch, positions, numbered):
    """Direct calls with the caller's growing mask, token by token, equal generate; left padding included."""
    model = tiny.model
    with compress(model, 0.2, positions=positions), torch.no_grad():
        expected = generate(model, batch)[:, -NEW:]
        mask, places = batch["attention_mask"], {}
        if numbered:
            places = {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
        out = model(**batch, **places, use_cache=True)
        cache, tokens = out.past_key_values, []
        for _ in range(NEW):
            logits = out.logits[:, -1]
            logits[:, model.config.image_token_id] = -torch.inf
            tokens.append(logits.argmax(-1, keepdim=True))
            mask = torch.cat([mask, torch.ones(4, 1, dtype=torch.long)], 1)
            if numbered:
                places = {"position_ids": (mask.cumsum(1) - 1)[:, -1:]}
            out = model(input_ids=tokens[-1], attention_mask=mask, past_key_values=cache, use_cache=True, **places)
        assert torch.equal(torch.cat(tokens, 1), expected)
        with pytest.raises(InputError, match="attention_mask must cover"):
            model(input_ids=tokens[-1], attention_mask=mask[:, 3:], past_key_values=cache)


def test_a_cache_may_have_either_of_its_names(tiny):
    """transformers 5.24 calls `past_key_values` `cache` and takes both; older versions know the older name alone."""
    model, inputs = tiny.model, tiny.inputs(["one <image> two"], [picture(168, 168)])
    more = tiny.processor.tokenizer(" more", return_tensors="pt")["input_ids"]
    answers = []
    for name in {CACHE, "past_key_values"}:
        with compress(model, 0.2), torch.no_grad():
            first = generate(model, inputs, return_dict_in_generate=True)
            ids = torch.cat([first.sequences, more], 1)
            answers.append(model.generate(input_ids=ids, **{name: getattr(first, CACHE)}, **GREEDY))
            out = model(**inputs, use_cache=True)
            step = model(input_ids=more[:, :1], **{name: getattr(out, CACHE)})
        assert getattr(step, CACHE).get_seq_length() == out.logits.shape[1] + 1
    assert torch.equal(answers[0], answers[-1])


def test_a_cache_made_uncompressed_passes_through(tiny):
    model, inputs = tiny.model, tiny.inputs(["one <image> two"], [picture(84, 84)])
    more = tiny.processor.tokenizer(" more", return_tensors="pt")["input_ids"]
    answers = []
    for inside in (False, True):
        first = generate(model, inputs, return_dict_in_generate=True)
        ids = torch.cat([first.sequences, more], 1)
        if inside:
            with compress(model, 0.2):
                answers.append(model.generate(input_ids=ids, past_key_values=first.past_key_values, **GREEDY))
        else:
            answers.append(model.generate(input_ids=ids, past_key_values=first.past_key_values, **GREEDY))
    assert torch.equal(*answers)
