"""Calls from within callbacks, calls that fail half-way, and what is left behind by both."""

import copy

import pytest
import torch
from transformers import DynamicCache

from calls import GREEDY, generate
from families import FAMILIES
from globalcom2 import InputError, apply, compress, remove
from globalcom2.hf.active import state_of
from globalcom2.hf.cache import CACHE
from tiny import picture


@pytest.fixture
def image(llava):
    return llava.inputs(["a <image> b"], [picture(168, 168)])


@pytest.fixture
def text(llava):
    return llava.inputs(["no picture"], None)


def length(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits.shape[1]


def within(model, inputs, work):
    """Generate, and do something once in a logits processor."""
    found = []

    def once(ids, scores):
        if not found:
            found.append(work())
        return scores

    out = generate(model, inputs, logits_processor=[once])
    return out, found[0]


def test_an_image_asked_about_from_within_a_call_about_text(tiny, image, text):
    model = tiny.model
    with compress(model, 0.25):
        short, plain = length(model, image), generate(model, text)
        out, found = within(model, text, lambda: length(model, image))
        assert found == short
        assert torch.equal(out, plain)


def test_an_image_asked_about_from_within_a_direct_call_about_text(tiny, image, text):
    model, found = tiny.model, []

    def once(*_):
        hook.remove()
        found.append(length(model, image))

    with compress(model, 0.25), torch.no_grad():
        short, plain = length(model, image), model(**text).logits
        hook = model.model.language_model.layers[0].register_forward_hook(once)
        assert torch.equal(model(**text).logits, plain)
    assert found == [short]


def test_a_block_entered_within_a_call(tiny, image):
    model = tiny.model

    def inner():
        with compress(model, 0.1) as compression:
            found = length(model, image)
        return found, len(compression.report)

    with compress(model, 0.1):
        short = length(model, image)
    for ratio in (1.0, 0.25):
        with compress(model, ratio):
            plain = generate(model, image)
            out, found = within(model, image, inner)
        assert found == (short, 1)
        assert torch.equal(out, plain)


def test_a_cache_continued_within_a_shortened_call(tiny, image):
    model = tiny.model
    batch = tiny.inputs(["a <image> b", "look: <image>?"], [picture(168, 168, 1), picture(60, 200, 2)])
    token = torch.tensor([[60], [61]])
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)

    @torch.no_grad()
    def step():
        cache = getattr(model(**batch, use_cache=True), CACHE)
        return model(input_ids=token, attention_mask=mask, **{CACHE: cache}).logits

    with compress(model, 0.25):
        expected = step()
        plain = generate(model, image)
        out, found = within(model, image, step)
    torch.testing.assert_close(found, expected)
    assert torch.equal(out, plain)


@pytest.mark.parametrize("kind", [list, tuple])
def test_plain_lists_of_processors(tiny, image, kind):
    seen = []

    def processor(ids, scores):
        seen.append(ids.shape[1])
        return scores

    with compress(tiny.model, 0.25):
        generate(tiny.model, image, logits_processor=kind([processor]))
    assert seen[0] == image["input_ids"].shape[1]


def test_a_call_that_fails_before_its_prefill_leaves_the_cache_as_it_was(tiny, image):
    model = tiny.model
    prefix = tiny.inputs(["hello there "], None)["input_ids"]
    inputs = tiny.inputs(["hello there <image> b"], [picture(168, 168)])
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=prefix, use_cache=True, **{CACHE: cache})
    with compress(model, 0.25):
        with pytest.raises(ValueError, match="nonsense"):
            generate(model, inputs, nonsense=1, **{CACHE: cache})
        assert torch.equal(generate(model, inputs, **{CACHE: cache}), generate(model, inputs))


def test_original_positions_of_a_prompt_that_ends_with_an_image(tiny):
    """Its last token may be dropped: what follows is numbered from the full prompt all the same."""
    model = tiny.model
    inputs = tiny.inputs(["what? <image>"], [picture(168, 168)])
    more = torch.tensor([[60, 61, 62]])
    longer = {**inputs, "input_ids": torch.cat([inputs["input_ids"], more], 1), "attention_mask": None}
    with compress(model, 0.1, positions="original") as compression, torch.no_grad():
        cache = getattr(model(**inputs, use_cache=True), CACHE)
        assert not compression.report[0].kept[-1]
        step = model(input_ids=more, **{CACHE: cache}).logits
        torch.testing.assert_close(step, model(**longer).logits[:, -3:], atol=2e-5, rtol=1e-4)
        with pytest.raises(
            InputError, match=r"must not end with a visual token that is dropped.*or use positions='closed'"
        ):
            generate(model, inputs)


def test_own_positions_go_on_after_padding_on_the_right(tiny):
    """generate numbers new tokens from a row's last column, padding or not."""
    inputs = tiny.inputs(["a <image> b", "look: <image>? and so on"], [picture(168, 168, 1), picture(60, 200, 2)])
    shown = inputs["attention_mask"].bool()
    turn = torch.stack([torch.cat([s.nonzero()[:, 0], (~s).nonzero()[:, 0]]) for s in shown])
    call = {**inputs, "input_ids": inputs["input_ids"].gather(1, turn), "attention_mask": shown.gather(1, turn).long()}
    call["position_ids"] = torch.arange(turn.shape[1]).expand(2, -1)
    with compress(tiny.model, 0.25) as compression:
        short = compression.shorten_call(tiny.model, call).call
    lost = torch.tensor([e.tokens_before - e.tokens_after for e in compression.report])
    assert torch.equal(short["position_ids"][:, -1], turn.shape[1] - 1 - lost)


def test_layers_that_do_not_skip_padding_get_none_after_a_prefix():
    tiny = FAMILIES["lfm2_vl"]()
    model = tiny.model
    tails = tiny.inputs([f"{tiny.tag} b", f"{tiny.tag} b"], [picture(300, 200, 1), picture(90, 90, 2)])
    prefix = tiny.inputs(["hello there "], None)["input_ids"].expand(2, -1)
    cache = DynamicCache(config=model.config.get_text_config())
    with torch.no_grad():
        model(input_ids=prefix, use_cache=True, **{CACHE: cache})
    inputs = {
        **tails,
        "input_ids": torch.cat([prefix, tails["input_ids"]], 1),
        "attention_mask": torch.cat([torch.ones_like(prefix), tails["attention_mask"]], 1),
    }
    with compress(model, 0.25), pytest.raises(InputError, match="do not skip padding, got 2 prompts"):
        generate(model, inputs, **{CACHE: cache})


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2, "do_sample": True}], ids=str)
def test_several_returns_where_nothing_was_kept(options):
    tiny = FAMILIES["idefics3"]()
    inputs = tiny.inputs([f"a {tiny.tag} b"], [picture(90, 90)])
    with compress(tiny.model, 0.01, exact=False) as compression:
        out = tiny.model.generate(**inputs, **{**GREEDY, **options})
    assert compression.report.tokens_after == 0
    assert len(out) == options.get("num_return_sequences", 1)


def test_a_deep_copy_does_not_follow_later_blocks(tiny, image):
    model = tiny.model
    with compress(model, 0.25):
        short, clone = length(model, image), copy.deepcopy(model)
        with compress(model, 0.1):
            assert length(clone, image) == short > length(model, image)
        assert length(clone, image) == short
    assert length(clone, image) == image["input_ids"].shape[1]
    with compress(model, 0.1):
        assert length(clone, image) == image["input_ids"].shape[1]


def test_blocks_over_an_applied_model_take_their_taps_back(tiny):
    model = tiny.model
    apply(model, 0.1)
    for number in range(5):
        with compress(model, 0.25, layer=number % 2):
            pass
        apply(model, 0.1)
    assert len(state_of(model).tapped) == 1
    remove(model)
