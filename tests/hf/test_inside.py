"""Visual tokens that leave inside the language model, against runs in which they are removed by hand."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers import LlavaNextForConditionalGeneration

import globalcom2
from calls import GREEDY, NEW, generate
from globalcom2 import compress
from independent import reports_keep
from inside_by_hand import greedy_by_hand, row_of, run_by_hand
from tiny import Tiny, finished, footprint, picture

FASTV = ({"inside": "fastv"}, (2,), 0.5)
SETTINGS = [
    FASTV,
    ({"inside": "fastv", "inside_layer": 1, "inside_share": 0.3}, (1,), 0.3),
    ({"inside": "pyramiddrop"}, (1, 3, 4), 0.5),
]
"""Arguments of compress, the layers after which tokens leave in a language model of five layers, and the share."""


@pytest.fixture(scope="module")
def deep(llava) -> Tiny:
    """The shared model with five layers in its language model."""
    config = copy.deepcopy(llava.model.config)
    config.text_config.num_hidden_layers = 5
    torch.manual_seed(0)
    model = finished(LlavaNextForConditionalGeneration(config), llava.processor.tokenizer)
    made = Tiny(model, llava.processor, llava.tag)
    model.generate(**made.inputs(["<image>"], [picture(84, 84)]), max_new_tokens=2)
    return made


@pytest.fixture(autouse=True)
def clean(deep):
    before = footprint(deep.model)
    yield
    assert footprint(deep.model) == before, "the model was left patched"


def rows_by_hand(model, batch, compression, drops, share):
    """Each row's run by hand, on the tokens that the prompt kept."""
    keep = reports_keep(compression)
    rows = [row_of(model, batch, row, keep) for row in range(len(batch["input_ids"]))]
    return [run_by_hand(model, embeds, visual, drops, share) for embeds, visual in rows]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize(("options", "drops", "share"), SETTINGS, ids=["fastv", "early fastv", "pyramiddrop"])
def test_logits_equal_a_run_with_the_tokens_removed_by_hand(deep, batch, ratio, options, drops, share, attention):
    model = deep.model
    model.set_attn_implementation(attention)
    try:
        with compress(model, ratio, **options) as compression, torch.no_grad():
            ours = model(**batch)
    finally:
        model.set_attn_implementation("sdpa")
    for row, theirs in enumerate(rows_by_hand(model, batch, compression, drops, share)):
        mine = ours.logits[row, -len(theirs.logits) :]
        torch.testing.assert_close(mine, theirs.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
@pytest.mark.parametrize(("options", "drops", "share"), [SETTINGS[0], SETTINGS[2]], ids=["fastv", "pyramiddrop"])
def test_generate_equals_a_greedy_loop_by_hand(deep, batch, ratio, options, drops, share):
    model, new = deep.model, 4
    with compress(model, ratio, **options) as compression:
        ours = generate(model, batch, max_new_tokens=new)
        again = generate(model, batch, max_new_tokens=new, use_cache=False)
    assert torch.equal(ours, again)
    keep = reports_keep(compression)
    for row in (1, 2):  # one image and padding before it; none
        embeds, visual = row_of(model, batch, row, keep)
        theirs = greedy_by_hand(model, embeds, visual, drops, share, new, model.generation_config.suppress_tokens)
        assert ours[row, -new:].tolist() == theirs


@pytest.mark.parametrize(("options", "drops", "share"), SETTINGS, ids=["fastv", "early fastv", "pyramiddrop"])
def test_what_stays_has_the_most_attention_of_an_eager_run(deep, options, drops, share):
    """Against transformers' own attention weights, which are asked for in this test alone."""
    inputs = deep.inputs(["what? <image> well"], [picture(168, 168, 1)])
    with compress(deep.model, 1.0, **options) as compression, torch.no_grad():
        deep.model(**inputs)
    eager = copy.deepcopy(deep.model)
    eager.set_attn_implementation("eager")
    with torch.no_grad():
        weights = eager(**inputs, output_attentions=True).attentions[drops[0] - 1][0].mean(0)[-1]
    mine = weights[inputs["input_ids"][0] == eager.config.image_token_id]
    best = mine.topk(int(share * len(mine) + 0.5)).indices
    assert compression.report[0].kept_inside[0].nonzero().flatten().tolist() == sorted(best.tolist())


def test_what_stays_in_every_drop_is_what_stays_by_hand(deep, batch):
    options, drops, share = SETTINGS[2]
    with compress(deep.model, 0.5, **options) as compression, torch.no_grad():
        deep.model(**batch)
    found = rows_by_hand(deep.model, batch, compression, drops, share)
    for row, theirs in enumerate(found):
        entries = [entry for entry in compression.report if entry.row == row]
        for number, places in enumerate(theirs.sets):
            assert sum(entry.tokens_inside[number] for entry in entries) == len(places)
    one = [entry for entry in compression.report if entry.row == 1]  # one image: places can be compared
    kept = one[0].kept.nonzero().flatten()
    first = int((row_of(deep.model, batch, 1, reports_keep(compression))[1]).nonzero()[0])
    for number, mask in enumerate(one[0].kept_inside):
        assert mask[kept].nonzero().flatten().tolist() == [place - first for place in found[1].sets[number]]


def test_later_layers_of_the_cache_hold_what_is_left(deep):
    inputs = deep.inputs(["what? <image> well"], [picture(168, 168, 1)])
    text = int((inputs["input_ids"] != deep.model.config.image_token_id).sum())
    with compress(deep.model, 1.0, inside="pyramiddrop") as compression:
        out = deep.model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
    visual = compression.report.tokens_before
    left = [visual, *compression.report.tokens_inside]
    expected = [left[0], left[1], left[1], left[2], left[3]]
    assert [layer.get_seq_length() for layer in cache_in(out).layers] == [n + text + NEW - 1 for n in expected]
    assert left[1:] == [int(0.5 * left[0] + 0.5), int(0.5 * left[1] + 0.5), int(0.5 * left[2] + 0.5)]


def cache_in(out):
    return out.cache if getattr(out, "cache", None) is not None else out.past_key_values


def test_everything_kept_is_the_unpatched_model_bit_for_bit(deep, batch):
    plain = generate(deep.model, batch, output_logits=True, return_dict_in_generate=True)
    with compress(deep.model, 1.0, inside="fastv", inside_share=1.0) as compression:
        ours = generate(deep.model, batch, output_logits=True, return_dict_in_generate=True)
    assert torch.equal(plain.sequences, ours.sequences)
    assert all(torch.equal(a, b) for a, b in zip(plain.logits, ours.logits, strict=True))
    assert compression.report.tokens_inside == []


def test_a_share_that_drops_nothing_equals_the_unpatched_model(deep):
    """So near to 1 that nothing leaves, but through the hooks."""
    inputs = deep.inputs(["a <image> b", "<image> and text"], [picture(168, 168, 1), picture(60, 200, 2)])
    with torch.no_grad():
        plain = deep.model(**inputs).logits[:, -1]
        with compress(deep.model, 1.0, inside="pyramiddrop", inside_share=0.9999) as compression:
            ours = deep.model(**inputs).logits[:, -1]
    assert compression.report.tokens_inside == [compression.report.tokens_before] * 3
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=0)


def test_rows_of_one_length_with_unequal_numbers_of_visual_tokens(deep):
    """Without padding there is no mask, until more tokens leave one row than the other."""
    pictures = [picture(168, 168, 1), picture(84, 84, 2)]
    alone = [deep.inputs(["<image>"], [own])["input_ids"].shape[1] for own in pictures]
    texts = ["<image> well", "<image> well" + "." * (alone[0] - alone[1])]
    inputs = deep.inputs(texts, pictures)
    assert bool(inputs["attention_mask"].all())
    with compress(deep.model, 1.0, inside="fastv") as compression:
        ours = generate(deep.model, inputs)
    keep = reports_keep(compression)
    for row in range(2):
        embeds, visual = row_of(deep.model, inputs, row, keep)
        suppressed = deep.model.generation_config.suppress_tokens
        assert ours[row, -NEW:].tolist() == greedy_by_hand(deep.model, embeds, visual, (2,), 0.5, NEW, suppressed)


def test_masked_places_after_a_prompt_stay_and_decide_nothing(deep, batch):
    """As of completions that a trainer has padded: the prompt's last token is before them."""
    model = deep.model
    after = torch.tensor([2, 3, 1, 0])
    hidden = torch.arange(3) >= 3 - after[:, None]
    ids = torch.cat([batch["input_ids"], torch.full((4, 3), 40)], 1)
    longer = {**batch, "input_ids": ids, "attention_mask": torch.cat([batch["attention_mask"], (~hidden).long()], 1)}
    with compress(model, 0.5, inside="pyramiddrop") as compression, torch.no_grad():
        ours = model(**longer).logits
    for row, theirs in enumerate(rows_by_hand(model, longer, compression, (1, 3, 4), 0.5)):
        end = ours.shape[1] - int(after[row])
        torch.testing.assert_close(ours[row, end - len(theirs.logits) : end], theirs.logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("last", [0, 3])
@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_full_logits_stand_at_the_callers_places(deep, batch, ratio, last):
    more = {"logits_to_keep": last} if last else {}
    with torch.no_grad():
        with compress(deep.model, ratio, inside="fastv") as compression:
            short = deep.model(**batch).logits
        with compress(deep.model, ratio, inside="fastv", logits="full"):
            full = deep.model(**batch, **more).logits
    places = batch["input_ids"].shape[1]
    assert full.shape[1] == (last or places)
    keep, by_hand = reports_keep(compression), rows_by_hand(deep.model, batch, compression, (2,), 0.5)
    for row, theirs in enumerate(by_hand):
        kept = batch["attention_mask"][row].bool()
        image = batch["input_ids"][row] == deep.model.config.image_token_id
        first = int((batch["input_ids"][:row] == deep.model.config.image_token_id).sum())
        kept[image] = keep[first : first + int(image.sum())]
        where = kept.nonzero().flatten()[theirs.places]  # in the caller's prompt
        before = torch.searchsorted(where, torch.arange(places - full.shape[1], places), right=True) - 1
        expected = theirs.logits[before.clamp(min=0)].masked_fill((before < 0)[:, None], 0.0)
        torch.testing.assert_close(full[row], expected, atol=1e-4, rtol=0)
    assert short.shape[1] < places


def test_steps_by_hand_go_on_from_the_cache(deep, batch):
    """Direct calls, token by token, and generate give the same tokens; so does a prompt without padding."""
    for inputs in (batch, deep.inputs(["what? <image> well"], [picture(168, 168, 1)])):
        with compress(deep.model, 0.5, inside="pyramiddrop"), torch.no_grad():
            expected = generate(deep.model, inputs)[:, -NEW:]
            out = deep.model(**inputs, use_cache=True)
            mask, tokens = inputs["attention_mask"], []
            for _ in range(NEW):
                logits = out.logits[:, -1].clone()
                logits[:, deep.model.generation_config.suppress_tokens] = float("-inf")
                tokens.append(logits.argmax(-1, keepdim=True))
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
                out = deep.model(input_ids=tokens[-1], attention_mask=mask, past_key_values=cache_in(out))
        assert torch.equal(torch.cat(tokens, 1), expected)


def test_a_conversation_goes_on_and_equals_one_prompt(deep):
    """A second turn from the cache, in which the first turn's tokens still decide, against a run by hand."""
    inputs = deep.inputs(["what? <image> well"], [picture(168, 168, 1)])
    with compress(deep.model, 1.0, inside="fastv") as compression:
        first = deep.model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        more = torch.cat([first.sequences, torch.tensor([[40, 41, 42]])], 1)
        second = deep.model.generate(input_ids=more, past_key_values=cache_in(first), **GREEDY)
    embeds, visual = row_of(deep.model, inputs, 0, reports_keep(compression))
    last = embeds.shape[1] - 1
    told = more[0, inputs["input_ids"].shape[1] :].tolist()
    for token in (*told, *second[0, -NEW:].tolist()):
        logits = run_by_hand(deep.model, embeds, visual, (2,), 0.5, last).logits[-1].clone()
        if embeds.shape[1] > last + len(told):
            logits[deep.model.generation_config.suppress_tokens] = float("-inf")
            assert int(logits.argmax()) == token
        embeds = torch.cat([embeds, deep.model.get_input_embeddings()(torch.tensor([[token]]))], 1)
        visual = torch.cat([visual, torch.tensor([False])])


def test_beams_equal_row_by_row_beams(deep, batch):
    beams = {"num_beams": 3, "max_new_tokens": NEW, "do_sample": False}
    texts = ["a <image> b", "look at this: <image>?"]
    pictures = [picture(168, 168, 1), picture(60, 200, 2)]
    with compress(deep.model, 0.5, inside="pyramiddrop"):
        together = deep.model.generate(**deep.inputs(texts, pictures), **beams)
        for row in range(2):
            alone = deep.model.generate(**deep.inputs(texts[row : row + 1], pictures[row : row + 1]), **beams)
            assert torch.equal(together[row, -NEW:], alone[0, -NEW:])


def test_a_mixed_batch_equals_row_by_row(deep, batch):
    with compress(deep.model, 0.5, inside="fastv"):
        together = generate(deep.model, batch)[:, -NEW:]
        texts = ["look: <image>?", "no picture here"]
        alone = [
            generate(deep.model, deep.inputs(texts[:1], [picture(400, 100, 3)])),
            generate(deep.model, deep.inputs(texts[1:], None)),
        ]
    for row, own in zip((1, 2), alone, strict=True):
        assert torch.equal(together[row], own[0, -NEW:])


def test_an_exception_leaves_the_model_as_it_was(deep, batch):
    """The fixture compares; here the exception comes from a layer behind the drop."""

    def fail(*args):
        raise RuntimeError("stop")

    plain = generate(deep.model, batch)
    with compress(deep.model, 0.5, inside="fastv"):
        hook = deep.model.get_decoder().layers[3].register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="stop"):
            generate(deep.model, batch)
        with pytest.raises(RuntimeError, match="stop"):
            deep.model(**batch)
        hook.remove()
        assert not any(layer._forward_pre_hooks for layer in deep.model.get_decoder().layers)
    assert torch.equal(generate(deep.model, batch), plain)


def test_nested_blocks_and_callers_own_calls(deep, batch):
    """The inner block wins; a call that a stopping criterion makes inside loses no tokens."""
    inputs = deep.inputs(["what? <image> well"], [picture(168, 168, 1)])
    seen, text = [], deep.inputs(["only words"], None)
    with torch.no_grad():
        plain = deep.model(**text).logits

    def stop(ids, scores, **kwargs):
        seen.append(deep.model(**text).logits)
        return torch.zeros(len(ids), dtype=torch.bool)

    with compress(deep.model, 0.5, inside="fastv") as outer:
        expected = generate(deep.model, inputs)
        with compress(deep.model, 0.5) as inner:
            without = generate(deep.model, inputs, return_dict_in_generate=True)
        again = generate(deep.model, inputs, stopping_criteria=[stop])
    assert len({layer.get_seq_length() for layer in cache_in(without).layers}) == 1
    assert inner.report.tokens_inside == []
    assert outer.report.tokens_inside
    assert torch.equal(expected, again)
    assert all(torch.equal(own, plain) for own in seen)


def test_a_call_within_a_call_has_drops_of_its_own(deep):
    inputs = deep.inputs(["what? <image> well"], [picture(168, 168, 1)])
    others = deep.inputs(["<image> and more"], [picture(60, 200, 2)])
    with compress(deep.model, 0.5, inside="pyramiddrop"):
        alone = generate(deep.model, others)
    found = []

    def stop(ids, scores, **kwargs):
        with compress(deep.model, 0.5, inside="pyramiddrop") as inner:
            found.append(generate(deep.model, others))
            assert len(inner.report.tokens_inside) == 3
        return torch.ones(len(ids), dtype=torch.bool)

    with compress(deep.model, 0.5, inside="fastv"):
        generate(deep.model, inputs, stopping_criteria=[stop])
    assert torch.equal(found[0], alone)


def test_threads_do_not_disturb_each_other(deep, batch):
    settings = [{"inside": "fastv"}, {"inside": "pyramiddrop"}, {}]

    def asked(options):
        with compress(deep.model, 0.5, **options):
            return [generate(deep.model, batch, max_new_tokens=2) for _ in range(2)]

    alone = [asked(options)[0] for options in settings]
    with ThreadPoolExecutor(len(settings)) as pool:
        together = list(pool.map(asked, settings))
    for expected, found in zip(alone, together, strict=True):
        assert all(torch.equal(expected, own) for own in found)


def test_a_deep_copy_made_in_the_block_follows_it(deep, batch):
    with compress(deep.model, 0.5, inside="fastv"):
        clone = copy.deepcopy(deep.model)
        assert torch.equal(generate(clone, batch), generate(deep.model, batch))
    assert torch.equal(generate(clone, batch), generate(deep.model, batch))


def test_apply_and_what_its_config_says(deep, batch):
    with compress(deep.model, 0.5, "globalcom2:inside=fastv,inside_share=0.25") as expected:
        ours = generate(deep.model, batch)
    globalcom2.apply(deep.model, 0.5, inside="fastv", inside_share=0.25)
    assert torch.equal(generate(deep.model, batch), ours)
    assert globalcom2.current(deep.model).report.tokens_inside == expected.report.tokens_inside
    globalcom2.remove(deep.model)
