"""compress / apply / remove against independent paths: cut embeddings, row-by-row runs, the unpatched model."""

import copy
import pickle
import sys
import threading

import pytest
import torch
from PIL import Image
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from globalcom2 import InputError, UnsupportedModelError, apply, compress, remove
from globalcom2.core.layout import kept_places
from globalcom2.hf.cache import CACHE
from globalcom2.hf.compression import current
from independent import cut_embeddings, one_row, reports_keep
from tiny import footprint, picture

NEW = 6
GREEDY = {"max_new_tokens": NEW, "do_sample": False}
IMAGE_ROWS = [0, 0, 1, 3]


def generate(model, inputs, **kwargs):
    return model.generate(**inputs, **{**GREEDY, **kwargs})


# ------------------------------------------------------------------ identity and equality


@pytest.mark.parametrize("method", ["globalcom2", "uniform", "random"])
def test_ratio_one_is_the_unpatched_model_bit_for_bit(tiny, batch, method):
    model = tiny.model
    options = {"output_logits": True, "return_dict_in_generate": True}
    plain, plain_forward = generate(model, batch, **options), model(**batch).logits
    with compress(model, 1.0, method) as compression:
        ours, ours_forward = generate(model, batch, **options), model(**batch).logits
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))
    assert torch.equal(plain_forward, ours_forward)
    assert len(compression.report) == 0


@pytest.mark.parametrize("ratio", [0.1, 0.4])
@pytest.mark.parametrize("options", [
    {}, {"positions": "original"}, {"newlines": "all"}, {"newlines": "none"}, {"thumbnail_weight": 2.0}, {"score": "received"}, {"exact": False}, {"score": "attention"}, {"score": "similarity"},
    {"method": "uniform"}, {"method": "random", "seed": 3}, {"layer": 0}, {"alpha": 0.2, "crop_mass": "max", "temperature": 3.0},
], ids=str)  # fmt: skip
def test_equal_to_cut_embeddings(tiny, batch, ratio, options):
    model = tiny.model
    with compress(model, ratio, **options) as compression:
        ours = generate(model, batch, output_logits=True, return_dict_in_generate=True)
        forward = model(**batch).logits
    assert torch.equal(ours.sequences[:, : batch["input_ids"].shape[1]], batch["input_ids"])
    keep = reports_keep(compression)
    embeds, mask, places = cut_embeddings(model, batch, keep, original_positions=options.get("positions") == "original")
    with torch.no_grad():
        theirs = model(inputs_embeds=embeds, attention_mask=mask, position_ids=places).logits
    torch.testing.assert_close(ours.logits[0], theirs[:, -1], atol=2e-5, rtol=0)
    real = mask.bool()
    with torch.no_grad():
        closed = (
            theirs
            if options.get("positions") == "original"
            else model(inputs_embeds=embeds, attention_mask=mask).logits
        )
    torch.testing.assert_close(forward[real], closed[real], atol=2e-5, rtol=0)
    if options.get("positions") != "original":
        their_tokens = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
        assert torch.equal(ours.sequences[:, -NEW:], their_tokens[:, -NEW:])


def test_original_positions_equal_the_full_model_with_the_dropped_tokens_masked(tiny):
    model = tiny.model
    inputs = tiny.inputs(["what? <image> well"], [picture(168, 168)])
    with compress(model, 0.2, positions="original") as compression:
        ours = generate(model, inputs, output_logits=True, return_dict_in_generate=True)
    mask = inputs["attention_mask"].clone()
    mask[inputs["input_ids"] == model.config.image_token_id] = reports_keep(compression).long()
    ids, steps = inputs["input_ids"], []
    for step in range(NEW):
        places = torch.arange(ids.shape[1])[None]
        with torch.no_grad():
            grown = torch.cat([mask, torch.ones(1, step, dtype=mask.dtype)], 1)
            steps.append(
                model(**{**inputs, "input_ids": ids, "attention_mask": grown}, position_ids=places).logits[:, -1]
            )
        ids = torch.cat([ids, ours.sequences[:, inputs["input_ids"].shape[1] + step][:, None]], 1)
    for got, expected in zip(ours.logits, steps, strict=True):
        torch.testing.assert_close(got, expected, atol=2e-5, rtol=0)


def test_a_mixed_batch_equals_row_by_row(tiny, batch):
    model = tiny.model
    with compress(model, 0.2) as compression:
        together = generate(model, batch)
        assert [image.row for image in compression.report] == IMAGE_ROWS
        entries = list(compression.report)
        for row in range(4):
            alone = generate(model, one_row(batch, row, IMAGE_ROWS))
            assert torch.equal(together[row, -NEW:], alone[0, -NEW:])
            mine = [entry for entry in entries if entry.row == row]
            assert all(torch.equal(a.kept, b.kept) for a, b in zip(mine, compression.report, strict=True))


# ------------------------------------------------------------------ counts


def test_counts_follow_from_size_and_ratio_alone(tiny):
    for size in ((168, 168), (400, 100), (100, 400), (250, 250), (64, 90), (30, 30)):
        totals = set()
        for seed in range(12):
            inputs = tiny.inputs(["<image>"], [picture(*size, seed)])
            with compress(tiny.model, 0.15) as compression, torch.no_grad():
                tiny.model(**inputs)
            totals.add(compression.report.tokens_after)
            expected = kept_places(compression.report[0].layout, 0.15)
        assert totals == {expected} == {int(0.15 * compression.report.tokens_before + 0.5)}


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (2, 400), (400, 2)])
def test_strips_and_dots(tiny, size):
    """Whatever the stock model accepts: crops of a strip may hold no token at all, only newlines."""
    inputs = tiny.inputs(["<image> x"], [Image.new("RGB", size)])
    for options in ({}, {"exact": False}, {"newlines": "all"}, {"method": "uniform"}):
        with compress(tiny.model, 0.25, **options) as compression:
            generate(tiny.model, inputs)
        kept = compression.report[0]
        assert 0 < kept.tokens_after < kept.tokens_before
        if not options:
            assert kept.tokens_after == kept_places(kept.layout, 0.25)


def test_newlines_of_the_published_code_are_kept_and_not_counted(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    with compress(tiny.model, 0.25, newlines="all") as compression, torch.no_grad():
        tiny.model(**inputs)
    entry = compression.report[0]
    assert entry.keep.newlines.all()
    assert entry.tokens_after == round(0.25 * (36 + 4 * 36)) + 12
    assert kept_places(entry.layout, 0.25, "all") == entry.tokens_after


def test_thumbnail_order_changes_the_order_of_the_thumbnail_alone(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    features = {}
    for order in ("raster", "score"):
        with compress(tiny.model, 0.25, thumbnail_order=order) as compression:
            call = compression.shorten_call(tiny.model, dict(inputs)).call
        features[order] = call["mm_encoder_outputs"]["image"].pooler_output[0]
    count = int(compression.report[0].keep.thumbnail.sum())
    assert torch.equal(features["raster"][count:], features["score"][count:])
    scores = compression.report[0].thumbnail_scores
    kept = compression.report[0].keep.thumbnail.nonzero().flatten()
    by_score = kept[scores[kept].argsort(descending=True)]
    plain = tiny.model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output[0]
    torch.testing.assert_close(features["score"][:count], plain[by_score])
    torch.testing.assert_close(features["raster"][:count], plain[kept])


# ------------------------------------------------------------------ features of generate


@pytest.mark.parametrize("kwargs", [
    {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}, {"cache_implementation": "static"},
    {"prefill_chunk_size": 7}, {"use_cache": False}, {"min_new_tokens": 4},
], ids=str)  # fmt: skip
def test_a_batch_under_features_of_generate(tiny, batch, kwargs):
    """Against the plain model on embeddings cut by hand, row by row; beams are where batches go wrong silently."""
    model = tiny.model
    with compress(model, 0.2) as compression:
        ours = generate(model, batch, **kwargs)
        keep = reports_keep(compression)
    returns = kwargs.get("num_return_sequences", 1)
    assert torch.equal(ours[:, : batch["input_ids"].shape[1]], batch["input_ids"].repeat_interleave(returns, 0))
    embeds, mask, _ = cut_embeddings(model, batch, keep)
    plain = {k: v for k, v in kwargs.items() if k not in ("prefill_chunk_size", "use_cache")}
    for row in range(4):
        real = mask[row].bool()
        theirs = model.generate(
            inputs_embeds=embeds[row, real][None], attention_mask=mask[row, real][None], **{**GREEDY, **plain}
        )
        assert torch.equal(ours[row * returns : (row + 1) * returns, -NEW:], theirs[:, -NEW:])


@pytest.mark.parametrize(
    "kwargs", [{"do_sample": True, "temperature": 2.0}, {"do_sample": True, "num_return_sequences": 4}], ids=str
)
def test_sampling(tiny, kwargs):
    model, inputs = tiny.model, tiny.inputs(["a <image> b"], [picture(168, 84)])
    torch.manual_seed(5)
    with compress(model, 0.2) as compression:
        ours = generate(model, inputs, **kwargs)
    embeds, mask, _ = cut_embeddings(model, inputs, reports_keep(compression))
    torch.manual_seed(5)
    theirs = model.generate(inputs_embeds=embeds, attention_mask=mask, **{**GREEDY, **kwargs})
    assert torch.equal(ours[:, -NEW:], theirs[:, -NEW:])


@pytest.mark.parametrize("assistance", ["prompt lookup", "assistant model"])
def test_assisted_decoding_gives_the_greedy_answer(tiny, assistance):
    model, inputs = tiny.model, tiny.inputs(["a <image> b"], [picture(168, 84)])
    kwargs = (
        {"prompt_lookup_num_tokens": 2} if assistance == "prompt lookup" else {"assistant_model": copy.deepcopy(model)}
    )
    with compress(model, 0.2):
        plain = generate(model, inputs, max_new_tokens=12)
        assisted = generate(model, inputs, max_new_tokens=12, **kwargs)
    assert torch.equal(plain, assisted)


def test_a_repetition_penalty_in_a_batch_equals_row_by_row(tiny, batch):
    with compress(tiny.model, 0.2):
        together = generate(tiny.model, batch, repetition_penalty=1.5)
        for row in range(4):
            alone = generate(tiny.model, one_row(batch, row, IMAGE_ROWS), repetition_penalty=1.5)
            assert torch.equal(together[row, -NEW:], alone[0, -NEW:])


@pytest.mark.parametrize("where", ["keyword", "config", "model", "config and model"])
def test_max_length_counts_the_callers_prompt(tiny, where):
    model, inputs = tiny.model, tiny.inputs(["<image>"], [picture(168, 168)])
    length = inputs["input_ids"].shape[1] + 5
    kwargs = {"do_sample": False}
    stored = model.generation_config.max_length
    if where == "keyword":
        kwargs["max_length"] = length
    elif where == "config":
        kwargs = {
            "generation_config": GenerationConfig(
                max_length=length, do_sample=False, suppress_tokens=[model.config.image_token_id]
            )
        }
    else:
        model.generation_config.max_length = length
        if where == "config and model":
            kwargs = {"generation_config": GenerationConfig(do_sample=False)}
    try:
        with compress(model, 0.1):
            assert model.generate(**inputs, **kwargs).shape[1] == length
        assert model.generate(**inputs, **kwargs).shape[1] == length
    finally:
        model.generation_config.max_length = stored


def test_the_callers_processors_criteria_and_streamer_see_the_callers_prompt(tiny):
    model, inputs = tiny.model, tiny.inputs(["say <image> it"], [picture(168, 168)])
    ids, seen = inputs["input_ids"], []

    class Spy(LogitsProcessor, StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            seen.append(input_ids.clone())
            return (
                scores
                if scores is not None and scores.ndim == 2 and scores.shape[1] > 200
                else torch.zeros(len(input_ids), dtype=torch.bool)
            )

    class Put(TextStreamer):
        def __init__(self):
            self.values = []

        def put(self, value):
            self.values.append(value)

        def end(self):
            pass

    streamer = Put()
    with compress(model, 0.1):
        out = generate(model, inputs, logits_processor=LogitsProcessorList([Spy()]), stopping_criteria=StoppingCriteriaList([Spy()]),
                       streamer=streamer, prefix_allowed_tokens_fn=lambda row, x: seen.append(x[None]) or list(range(200)))  # fmt: skip
    assert len(seen) == 3 * NEW
    assert all(torch.equal(x[:, : ids.shape[1]], ids) for x in seen)
    assert torch.equal(streamer.values[0], ids)
    assert torch.equal(torch.cat(streamer.values[1:]), out[0, -NEW:])


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


def test_a_call_from_inside_generate_is_compressed_too(tiny):
    model, inputs, seen = tiny.model, tiny.inputs(["<image>"], [picture(168, 168)]), []

    class Verify(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(model(**inputs).logits.shape[1])
            return scores

    with compress(model, 0.2):
        generate(model, inputs, max_new_tokens=1, logits_processor=LogitsProcessorList([Verify()]))
        assert seen == [model(**inputs).logits.shape[1]]


def test_leaving_a_block_twice_does_nothing(tiny):
    compression = compress(tiny.model, 0.2)
    compression.__enter__()
    with compress(tiny.model, 0.3):
        for _ in range(2):
            compression.__exit__(None, None, None)
    compression.__exit__(None, None, None)


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


def test_original_positions_without_a_cache(tiny):
    model, inputs = tiny.model, tiny.inputs(["one <image> two"], [picture(168, 84)])
    with compress(model, 0.2, positions="original"), torch.no_grad():
        with pytest.raises(InputError, match="use_cache must not be False"):
            generate(model, inputs, use_cache=False)
        expected = model(**inputs).logits
        bare = {k: v for k, v in inputs.items() if k != "attention_mask"}
        torch.testing.assert_close(model(**bare, use_cache=False).logits, expected, atol=2e-5, rtol=0)


def test_given_positions_are_closed_up(tiny):
    model, inputs = (
        tiny.model,
        tiny.inputs(["one <image> two", "<image> x <image>"], [picture(168, 84, s) for s in range(3)]),
    )
    with compress(model, 0.2), torch.no_grad():
        expected = model(**inputs).logits
        places = (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)
        torch.testing.assert_close(
            model(**inputs, position_ids=places).logits[:, -3:], expected[:, -3:], atol=2e-5, rtol=0
        )
        one = {k: v[:1] for k, v in inputs.items()}
        assert model(**one, position_ids=torch.arange(one["input_ids"].shape[1])[None]).logits.shape[0] == 1


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


def test_padding_without_a_mask_is_inferred_as_generate_does(tiny, batch):
    with compress(tiny.model, 0.2):
        given = generate(tiny.model, batch)
        inferred = tiny.model.generate(**{k: v for k, v in batch.items() if k != "attention_mask"}, **GREEDY)
        positional = tiny.model.generate(
            batch["input_ids"], **{k: v for k, v in batch.items() if k != "input_ids"}, **GREEDY
        )
    assert torch.equal(given, inferred)
    assert torch.equal(given, positional)
    model, bare = copy.deepcopy(tiny.model), {k: v for k, v in batch.items() if k != "attention_mask"}
    model.generation_config.pad_token_id = None
    with compress(model, 0.2):
        pad = tiny.processor.tokenizer.pad_token_id
        assert torch.equal(model.generate(**bare, pad_token_id=pad, **GREEDY), given)


# ------------------------------------------------------------------ direct calls


@pytest.mark.parametrize("side", ["left", "right"])
def test_direct_call_with_labels(tiny, side):
    model, processor = tiny.model, tiny.processor
    processor.tokenizer.padding_side = side
    inputs = tiny.inputs(
        ["a <image> bcd", "a longer text <image> and more"], [picture(168, 168, 1), picture(84, 168, 2)]
    )
    processor.tokenizer.padding_side = "left"
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    labels = labels.masked_fill(inputs["attention_mask"] == 0, -100)
    labels[range(2), inputs["attention_mask"].long().argmax(1)] = -100  # nothing before it to predict it
    with compress(model, 0.2) as compression, torch.no_grad():
        ours = model(**inputs, labels=labels)
        positional = model(inputs["input_ids"], inputs["pixel_values"], inputs["image_sizes"], inputs["attention_mask"])
    embeds, mask, _ = cut_embeddings(model, inputs, reports_keep(compression))
    with torch.no_grad():
        theirs = model(inputs_embeds=embeds, attention_mask=mask).logits
    losses = []
    for row in range(2):
        wanted = [int(x) for x, m in zip(labels[row], inputs["attention_mask"][row], strict=True) if m and x != -100]
        texts = [
            i for i, x in enumerate(_short_ids(model, inputs, compression, row)) if x != model.config.image_token_id
        ][1:]
        logits = theirs[row][mask[row].bool()]
        losses += [
            torch.nn.functional.cross_entropy(logits[i - 1], torch.tensor(x))
            for i, x in zip(texts, wanted, strict=True)
        ]
    torch.testing.assert_close(ours.loss, torch.stack(losses).mean(), atol=2e-5, rtol=0)
    torch.testing.assert_close(positional.logits, ours.logits)


def _short_ids(model, inputs, compression, row):
    kept = iter(torch.cat([image.kept for image in compression.report if image.row == row]).tolist())
    pairs = zip(inputs["input_ids"][row].tolist(), inputs["attention_mask"][row].tolist(), strict=True)
    return [x for x, m in pairs if m and (x != model.config.image_token_id or next(kept))]


def test_gradients_flow_through_everything_that_is_kept(tiny):
    """A compressed training step gives the gradients of the same embeddings cut by hand."""
    inputs = tiny.inputs(["a <image> bcd"], [picture(168, 84)])
    model, other = copy.deepcopy(tiny.model), copy.deepcopy(tiny.model)
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == model.config.image_token_id, -100)
    with compress(model, 0.3) as compression:
        model(**inputs, labels=labels).loss.backward()
    keep = reports_keep(compression)
    ids = inputs["input_ids"][0]
    keeps = torch.ones_like(ids, dtype=torch.bool).masked_scatter(ids == model.config.image_token_id, keep)
    features = other.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output[0]
    embeds = other.get_input_embeddings()(inputs["input_ids"]).masked_scatter(
        (ids == model.config.image_token_id)[None, :, None], features
    )
    other(inputs_embeds=embeds[:, keeps], labels=labels[:, keeps]).loss.backward()
    names = ["lm_head.weight", "model.multi_modal_projector.linear_1.weight", "model.image_newline",
             "model.vision_tower.embeddings.patch_embedding.weight"]  # fmt: skip
    ours, theirs = dict(model.named_parameters()), dict(other.named_parameters())
    for name in names:
        assert theirs[name].grad.abs().sum() > 0
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, atol=1e-5, rtol=1e-4)


def test_embeddings_instead_of_ids_pass_through(tiny):
    model, inputs = tiny.model, tiny.inputs(["a <image> b"], [picture(84, 84)])
    embeds, mask, _ = cut_embeddings(model, inputs, torch.ones(1000, dtype=torch.bool))
    plain = model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY)
    with compress(model, 0.1) as compression:
        assert torch.equal(model.generate(inputs_embeds=embeds, attention_mask=mask, **GREEDY), plain)
    assert len(compression.report) == 0


# ------------------------------------------------------------------ around the model


def test_nested_blocks_and_apply(tiny):
    model, inputs = tiny.model, tiny.inputs(["<image>"], [picture(168, 168)])

    def visual():
        with torch.no_grad():
            return model(**inputs).logits.shape[1]

    full = visual()
    apply(model, 0.5)
    half = visual()
    with compress(model, 0.1):
        tenth = visual()
        with compress(model, 0.25, layer=0) as inner:
            quarter = visual()
        assert inner.report.retention_ratio == 0.25
        assert visual() == tenth
        remove(model)  # what apply did; the block stays
        assert visual() == tenth
    assert visual() == full
    assert full > half > quarter > tenth
    apply(model, 0.5)
    apply(model, 0.1)  # replaces
    assert visual() == tenth
    assert current(model).settings.retention_ratio == 0.1
    remove(model)
    remove(model)
    assert current(model) is None


def test_an_exception_leaves_the_model_clean(tiny):
    before = footprint(tiny.model)
    with pytest.raises(ZeroDivisionError), compress(tiny.model, 0.1):
        raise ZeroDivisionError
    assert footprint(tiny.model) == before


def test_deepcopy_inside_the_block(tiny):
    model, inputs = tiny.model, tiny.inputs(["<image>"], [picture(168, 168)])
    plain = generate(model, inputs)
    with compress(model, 0.1) as compression:
        ours = generate(model, inputs)
        clone = copy.deepcopy(model)
        clone.lm_head.weight.data.neg_()  # a copy must not call the original
        assert not torch.equal(generate(clone, inputs), ours)
        clone.lm_head.weight.data.neg_()
        assert torch.equal(generate(clone, inputs), ours)
        assert len(compression.report) == 1
    assert torch.equal(generate(clone, inputs), plain)
    with compress(clone, 0.1):
        assert current(model) is None
        assert torch.equal(generate(clone, inputs), ours)
    assert "generate" not in clone.__dict__
    assert not clone._forward_pre_hooks


def test_a_deep_copy_of_an_applied_model_is_applied_too(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    model = copy.deepcopy(tiny.model)
    plain = generate(model, inputs)
    apply(model, 0.1)
    ours, clone = generate(model, inputs), copy.deepcopy(model)
    remove(model)
    assert torch.equal(generate(model, inputs), plain)
    assert torch.equal(generate(clone, inputs), ours)
    assert current(clone).settings.retention_ratio == 0.1
    remove(clone)
    assert torch.equal(generate(clone, inputs), plain)
    assert not clone._forward_pre_hooks


def test_threads_enter_and_leave_blocks(tiny):
    model, failed = tiny.model, []
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work():
        try:
            for _ in range(300):
                with compress(model, 0.2):
                    pass
        except Exception as error:
            failed.append(error)

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    finally:
        sys.setswitchinterval(interval)
    assert not failed


def test_a_tap_that_cannot_be_put_on_leaves_nothing_behind(tiny):
    compression = compress(tiny.model, 0.1)
    compression.attention = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedModelError, match="attention interface, got Linear"), compression:
        pass


def test_threads_share_a_model(tiny, batch):
    model = tiny.model
    inputs = [one_row(batch, row, IMAGE_ROWS) for row in (0, 1, 3)] * 2
    with compress(model, 0.2):
        expected = [generate(model, x, num_beams=2) for x in inputs]
        results = [None] * len(inputs)

        def work(i):
            results[i] = generate(model, inputs[i], num_beams=2)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


def test_peft(tiny):
    peft = pytest.importorskip("peft")
    inputs = tiny.inputs(["a <image> b"], [picture(168, 84)])
    model = copy.deepcopy(tiny.model)
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    ).eval()
    with compress(wrapped, 0.2) as compression:
        unmerged = wrapped.generate(**inputs, **GREEDY)
        assert len(compression.report) == 1
    merged = wrapped.merge_and_unload()
    with compress(merged, 0.2):
        assert torch.equal(generate(merged, inputs), unmerged)


def test_torch_compile(tiny):
    model, inputs = copy.deepcopy(tiny.model), tiny.inputs(["a <image> b"], [picture(168, 84)])
    with compress(model, 0.2):
        expected, logits = generate(model, inputs), model(**inputs).logits
    compiled = torch.compile(model, backend="eager")
    with compress(compiled, 0.2) as compression, torch.no_grad():
        assert torch.equal(compiled.generate(**inputs, **GREEDY), expected)
        torch.testing.assert_close(compiled(**inputs).logits, logits, atol=2e-5, rtol=0)
        assert len(compression.report) == 1
    model.model.vision_tower = torch.compile(model.model.vision_tower, backend="eager")
    for _ in range(2):
        with compress(model, 0.2):
            assert torch.equal(generate(model, inputs), expected)


def test_pipeline(tiny):
    from transformers import pipeline

    pipe = pipeline("image-text-to-text", model=tiny.model, processor=tiny.processor)
    with compress(tiny.model, 0.2) as compression:
        out = pipe(images=[picture(168, 84)], text="<image> what", generate_kwargs=GREEDY, return_full_text=False)
        assert compression.report.tokens_before > compression.report.tokens_after > 0
        inputs = tiny.inputs(["<image> what"], [picture(168, 84)])
        text = tiny.processor.decode(
            generate(tiny.model, inputs)[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    assert out[0]["generated_text"] == text


def test_bfloat16_and_eager(tiny, batch):
    model = copy.deepcopy(tiny.model)
    model.set_attn_implementation("eager")
    with compress(model, 0.2) as compression:
        eager = generate(model, batch)
        keep = reports_keep(compression)
    with compress(tiny.model, 0.2) as compression:
        assert torch.equal(generate(tiny.model, batch), eager)
        assert torch.equal(reports_keep(compression), keep)
    half = copy.deepcopy(tiny.model).to(torch.bfloat16)
    inputs = {**batch, "pixel_values": batch["pixel_values"].to(torch.bfloat16)}
    with compress(half, 0.2) as compression:
        logits = generate(half, inputs, output_logits=True, return_dict_in_generate=True).logits[0]
        half_keep = reports_keep(compression)
    assert half_keep.sum() == keep.sum()
    embeds, mask, _ = cut_embeddings(half, inputs, half_keep)
    with torch.no_grad():
        expected = half(inputs_embeds=embeds.to(torch.bfloat16), attention_mask=mask).logits[:, -1]
    torch.testing.assert_close(logits, expected.float(), atol=0.06, rtol=0.05)


def test_save_inside_a_block_saves_a_plain_model(tiny, tmp_path):
    with compress(tiny.model, 0.1):
        tiny.model.save_pretrained(tmp_path)
    loaded = type(tiny.model).from_pretrained(tmp_path)
    inputs = tiny.inputs(["<image>"], [picture(84, 84)])
    assert torch.equal(loaded(**inputs).logits, tiny.model(**inputs).logits)
    assert "globalcom2" not in (tmp_path / "config.json").read_text()


# ------------------------------------------------------------------ bad input


def test_prompts_and_images_that_do_not_fit(tiny, batch):
    model = tiny.model
    text = tiny.inputs(["no tag"], None)
    image = tiny.inputs(["<image>"], [picture(84, 84)])
    cases = [
        ({**image, "input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}, r"got \[0\] per prompt"),
        (
            {**batch, "pixel_values": batch["pixel_values"][:3], "image_sizes": batch["image_sizes"][:3]},
            "image placeholders",
        ),
        ({**batch, "image_sizes": batch["image_sizes"][:3]}, "must describe the same images, got 4 and 3"),
        ({**batch, "image_sizes": batch["image_sizes"].flip(0)}, "image placeholders"),
        ({k: v for k, v in image.items() if k != "image_sizes"}, "image_sizes must be given"),
        ({**image, "attention_mask": image["attention_mask"][:, 1:]}, "attention_mask must have the shape"),
        ({**image, "image_sizes": (84, 84)}, "image_sizes must be"),
        ({**image, "pixel_values": image["pixel_values"][:, :1]}, r"must hold \[3\] views"),
        ({**image, "vision_feature_select_strategy": "full"}, "in a compressed call, got 'full'"),
    ]
    for inputs, message in cases:
        with compress(model, 0.1) as compression:
            with pytest.raises(InputError, match=message):
                model.generate(**inputs, **GREEDY)
            with pytest.raises(InputError, match=message):
                model(**inputs)
            assert len(compression.report) == 0


def test_what_only_a_direct_call_takes(tiny):
    model, image = tiny.model, tiny.inputs(["a <image> b"], [picture(84, 84)])
    with compress(model, 0.3) as compression, torch.no_grad():
        with pytest.raises(InputError, match="logits_to_keep must be a number"):
            model(**image, logits_to_keep=torch.tensor([0]))
        assert model(**image, logits_to_keep=2).logits.shape[1] == 2
        masked = image["attention_mask"].clone()
        places = (image["input_ids"][0] == model.config.image_token_id).nonzero().flatten()
        masked[0, places[::2]] = 0  # the caller hides every other image token
        model(**{**image, "attention_mask": masked})
        assert not compression.report[0].kept[::2].any()
        assert compression.report[0].kept.any()


def test_max_length_within_the_prompt(tiny):
    inputs = tiny.inputs(["<image>"], [picture(84, 84)])
    with compress(tiny.model, 0.1), pytest.raises(InputError, match=r"more than the prompt's \d+ tokens, got 10"):
        tiny.model.generate(**inputs, max_length=10)


def test_the_report_is_that_of_the_last_call(tiny):
    inputs, text = tiny.inputs(["<image>"], [picture(84, 84)]), tiny.inputs(["text"], None)
    with compress(tiny.model, 0.1) as compression, torch.no_grad():
        generate(tiny.model, inputs)
        assert len(compression.report) == 1
        generate(tiny.model, text)
        assert len(compression.report) == 0
        tiny.model(**inputs)
        assert len(compression.report) == 1
        tiny.model(**text)
        assert len(compression.report) == 0


def test_nan_scores_are_reported(tiny):
    model = copy.deepcopy(tiny.model)
    model.model.vision_tower.encoder.layers[-2].self_attn.k_proj.weight.data.fill_(float("nan"))
    with compress(model, 0.1), pytest.raises(InputError, match="must be finite"):
        generate(model, tiny.inputs(["<image>"], [picture(84, 84)]))


@pytest.mark.parametrize(("features", "layer"), [(-2, -2), (-1, -1), (3, -2), ([1, -2, -3], -2)])
def test_scores_are_read_in_the_layer_of_the_features(tiny, features, layer):
    """Whatever is in the layers after it."""
    model = copy.deepcopy(tiny.model)
    model.config.vision_feature_layer = features
    model.model.multi_modal_projector.linear_1 = torch.nn.LazyLinear(64)
    for block in model.model.vision_tower.encoder.layers[4 + layer + 1 :]:
        block.self_attn.k_proj.weight.data.fill_(float("nan"))

    def kept(**options):
        with torch.no_grad(), compress(model, 0.3, **options) as compression:
            model(**tiny.inputs(["<image>"], [picture(168, 168)]))
        return compression.report[0].kept

    assert torch.equal(kept(), kept(layer=layer))
    assert not torch.equal(kept(), kept(layer=layer - 1))


def test_the_published_code_reads_the_last_layer(tiny):
    def kept(**options):
        with torch.no_grad(), compress(tiny.model, 0.3, exact=False, **options) as compression:
            tiny.model(**tiny.inputs(["<image>"], [picture(168, 168)]))
        return compression.report[0].kept

    assert torch.equal(kept(), kept(layer=-1))
    assert not torch.equal(kept(), kept(layer=-2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((25,), r"Did you mean 0.25\?"),
        ((0.1, "globalcomm2"), "Did you mean 'globalcom2'"),
        ((0.1, "globalcom2", {"positions": "closd"}), "Did you mean 'closed'"),
        ((0.1, "globalcom2", {"score": "logit"}), "Did you mean 'logits'"),
        ((0.1, "globalcom2", {"newlines": "some"}), "newlines must be one of"),
        ((0.1, "globalcom2", {"thumbnail_order": "best"}), "thumbnail_order must be one of"),
        ((0.1, "globalcom2", {"tau": 1}), "option of method 'globalcom2'"),
        ((0.1, "uniform", {"temperature": 1}), "option of method 'uniform'"),
        ((0.1, "globalcom2", {"layer": 9}), r"layer must be in \[-4, 3\]"),
    ],
)
def test_bad_arguments_before_anything_is_patched(tiny, arguments, message):
    *positional, options = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    with pytest.raises(InputError, match=message):
        compress(tiny.model, *positional, **options)


def test_unsupported_models(tiny):
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(UnsupportedModelError, match=r"\(.*llava_next.*\), got model_type 'llama'"):
        compress(LlamaForCausalLM(LlamaConfig(vocab_size=10, **small)), 0.1)
    with pytest.raises(UnsupportedModelError, match="got Linear"):
        compress(torch.nn.Linear(2, 2), 0.1)
    full = copy.deepcopy(tiny.model)
    full.config.vision_feature_select_strategy = "full"
    with pytest.raises(UnsupportedModelError, match="'full' keeps"):
        compress(full, 0.1)


def test_reports_are_plain_data(tiny, batch):
    import json

    with compress(tiny.model, 0.2) as compression:
        generate(tiny.model, batch)
    report = compression.report
    assert set(report.seconds) == {"tower", "selection", "projection", "generation"}
    assert json.loads(json.dumps(report.to_dict()))["images"][1]["grid"] == [3, 1]
    assert report.tokens_after == sum(int(i.kept.sum()) for i in report)
    assert pickle.loads(pickle.dumps(report.to_dict())) == report.to_dict()
    assert "4 images" in repr(report)
