"""What a method may return, what it is told, and that its answers are checked."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from globalcom2 import InputError, Views, select
from globalcom2.core import allocation, methods, plugins
from globalcom2.core.budget import Budget
from globalcom2.core.groups import Group, on_host
from globalcom2.core.methods import Method, check_options
from globalcom2.core.newlines import image_budget
from globalcom2.core.ranking import Counts, Merge, Ranking
from globalcom2.errors import DataError

LINES = torch.arange(4).repeat_interleave(4).repeat(4, 1) + torch.tensor([0, 0, 4, 4])[:, None]
THUMBNAIL, CROPS, RATIOS = torch.zeros(1, 16), torch.zeros(1, 4, 16), torch.full((1, 4), 0.5)


def views(batch=None, lines=None, **more):
    shape = () if batch is None else (batch,)
    return Views(torch.randn(*shape, 4, 16), grid=(2, 2), thumbnail_scores=torch.randn(*shape, 16), lines=lines, **more)


# Answers are checked


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"must return a globalcom2\.selectors\.Ranking, got NoneType None"),
        ((THUMBNAIL, CROPS, RATIOS), r"must return a globalcom2\.selectors\.Ranking, got tuple"),
        (Ranking(None, CROPS, RATIOS), r"float tensor of shape \(1, 16\) on cpu as thumbnail, got NoneType"),
        (Ranking(THUMBNAIL[0], CROPS, RATIOS), r"shape \(1, 16\) on cpu as thumbnail, got float32 \(16,\)"),
        (Ranking(THUMBNAIL, CROPS[0], RATIOS), r"shape \(1, 4, 16\) on cpu as crops, got float32 \(4, 16\)"),
        (Ranking(THUMBNAIL, CROPS.long(), RATIOS), r"a float tensor .* as crops, got int64 \(1, 4, 16\)"),
        (Ranking(THUMBNAIL, CROPS.tolist(), RATIOS), r"a float tensor .* as crops, got list"),
        (Ranking(THUMBNAIL, CROPS, RATIOS[:, :3]), r"shape \(1, 4\) on cpu as ratios, got float32 \(1, 3\)"),
        (Ranking(THUMBNAIL, CROPS, 0.5), r"as ratios, got float 0\.5"),
        (Ranking(THUMBNAIL, CROPS, RATIOS, True), r"ratios=None with thumbnail_competes=True, got ratios float32"),
        (Ranking(THUMBNAIL, CROPS, None, 1), r"thumbnail_competes=True or False, got int 1"),
        (Ranking(THUMBNAIL, CROPS, RATIOS, merge=Merge(CROPS, CROPS)), r"merge=None, since .* merges=True"),
        (Ranking(THUMBNAIL, CROPS.to("meta"), RATIOS), r"on cpu as crops, got float32 \(1, 4, 16\) on meta"),
    ],
)
@pytest.mark.parametrize("check", [True, False])
def test_answers_of_the_wrong_type_or_shape(monkeypatch, answer, message, check):
    toys.register(monkeypatch, lambda views, ratio: answer)
    with pytest.raises(InputError, match=rf"method 'toy' \(globalcom2_toys:toy\) .*{message}"):
        select(views(), 0.5, "toy", check=check)


def test_a_thumbnail_where_there_is_none(monkeypatch):
    toys.register(monkeypatch, lambda views, ratio: Ranking(THUMBNAIL, CROPS, RATIOS))
    with pytest.raises(InputError, match="must return thumbnail=None for views without a thumbnail, got float32"):
        select(Views(torch.zeros(4, 16), guidance=torch.zeros(4, 16)), 0.5, "toy")


def with_value(tensor, value):
    tensor = tensor.clone()
    tensor.view(-1)[3] = value
    return tensor


INTO = torch.full((1, 5, 16), -1)
BROKEN = [
    (Ranking(THUMBNAIL, with_value(CROPS, math.nan), RATIOS), "crops that are finite .* got 1 NaN and values from 0 to 0"),
    (Ranking(THUMBNAIL, with_value(CROPS, math.inf), RATIOS), "crops that are finite .* got values from 0 to inf"),
    (Ranking(with_value(THUMBNAIL, math.nan), CROPS, RATIOS), "thumbnail that are finite"),
    (Ranking(THUMBNAIL, CROPS, with_value(RATIOS, math.nan)), "ratios that are finite and not negative, got 1 NaN"),
    (Ranking(THUMBNAIL, CROPS, with_value(RATIOS, -0.1)), "ratios that are finite and not negative, got values from -0.1"),
    (Ranking(THUMBNAIL, CROPS, with_value(RATIOS, math.inf)), "ratios that are finite"),
    (Ranking(THUMBNAIL, CROPS, merge=Merge(with_value(INTO, 16), INTO.float())), r"merge\.into that are in \[-1, 15\]"),
    (Ranking(THUMBNAIL, CROPS, merge=Merge(INTO, with_value(INTO.float(), math.nan))), r"merge\.weight that are finite"),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "message"), BROKEN)
def test_values_that_cannot_be_used(monkeypatch, answer, message):
    toys.register(monkeypatch, lambda views, ratio: answer, merges=True)
    with pytest.raises(DataError, match=f"method 'toy' .* must return {message}"):
        select(views(), 0.5, "toy")


@pytest.mark.parametrize(("answer", "message"), BROKEN)
def test_without_a_check_the_flag_travels_with_the_masks(monkeypatch, answer, message):
    toys.register(monkeypatch, lambda views, ratio: answer, merges=True)
    seen = views(1)
    keep = select(seen, 0.5, "toy", check=False)
    assert int(keep.thumbnail.sum() + keep.crops.sum()) == 40
    with pytest.raises(DataError, match=f"method 'toy' .* must return {message}"):
        on_host([Group(None, [0], seen, seen.thumbnail_scores, keep)])


def test_a_sound_answer_is_not_carried_further(monkeypatch):
    toys.register(monkeypatch, lambda views, ratio: Ranking(THUMBNAIL, CROPS, RATIOS))
    seen = views(1)
    assert select(seen, 0.5, "toy").unchecked is None
    group = Group(None, [0], seen, seen.thumbnail_scores, select(seen, 0.5, "toy", check=False))
    assert group.keep.unchecked is not None
    on_host([group])
    assert group.keep.unchecked is None


def test_padding_may_hold_anything_and_minus_infinity_is_kept_last(monkeypatch):
    valid = torch.ones(4, 16, dtype=torch.bool)
    valid[0, :4] = False
    scores = torch.randn(1, 4, 16)
    scores[0, 0, :2], scores[0, 0, 2:4] = math.nan, math.inf
    scores[0, 1, 5:] = -math.inf
    toys.register(monkeypatch, lambda views, ratio: Ranking(THUMBNAIL, scores, RATIOS))
    seen = Views(torch.randn(4, 16), valid, (2, 2), thumbnail_scores=torch.randn(16))
    keep = select(seen, 1.0, "toy")
    assert torch.equal(keep.crops, valid)
    keep = select(seen, 0.3, "toy")
    assert not (keep.crops & ~valid).any()
    assert not keep.crops[1, 5:].any()


wild = st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 0.0, 1e-300, 0.3, 1.0, 1e300])


@settings(max_examples=500, deadline=None)
@given(st.data(), st.integers(1, 5), st.sampled_from(["counted", "all", "joint", "joint counted"]))
def test_budgets_are_exact_whatever_is_returned(data, crops, kind):
    valid = torch.rand(crops, 9, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99)))) < 0.7
    valid[:, 0] = True
    lines = torch.where(valid, torch.arange(crops)[:, None].expand(-1, 9), -1)
    counted = "counted" in kind
    budget = image_budget(data.draw(st.floats(0.01, 1.0)), 9, int(valid.sum()), crops, "counted" if counted else "all")
    values = data.draw(st.lists(wild, min_size=crops * 9 + 9, max_size=crops * 9 + 9))
    ratios = torch.tensor([data.draw(st.lists(wild, min_size=crops, max_size=crops))], dtype=torch.float64)
    scores = torch.tensor(values, dtype=torch.float64).view(1, 1 + crops, 9)
    ranking = Ranking(scores[:, 0], scores[:, 1:], None if "joint" in kind else ratios)
    newlines = torch.zeros(1, 0)
    if "joint" in kind:
        thumbnail, kept, found = allocation.joint(ranking, budget, valid, lines if counted else None, crops)
        newlines = newlines if found is None else found
    elif counted:
        thumbnail, kept, newlines = allocation.exact_with_newlines(ranking, budget, valid, lines, crops)
    else:
        thumbnail, kept = allocation.exact(ranking, budget, valid)
    assert not (kept & ~valid).any()
    assert int(thumbnail.sum()) == budget.thumbnail
    assert int(kept.sum() + newlines.sum()) == budget.crops


def test_nan_is_the_lowest_score_and_a_ratio_of_nothing():
    valid = torch.ones(2, 4, dtype=torch.bool)
    scores = torch.tensor([[[math.nan, -1e30, 0.0, 1.0], [0.0, 1.0, 2.0, math.nan]]])
    ranking = Ranking(None, scores, torch.tensor([[math.nan, 1.0]]))
    _, kept = allocation.exact(ranking, Budget(4, 0, 4), valid)
    assert kept.tolist() == [[[False, False, False, True], [True, True, True, False]]]


# Methods that are not nested


def bottom_or_top(asked):
    """The set of an even size is the best tokens, that of an odd size the worst ones: nothing is nested."""

    def toy(views, ratio, *, counts=None, joint=False, weights=(1.0, 2.0, 3.0, 4.0)):
        asked.append(counts)
        batch = len(views.scores)
        ratios = None if joint else torch.tensor(weights).expand(batch, -1)
        if counts is None:
            return Ranking(views.thumbnail_scores, torch.zeros_like(views.scores), ratios)
        sign = 1 - 2.0 * (counts.crops % 2)
        own = views.thumbnail_scores * (1 - 2 * (counts.thumbnail % 2))
        return Ranking(own, views.scores * sign[..., None], ratios)

    return toy


@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.3, 0.34, 0.9])
def test_a_method_that_is_not_nested_is_told_its_counts(monkeypatch, ratio):
    asked = []
    toys.register(monkeypatch, bottom_or_top(asked), nested=False)
    seen = views(3)
    keep = select(seen, ratio, "toy")
    first, counts = asked
    assert first is None
    assert isinstance(counts, Counts)
    assert counts.thumbnail == int(keep.thumbnail[0].sum())
    assert torch.equal(counts.crops, keep.crops.sum(-1))
    assert counts.crops.dtype == torch.int64
    for which in range(3):
        for crop, n in enumerate(counts.crops[which].tolist()):
            order = sorted(range(16), key=seen.scores[which, crop].tolist().__getitem__, reverse=n % 2 == 0)
            assert keep.crops[which, crop].nonzero().flatten().tolist() == sorted(order[:n])
        order = seen.thumbnail_scores[which].argsort(descending=counts.thumbnail % 2 == 0)
        assert sorted(order[: counts.thumbnail].tolist()) == keep.thumbnail[which].nonzero().flatten().tolist()


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("ratio", [0.02, 0.1, 0.3, 0.34, 0.9, 1.0])
def test_newlines_are_paid_and_totals_exact_whatever_the_set(monkeypatch, ratio, joint):
    asked = []
    toys.register(monkeypatch, bottom_or_top(asked), nested=False)
    keep = select(views(3, LINES), ratio, "toy", joint=joint)
    totals = keep.thumbnail.sum(1) + keep.crops.sum((1, 2)) + keep.newlines.sum(1)
    assert totals.tolist() == [image_budget(ratio, 16, 64, 8).total] * 3
    assert [counts is None for counts in asked] == [True, False, False]
    assert asked[-1].crops.shape == ((3, 1) if joint else (3, 4))


def test_later_ratios_are_not_read(monkeypatch):
    def toy(views, ratio, *, counts=None):
        if counts is None:
            return Ranking(views.thumbnail_scores, views.scores, torch.full((1, 4), 0.5))
        return Ranking(views.thumbnail_scores, views.scores)

    toys.register(monkeypatch, toy, nested=False)
    assert select(views(), 0.5, "toy").crops.sum(-1).tolist() == [8, 8, 8, 8]


def test_counts_of_a_joint_order(monkeypatch):
    asked = []

    def toy(views, ratio, *, counts=None, competes):
        asked.append(counts)
        return Ranking(views.thumbnail_scores, views.scores, thumbnail_competes=competes)

    toys.register(monkeypatch, toy, nested=False)
    for competes, expected in ((False, (8, [[32]])), (True, (0, [[40]]))):
        select(views(), 0.5, "toy", competes=competes)
        assert (asked[-1].thumbnail, asked[-1].crops.tolist()) == expected


def test_counts_by_the_published_rounding(monkeypatch):
    asked = []
    toys.register(monkeypatch, bottom_or_top(asked), nested=False)
    keep = select(views(), 0.34, "toy", exact=False, weights=(0.34, 0.5, 0.1, 1.0))
    assert asked[1].thumbnail == 5
    assert asked[1].crops.tolist() == [[5, 8, 1, 16]]
    assert keep.crops.sum(-1).tolist() == [5, 8, 1, 16]


def test_counts_are_no_option(monkeypatch):
    method = toys.register(monkeypatch, bottom_or_top([]), nested=False)
    with pytest.raises(InputError, match="option of method 'toy' must be one of joint, weights, got 'counts'"):
        check_options(method, {"counts": None})


# What a method says of itself


def test_merges_come_back_with_the_masks(monkeypatch):
    merge = Merge(torch.full((1, 5, 16), -1), torch.ones(1, 5, 16))
    toys.register(monkeypatch, lambda views, ratio: Ranking(THUMBNAIL, CROPS, RATIOS, merge=merge), merges=True)
    keep = select(views(), 0.5, "toy")
    assert torch.equal(keep.merge.into, merge.into[0])
    assert torch.equal(select(views(1), 0.5, "toy").merge.weight, merge.weight)
    assert select(views(), 0.5).merge is None
    unequal = Views(torch.zeros(4, 16), grid=(2, 2), thumbnail_scores=torch.zeros(20), thumbnail_grid=(4, 5))
    toys.register(
        monkeypatch, lambda views, ratio: Ranking(views.thumbnail_scores, CROPS, RATIOS, merge=merge), merges=True
    )
    with pytest.raises(InputError, match="merge=None where the thumbnail has a token grid of its own"):
        select(unequal, 0.5, "toy")


@pytest.mark.parametrize(
    ("wants", "alone", "wanted"),
    [
        ({}, True, set()),
        ({"needs_features": True}, False, {"features"}),
        ({"reads": ("keys", "cls")}, False, {"keys", "cls"}),
        ({"layers": (0,)}, False, set()),
        ({"merges": True}, False, set()),
        ({"nested": False, "score": "attention"}, True, set()),
    ],
)
def test_what_works_on_scores_alone(wants, alone, wanted):
    method = Method("toy", "a:b", "toy", "a test", **wants)
    assert method.on_scores_alone is alone
    assert method.wanted == wanted


def test_wants_that_make_no_sense():
    with pytest.raises(
        InputError, match=r"reads of method 'toy' must be a tuple of features, crop_features, keys, cls, got \('key',\)"
    ):
        Method("toy", "a:b", "toy", "a test", reads=("key",))
    with pytest.raises(InputError, match="layers of method 'toy' must be a tuple of integers, got -1"):
        Method("toy", "a:b", "toy", "a test", layers=-1)


def test_further_tensors_of_views():
    more = {"layer_scores": torch.zeros(2, 5, 16), "keys": torch.zeros(5, 16, 3), "cls": torch.zeros(5, 7)}
    seen = views(**more)
    assert seen.keys is more["keys"]
    for name, wrong, message in (
        ("layer_scores", torch.zeros(5, 16), r"layer_scores must be a float tensor of shape \(0, 5, 16\)"),
        ("keys", torch.zeros(4, 16, 3), r"keys must be a float tensor of shape \(5, 16, 3\).*Thumbnail first"),
        ("cls", torch.zeros(4, 7), r"cls must be a float tensor of shape \(5, 7\), got float32 \(4, 7\)"),
    ):
        with pytest.raises(InputError, match=message):
            views(**{**more, name: wrong})
    for name in ("layer_scores", "keys"):
        with pytest.raises(InputError, match=f"{name} must be None where the thumbnail has a token grid of its own"):
            Views(
                torch.zeros(4, 16),
                grid=(2, 2),
                thumbnail_scores=torch.zeros(20),
                thumbnail_grid=(4, 5),
                **{name: more[name]},
            )


def test_further_tensors_get_the_batch_axis_too(monkeypatch):
    shapes = []

    def toy(views, ratio):
        shapes.extend(tuple(x.shape) for x in (views.layer_scores, views.keys, views.cls))
        return Ranking(views.thumbnail_scores, views.scores)

    toys.register(monkeypatch, toy, layers=(0, 1), reads=("keys", "cls"))
    select(views(layer_scores=torch.zeros(2, 5, 16), keys=torch.zeros(5, 16, 3), cls=torch.zeros(5, 7)), 0.5, "toy")
    assert shapes == [(1, 2, 5, 16), (1, 5, 16, 3), (1, 5, 7)]


# Methods of other packages


class Entry:
    group, dist = methods.ENTRY_POINTS, None

    def __init__(self, name, load, owner=None):
        self.name, self.value, self.load = name, f"{name}_package:METHOD", load
        if owner:
            self.dist = type("Distribution", (), {"name": owner})()


def test_a_broken_package_is_left_out_with_a_warning(monkeypatch):
    def missing():
        raise ModuleNotFoundError("No module named 'gone'")

    good = Method("good", "globalcom2.selectors.uniform:uniform", "good", "a test")
    entries = [
        Entry("broken", missing, "broken-dist"),
        Entry("wrong", lambda: "a string", "wrong-dist"),
        Entry("twice", lambda: Method("uniform", "x:y", "twice", "a test")),
        Entry("good", lambda: good, "good-dist"),
    ]
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries if group == methods.ENTRY_POINTS else [])
    methods._load_entry_points.cache_clear()
    try:
        with pytest.warns(UserWarning, match="is left out") as caught:
            names = methods.list_methods()
        assert methods.list_methods() == names
    finally:
        methods._load_entry_points.cache_clear()
    assert "good" in names
    assert not {"broken", "wrong", "twice"} & set(names)
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 3
    assert "'broken' (broken_package:METHOD) of distribution 'broken-dist'" in texts[0]
    assert "ModuleNotFoundError: No module named 'gone'" in texts[0]
    assert "'wrong'" in texts[1]
    assert "must be a globalcom2.Method, got str" in texts[1]
    assert "'twice' (twice_package:METHOD) of an unknown distribution" in texts[2]
    assert "already registered" in texts[2]
