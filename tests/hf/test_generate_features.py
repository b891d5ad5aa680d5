"""What `generate` offers, under compression: beams, sampling, static caches, processors, criteria, streamers."""

import copy

import pytest
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from calls import GREEDY, IMAGE_ROWS, NEW, generate
from globalcom2 import compress
from independent import cut_embeddings, one_row, reports_keep
from tiny import picture


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


def test_a_call_from_inside_generate_is_compressed_too(tiny):
    model, inputs, seen = tiny.model, tiny.inputs(["<image>"], [picture(168, 168)]), []

    class Verify(LogitsProcessor):
        def __call__(self, input_ids, scores):
            seen.append(model(**inputs).logits.shape[1])
            return scores

    with compress(model, 0.2):
        generate(model, inputs, max_new_tokens=1, logits_processor=LogitsProcessorList([Verify()]))
        assert seen == [model(**inputs).logits.shape[1]]


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
