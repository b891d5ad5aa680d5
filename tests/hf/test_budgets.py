"""`max_visual_tokens`, `max_visual_tokens_per_call` and `retention_ratio="auto"` in calls of models."""

import functools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import StaticCache

from calls import generate
from families import FAMILIES
from globalcom2 import CompressionConfig, DataError, InputError, compress
from globalcom2.hf.cache import CACHE
from independent import cut_embeddings, reports_keep
from tiny import picture

NAMES = ["llava_next", "llava_onevision", "internvl", "idefics3", "smolvlm", "lfm2_vl"]
sizes = st.tuples(st.integers(20, 320), st.integers(20, 320))
few = settings(max_examples=6, deadline=None)


@functools.cache
def built(name):
    return FAMILIES[name]()


def call_of(tiny, images):
    """Two prompts: the first image alone, the others together."""
    texts = [f"a {tiny.tag} b", " ".join([tiny.tag] * (len(images) - 1)) + " c"]
    return tiny.inputs(texts[: len(images)], images)


def report_of(tiny, inputs, *args, **options):
    with torch.no_grad(), compress(tiny.model, *args, **options) as compression:
        tiny.model(**inputs)
    return compression.report


# Counts


@few
@given(
    st.sampled_from(NAMES),
    st.lists(sizes, min_size=1, max_size=3),
    st.integers(1, 150),
    st.sampled_from([None, "from_2"]),
)
def test_every_image_keeps_the_limit_or_all(name, drawn, limit, newlines):
    tiny = built(name)
    inputs = call_of(tiny, [picture(*size, n) for n, size in enumerate(drawn)])
    report = report_of(tiny, inputs, max_visual_tokens=limit, newlines=newlines)
    assert [entry.tokens_after for entry in report] == [min(limit, entry.tokens_before) for entry in report]
    for entry in report:
        assert (entry.retention_ratio == 1.0) == (entry.tokens_before <= limit)
        assert not (entry.keep.crops & ~entry.layout.valid).any()


@few
@given(st.sampled_from(NAMES), st.lists(sizes, min_size=1, max_size=3), st.integers(3, 400), st.integers(1, 150))
def test_all_images_of_a_call_keep_the_limit_or_all(name, drawn, total, limit):
    tiny = built(name)
    inputs = call_of(tiny, [picture(*size, n) for n, size in enumerate(drawn)])
    report = report_of(tiny, inputs, max_visual_tokens_per_call=total)
    assert report.tokens_after == min(total, report.tokens_before)
    both = report_of(tiny, inputs, max_visual_tokens_per_call=total, max_visual_tokens=limit)
    assert both.tokens_after == min(total, sum(min(limit, entry.tokens_before) for entry in both))
    assert max(entry.tokens_after for entry in both) <= limit


@pytest.mark.parametrize("method", ["uniform", "random", "globalcom2"])
def test_images_of_one_layout_may_get_different_budgets(tiny, method):
    inputs = tiny.inputs(["<image><image>", "<image>"], [picture(168, 168, n) for n in range(3)])
    report = report_of(tiny, inputs, None, method, max_visual_tokens_per_call=100)
    assert [entry.tokens_after for entry in report] == [34, 33, 33]
    for n, entry in enumerate(report):
        alone = report_of(tiny, tiny.inputs(["<image>"], [picture(168, 168, n)]), entry.retention_ratio, method)[0]
        if method != "random":
            assert torch.equal(alone.kept, entry.kept)
        assert alone.tokens_after == entry.tokens_after


def test_the_tighter_of_ratio_and_limit_holds(tiny):
    inputs = call_of(tiny, [picture(84, 84), picture(252, 252)])
    few_left, many = report_of(tiny, inputs, 0.25)
    both = report_of(tiny, inputs, 0.25, max_visual_tokens=30)
    assert few_left.tokens_after < 30 < many.tokens_after
    assert [entry.tokens_after for entry in both] == [few_left.tokens_after, 30]
    assert torch.equal(both[0].kept, few_left.kept)
    assert both[0].retention_ratio == 0.25


# Answers


def test_answers_are_those_of_the_ratio_that_the_limit_comes_to(tiny):
    for size in ((168, 168), (400, 100)):
        inputs = tiny.inputs(["look: <image>?"], [picture(*size)])
        with compress(tiny.model, max_visual_tokens=21) as limited:
            ours = generate(tiny.model, inputs, output_logits=True, return_dict_in_generate=True)
        with compress(tiny.model, 21 / limited.report.tokens_before) as plain:
            theirs = generate(tiny.model, inputs, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(limited.report[0].kept, plain.report[0].kept)
        assert torch.equal(ours.sequences, theirs.sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours.logits, theirs.logits, strict=True))


@pytest.mark.parametrize("options", [{"max_visual_tokens": 90}, {"max_visual_tokens_per_call": 150}], ids=str)
def test_mixed_sizes_equal_embeddings_cut_by_hand(tiny, batch, options):
    with compress(tiny.model, **options) as compression:
        ours = tiny.model(**batch).logits
    report = compression.report
    assert any(entry.retention_ratio == 1.0 for entry in report) == ("max_visual_tokens" in options)
    embeds, mask, _ = cut_embeddings(tiny.model, batch, reports_keep(compression))
    with torch.no_grad():
        theirs = tiny.model(inputs_embeds=embeds, attention_mask=mask).logits
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["llava_next", "llava_onevision", "internvl", "idefics3"])
def test_images_that_fit_pass_unshortened_bit_for_bit(name):
    tiny = built(name)
    inputs = call_of(tiny, [picture(168, 84, n) for n in range(3)])
    plain = generate(tiny.model, inputs, output_logits=True, return_dict_in_generate=True)
    for options in ({"max_visual_tokens": 2000}, {"max_visual_tokens_per_call": 2000}):
        with compress(tiny.model, **options) as compression:
            ours = generate(tiny.model, inputs, output_logits=True, return_dict_in_generate=True)
        assert torch.equal(ours.sequences, plain.sequences)
        assert all(torch.equal(a, b) for a, b in zip(ours.logits, plain.logits, strict=True))
        report = compression.report
        assert len(report) == 3
        assert report.tokens_after == report.tokens_before
        assert {entry.retention_ratio for entry in report} == {1.0}
        assert all(entry.scores is None for entry in report)  # the call went through as it is


def test_a_whole_image_beside_a_short_one_keeps_even_newlines_that_end_no_token(tiny):
    """A strip, after another image: its newlines stand in no line with tokens."""
    strip = Image.new("RGB", (2, 400), "red")
    inputs = tiny.inputs(["<image> x", "<image> y"], [picture(252, 252), strip])
    report = report_of(tiny, inputs, max_visual_tokens=200)
    short, whole = report
    assert (short.tokens_after, whole.tokens_after) == (200, whole.tokens_before)
    assert int((whole.layout.slots < 0).sum()) > 0
    with compress(tiny.model, max_visual_tokens=200) as compression:
        call = compression.shorten_call(tiny.model, dict(inputs)).call
        ours = torch.cat(list(call["mm_encoder_outputs"]["image"].pooler_output))[200:]
    plain = tiny.model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output
    torch.testing.assert_close(ours, plain[1], atol=1e-5, rtol=0)


# auto


def asked_for(entry, floor, ceiling):
    """An image's ratio, from its reported scores in numpy."""
    valid = entry.layout.valid.numpy()
    crops = entry.scores.double().numpy() if len(valid) else entry.thumbnail_scores.double().numpy()[None]
    real = [own[mask] for own, mask in zip(crops, valid if len(valid) else [slice(None)], strict=True)]
    centred = np.concatenate([own - own.mean() for own in real if len(own)])
    p = np.exp(1.5 * centred / centred.std())
    p /= p.sum()
    share = np.exp(-(p * np.log(p)).sum()) / len(p) * np.exp(1.5**2 / 2)
    return round(floor + (ceiling - floor) * min(1.0, share), 4)


@pytest.mark.parametrize("name", NAMES)
def test_auto_stays_within_floor_and_ceiling_and_a_batch_equals_single_calls(name):
    tiny = built(name)
    images = [picture(168, 84, 0), picture(60, 300, 1), picture(168, 84, 2)]
    options = {"auto_floor": 0.1, "auto_ceiling": 0.6}
    report = report_of(tiny, call_of(tiny, images), "auto", **options)
    assert all(0.1 <= entry.retention_ratio <= 0.6 for entry in report)
    assert [entry.retention_ratio for entry in report] == [asked_for(entry, 0.1, 0.6) for entry in report]
    assert report.retention_ratio == "auto"
    if name == "llava_onevision":  # it cuts an image only where it is a prompt's only one
        return
    for entry, image in zip(report, images, strict=True):
        (alone,) = report_of(tiny, tiny.inputs([tiny.tag], [image]), "auto", **options)
        assert torch.equal(alone.kept, entry.kept)
        assert alone.retention_ratio == entry.retention_ratio
        (fixed,) = report_of(tiny, tiny.inputs([tiny.tag], [image]), entry.retention_ratio)
        assert torch.equal(fixed.kept, entry.kept)


def test_auto_follows_the_scores(tiny):
    """One token that stands out needs the floor; scores without any order ask for the ceiling."""
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    found = []
    for lifted in (0.0, 1e4):
        with compress(tiny.model, "auto") as compression:
            views = compression.saliency.views

            def changed(*args, lifted=lifted, views=views):
                for layout, members, own, thumbnails in views(*args):
                    own.scores[:, 1, 7] += lifted
                    yield layout, members, own, thumbnails

            compression.saliency.views = changed
            with torch.no_grad():
                tiny.model(**inputs)
        found.append(compression.report[0])
    plain, one = found
    assert 0.05 < one.retention_ratio < 0.06 < 0.15 < plain.retention_ratio <= 0.25
    assert one.tokens_after < plain.tokens_after


def test_scores_that_are_not_finite_are_told_with_auto_too(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    inputs["pixel_values"][0, 1, 0, 5, 5] = float("nan")
    with torch.no_grad(), compress(tiny.model, "auto"), pytest.raises(DataError, match="scores must be finite, got"):
        tiny.model(**inputs)


def test_auto_under_limits(tiny):
    inputs = call_of(tiny, [picture(168, 84, 0), picture(252, 252, 1), picture(168, 84, 2)])
    free = report_of(tiny, inputs, "auto")
    limit = min(entry.tokens_after for entry in free)
    tight = report_of(tiny, inputs, "auto", max_visual_tokens=limit)
    assert [entry.tokens_after for entry in tight] == [limit] * 3
    assert report_of(tiny, inputs, "auto", max_visual_tokens_per_call=20).tokens_after == 20
    assert report_of(tiny, inputs, "auto", max_visual_tokens_per_call=10**6).tokens_after == free.tokens_after


def test_equal_floor_and_ceiling_are_a_ratio(tiny, batch):
    auto = report_of(tiny, batch, "auto", auto_floor=0.2, auto_ceiling=0.2)
    for entry, other in zip(auto, report_of(tiny, batch, 0.2), strict=True):
        assert torch.equal(entry.kept, other.kept)


# Settings and reports


def test_a_limit_takes_the_place_of_the_ratio(tiny):
    for config in (
        CompressionConfig(max_visual_tokens=9),
        CompressionConfig(method="globalcom2:max_visual_tokens=9"),
        CompressionConfig(0.3).replace(max_visual_tokens=9),
        CompressionConfig(0.3).replace(method="globalcom2:max_visual_tokens=9"),
        compress(tiny.model, max_visual_tokens=9).settings,
        compress(tiny.model, preset="default", max_visual_tokens=9).settings,
    ):
        assert (config.retention_ratio, config.max_visual_tokens) == (1.0, 9)
        assert not config.keeps_all
        assert CompressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert CompressionConfig(0.3).replace(retention_ratio=0.2, max_visual_tokens=9).retention_ratio == 0.2
    assert CompressionConfig(0.2, max_visual_tokens=9).replace(max_visual_tokens=8).retention_ratio == 0.2
    assert CompressionConfig().retention_ratio == 0.1
    assert CompressionConfig(1.0).keeps_all


def test_reports_say_what_was_asked_and_what_each_image_got(tiny):
    inputs = call_of(tiny, [picture(84, 84), picture(252, 252)])
    report = report_of(tiny, inputs, max_visual_tokens=37, max_visual_tokens_per_call=70)
    told = json.loads(json.dumps(report.to_dict()))
    assert (told["retention_ratio"], told["max_visual_tokens"], told["max_visual_tokens_per_call"]) == (1.0, 37, 70)
    assert [image["tokens_after"] for image in told["images"]] == [35, 35]
    assert [round(image["retention_ratio"] * image["tokens_before"]) for image in told["images"]] == [35, 35]
    assert repr(report).startswith(
        "Report('globalcom2', retention_ratio=1, max_visual_tokens=37, max_visual_tokens_per_call=70, 2 images, "
    )
    auto = report_of(tiny, inputs, "auto")
    assert repr(auto).startswith("Report('globalcom2', retention_ratio=auto, 2 images, ")
    assert auto.to_dict()["retention_ratio"] == "auto"
    assert "max 37 tokens, max 70 tokens a call" in report._repr_html_()
    assert "ratio auto" in auto._repr_html_()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_visual_tokens": 0}, "max_visual_tokens must be a whole number of tokens from 1 on, got 0"),
        ({"max_visual_tokens": True}, "max_visual_tokens must be a whole number .* got True"),
        ({"max_visual_tokens": 12.0}, "got 12.0. For a fraction of the tokens there is retention_ratio"),
        ({"max_visual_tokens_per_call": -3}, "max_visual_tokens_per_call must be a whole number"),
        ({"max_visual_tokens": 9, "exact": False}, "exact must be True with max_visual_tokens, got False"),
        ({"max_visual_tokens": 9, "newlines": "all"}, "newlines must not be 'all' with max_visual_tokens"),
        (
            {"max_visual_tokens_per_call": 9, "preset": "published"},
            "exact must be True with max_visual_tokens_per_call",
        ),
        ({"retention_ratio": "auto", "exact": False}, "exact must be True with retention_ratio='auto'"),
        ({"retention_ratio": "outo"}, "retention_ratio must be a number in .0, 1. or 'auto', got 'outo'"),
        ({"retention_ratio": "auto", "auto_floor": 0.3}, "auto_floor must be at most auto_ceiling, got 0.3 and 0.25"),
        ({"retention_ratio": "auto", "auto_ceiling": 25}, "auto_ceiling must be in .0, 1., got 25. Did you mean 0.25"),
        ({"retention_ratio": "auto", "auto_floor": 0}, "auto_floor must be in .0, 1., got 0"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_patched(tiny, options, message):
    with pytest.raises(InputError, match=message):
        compress(tiny.model, **options)


def test_a_call_with_fewer_tokens_than_images_is_refused(tiny, batch):
    with compress(tiny.model, max_visual_tokens_per_call=3), pytest.raises(InputError, match="got 3 for 4 images"):
        tiny.model(**batch)
    report = report_of(tiny, batch, max_visual_tokens_per_call=4)
    assert [entry.tokens_after for entry in report] == [1] * 4


def test_auto_is_refused_where_shapes_must_be_known(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    cache = StaticCache(config=tiny.model.config.get_text_config(), max_cache_len=256)
    with compress(tiny.model, "auto"):
        for more in ({"cache_implementation": "static"}, {"cache_implementation": "hybrid"}, {CACHE: cache}):
            with pytest.raises(InputError, match="must be a number with a static cache, got 'auto' with"):
                generate(tiny.model, inputs, **more)
    with compress(tiny.model, max_visual_tokens=20) as compression:
        generate(tiny.model, inputs, cache_implementation="static")
    assert compression.report.tokens_after == 20


@pytest.mark.parametrize(
    "config", [CompressionConfig("auto"), CompressionConfig(max_visual_tokens_per_call=64)], ids=str
)
def test_an_engine_must_know_before_it_looks(config):
    with pytest.raises(InputError, match="engine"):
        config.vllm_overrides()
