"""Budgets of one image: integers that follow from sizes and the ratio, against a search over all splits."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from globalcom2.core.newlines import image_budget

RULES = ["counted", "none", "all"]
PARTS = 64
"""Ratios of n / 64 are exact in binary, so that plain integers give the expected totals."""


@st.composite
def sizes(draw):
    """(thumbnail, crops, lines) of an image; every line holds a token."""
    thumbnail, crops = draw(st.integers(0, 40)), draw(st.integers(0, 90))
    assume(thumbnail + crops > 0)
    return thumbnail, crops, draw(st.integers(0, crops))


ratios = st.integers(1, PARTS).map(lambda n: n / PARTS)
any_ratio = st.floats(1e-6, 1.0)
weights = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 8.0])


def rounded(parts: float, count: int) -> int:
    """`parts / PARTS` of a count, halves rounded up, in integers."""
    return int(2 * parts * count + PARTS) // (2 * PARTS)


@given(sizes(), st.integers(1, PARTS), weights, st.sampled_from(RULES))
def test_the_split_is_the_nearest_to_what_the_thumbnail_asks(size, parts, weight, rule):
    thumbnail, crops, lines = size
    counted = 0 if rule == "all" else lines
    total = max(1, rounded(parts, thumbnail + crops + counted))
    room = crops + counted
    if rule == "none":  # no token can stand for a newline
        total, room = min(total, thumbnail + crops), crops
    wish = max(1, rounded(parts * weight, thumbnail))
    own = min((t for t in range(thumbnail + 1) if 0 <= total - t <= room), key=lambda t: abs(t - wish))
    assert image_budget(parts / PARTS, *size, rule, weight) == (total, own, total - own)


@given(sizes(), any_ratio, weights, st.sampled_from(RULES))
def test_a_budget_is_a_sum_and_never_more_than_there_is(size, ratio, weight, rule):
    thumbnail, crops, lines = size
    budget = image_budget(ratio, *size, rule, weight)
    assert budget.total == budget.thumbnail + budget.crops
    assert 1 <= budget.total <= thumbnail + crops + lines
    assert 0 <= budget.thumbnail <= thumbnail
    assert 0 <= budget.crops <= crops + (lines if rule == "counted" else 0)


@given(sizes(), any_ratio, any_ratio, weights, st.sampled_from(RULES))
def test_a_larger_ratio_keeps_no_less(size, one, other, weight, rule):
    """In all and of the thumbnail; the crops alone may lose a token to the thumbnail's rounding."""
    less, more = (image_budget(ratio, *size, rule, weight) for ratio in sorted((one, other)))
    assert less.total <= more.total
    assert less.thumbnail <= more.thumbnail


def test_the_crops_may_lose_a_token_as_the_ratio_grows():
    assert image_budget(0.54, 10, 9, 0) == (10, 5, 5)
    assert image_budget(0.55, 10, 9, 0) == (10, 6, 4)


@given(sizes(), weights)
def test_ratio_one_keeps_everything(size, weight):
    thumbnail, crops, lines = size
    assert image_budget(1.0, *size, "counted", weight) == (sum(size), thumbnail, crops + lines)
    for rule in ("none", "all"):
        assert image_budget(1.0, *size, rule, weight) == (thumbnail + crops, thumbnail, crops)


@pytest.mark.parametrize("rule", RULES)
def test_an_image_of_nothing_keeps_nothing(rule):
    assert image_budget(0.5, 0, 0, 0, rule) == (0, 0, 0)
