"""Budgets in tokens: exact counts from sizes, fair shares of a call, and the signal of "auto" against its formula."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from globalcom2 import InputError, Views
from globalcom2.adapters.families import load_adapter
from globalcom2.core.budget import budget_text
from globalcom2.core.layout import kept_places, unpacked
from globalcom2.core.limits import Limits, call_ratios, check_limit, limited_ratio, shared
from globalcom2.core.spread import SHARPNESS, spread
from globalcom2.lab.estimates import named_configs

COUNTED = ["counted", "from_2", "from_3"]
few = settings(max_examples=40, deadline=None)
CONFIG = named_configs()["llava-next-86m"]


@st.composite
def layouts(draw):
    """Images with newlines, some of them strips whose last newlines end no token, and images of whole views."""
    if draw(st.booleans()):
        thumbnail = draw(st.sampled_from([None, (2, 3), (5, 5)]))
        grid = draw(st.sampled_from([(0, 0), (1, 3), (2, 2)]))
        return unpacked(grid, (4, 4), thumbnail_last=draw(st.booleans()), thumbnail_grid=thumbnail)
    width, height = draw(st.integers(1, 3000)), draw(st.integers(1, 3000))
    return load_adapter("llava_next").layout(CONFIG, height, width)


def most(layout):
    """Tokens of a shortened image that keeps all it can, newlines included."""
    return int((layout.slots >= 0).sum())


@few
@given(layouts(), st.integers(1, 4000), st.sampled_from(COUNTED), st.sampled_from([0.3, 1.0, 3.0]))
def test_an_image_keeps_the_limit_or_all(layout, limit, newlines, weight):
    ratio = limited_ratio(limit, layout)
    everything = len(layout.slots)
    expected = everything if limit >= everything else min(limit, most(layout))
    assert kept_places(layout, ratio, newlines, weight) == expected
    assert (ratio == 1.0) == (limit >= everything)


@few
@given(layouts(), st.integers(1, 4000))
def test_without_newlines_the_limit_is_met_wherever_tokens_can_meet_it(layout, limit):
    tokens = most(layout) - layout.line_count
    kept = kept_places(layout, limited_ratio(limit, layout), "none")
    everything = len(layout.slots)
    assert kept == (everything if limit >= everything else min(limit, tokens))


@pytest.mark.parametrize("weight", [0.3, 1.0, 3.0])
def test_without_newlines_every_token_can_be_had(weight):
    layout = load_adapter("llava_next").layout(CONFIG, 672, 672)
    tokens = most(layout) - layout.line_count
    limits = range(tokens - 60, most(layout))
    found = [kept_places(layout, limited_ratio(limit, layout), "none", weight) for limit in limits]
    assert found == [min(limit, tokens) for limit in limits]


def test_a_strip_whose_newlines_end_no_token():
    layout = load_adapter("llava_next").layout(CONFIG, 3000, 1)
    dead = len(layout.slots) - most(layout)
    assert dead > 0
    assert kept_places(layout, limited_ratio(most(layout), layout)) == most(layout)
    assert limited_ratio(len(layout.slots), layout) == 1.0


counts = st.lists(st.integers(1, 3000), min_size=1, max_size=8)


@few
@given(counts, st.integers(1, 9000))
def test_shares_are_whole_and_sum_up(sizes, total):
    total = max(total, len(sizes))
    shares = shared(total, sizes)
    assert sum(shares) == min(total, sum(sizes))
    assert all(1 <= share <= size for share, size in zip(shares, sizes, strict=True))
    if total >= sum(sizes):
        assert shares == sizes
        return
    # An image that does not need the floor gets its proportion of what the others leave, to within one token.
    floored = [size for size, share in zip(sizes, shares, strict=True) if share == 1]
    left = total - len(floored)
    rest = sum(sizes) - sum(floored)
    for size, share in zip(sizes, shares, strict=True):
        if share > 1:
            assert abs(share - Fraction(left * size, rest)) <= 1 + Fraction(len(floored), rest) * size


@few
@given(st.integers(2, 8), st.integers(1, 500), st.integers(1, 4000))
def test_images_of_one_size_differ_by_a_token_at_most(images, size, total):
    shares = shared(max(total, images), [size] * images)
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


@few
@given(st.lists(layouts(), min_size=1, max_size=4), st.integers(1, 5000), st.integers(4, 9000), st.floats(0.01, 1.0))
def test_all_limits_hold_together(images, per_image, per_call, ratio):
    ratios = call_ratios(images, [ratio] * len(images), Limits(per_image, per_call), "counted", 1.0)
    kept = [kept_places(layout, own) for layout, own in zip(images, ratios, strict=True)]
    alone = [kept_places(layout, ratio) for layout in images]
    wanted = [min(count, per_image) for count in alone]
    # Newlines that end no token leave first, as soon as an image is shortened at all.
    spare = sum(len(layout.slots) - most(layout) for layout in images)
    assert min(per_call, sum(wanted)) - spare <= sum(kept) <= min(per_call, sum(wanted))
    assert all(count <= want for count, want in zip(kept, wanted, strict=True))
    if sum(wanted) <= per_call and wanted == alone:
        assert ratios == [ratio] * len(images)


def test_fewer_tokens_than_images():
    layout = unpacked((1, 2), (4, 4), thumbnail_last=False)
    with pytest.raises(InputError, match="at least one token per image, got 2 for 3 images"):
        call_ratios([layout] * 3, [1.0] * 3, Limits(per_call=2), "counted", 1.0)
    assert [
        kept_places(layout, r) for r in call_ratios([layout] * 3, [1.0] * 3, Limits(per_call=3), "counted", 1.0)
    ] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize("value", [0, -1, True, False, 1.0, 0.5, "12", None, math.nan, 1 << 80], ids=repr)
def test_limits_are_whole_numbers(value):
    if value == 1 << 80:
        assert check_limit("max_visual_tokens", value) == value
        return
    with pytest.raises(InputError, match="max_visual_tokens must be a whole number of tokens from 1 on, got"):
        check_limit("max_visual_tokens", value)


def test_integers_of_other_libraries():
    assert type(check_limit("max_visual_tokens", np.int64(7))) is int


def test_budgets_in_words():
    assert budget_text(0.1, {}) == "0.1"
    assert budget_text("auto", {"max_visual_tokens": 64}) == "auto, max 64 tokens"
    assert budget_text(1.0, {"max_visual_tokens": 64, "max_visual_tokens_per_call": 9}) == (
        "max 64 tokens, max 9 tokens a call"
    )


# The signal of "auto"


def by_hand(crops, valid):
    """One image's signal, in numpy, token by token."""
    centred = np.concatenate(
        [own[real] - own[real].mean() for own, real in zip(crops, valid, strict=True) if real.any()]
    )
    weights = np.exp(SHARPNESS * centred / centred.std())
    p = weights / weights.sum()
    effective = np.exp(-(p * np.log(p)).sum())
    return min(1.0, effective / len(p) / math.exp(-SHARPNESS * SHARPNESS / 2))


def views(scores, valid=None):
    return Views(torch.as_tensor(scores), valid=None if valid is None else torch.as_tensor(valid))


@few
@given(st.integers(0, 10**6), st.floats(1.0, 4.0))
def test_the_signal_is_its_formula(seed, heavy):
    rng = np.random.default_rng(seed)
    scores = np.sign(rng.normal(size=(3, 4, 9))) * np.abs(rng.normal(size=(3, 4, 9))) ** heavy
    valid = rng.random((4, 9)) < 0.8
    valid[0, 0] = True
    expected = [by_hand(own, valid) for own in scores]
    if valid.sum() > valid.any(1).sum():  # one token per crop leaves nothing to spread
        np.testing.assert_allclose(spread(views(scores, valid)), expected, rtol=1e-9)


@few
@given(st.integers(0, 10**6), st.floats(0.01, 1000), st.floats(-1000, 1000))
def test_scale_and_offsets_do_not_count(seed, scale, offset):
    rng = np.random.default_rng(seed)
    scores, by_crop = rng.normal(size=(2, 4, 9)) ** 3, rng.normal(size=(2, 4, 1)) * 10
    plain = spread(views(scores))
    torch.testing.assert_close(spread(views(scores * scale + offset + by_crop)), plain, atol=1e-6, rtol=1e-6)


def test_padding_does_not_count():
    scores, valid = torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(0)), torch.ones(3, 9, dtype=torch.bool)
    valid[1, 4:] = valid[2] = False
    plain = spread(views(scores, valid))
    assert torch.equal(spread(views(scores.masked_fill(~valid, 1e6), valid)), plain)


def test_ends_of_the_scale():
    alike = torch.full((1, 4, 25), 3.0)
    one = alike.clone()
    one[0, 2, 7] = 9.0
    noise = torch.randn(1, 16, 1024, generator=torch.Generator().manual_seed(0))
    assert spread(views(alike)).item() == 1.0
    nudged = alike.clone()
    nudged[0, 2, 7] = torch.nextafter(nudged[0, 2, 7], torch.tensor(9.0))  # rounding, no signal
    assert spread(views(nudged)).item() == 1.0
    assert spread(views(one)).item() < 0.05
    assert spread(views(noise)).item() == pytest.approx(1.0, abs=0.05)


def test_an_image_without_crops_is_its_thumbnail():
    scores = torch.randn(2, 1, 36, generator=torch.Generator().manual_seed(1))
    alone = Views(torch.zeros(2, 0, 36), thumbnail_scores=scores[:, 0])
    torch.testing.assert_close(spread(alone), spread(views(scores)))
