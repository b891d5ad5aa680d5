"""Presets, and methods as texts and functions: what `select` is given, and what texts mean."""

import functools

import pytest
import test_golden
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import globalcom2
from globalcom2 import InputError, Method, Ranking, Views, select
from globalcom2.core.methods import as_method, check_options, get_method, method_text, parse_method, split_method
from globalcom2.core.presets import PRESETS, preset_settings, preset_within


@pytest.fixture
def views():
    torch.manual_seed(0)
    lines = torch.arange(4).repeat_interleave(4).repeat(4, 1) + torch.tensor([0, 0, 4, 4])[:, None]
    return Views(torch.randn(4, 16) * 3, grid=(2, 2), thumbnail_scores=torch.randn(16) * 3, lines=lines)


def same(keep, other):
    pairs = zip(
        (keep.thumbnail, keep.crops, keep.newlines), (other.thumbnail, other.crops, other.newlines), strict=True
    )
    return all(torch.equal(a, b) for a, b in pairs)


def lowest_first(views, retention_ratio, *, sign=-1.0):
    return Ranking(sign * views.thumbnail_scores, sign * views.scores)


# Presets


@pytest.mark.parametrize("number", range(0, len(test_golden.CASES), 7))
def test_the_published_preset_keeps_the_recorded_sets(number):
    case, views, arrays = test_golden.load(number)
    keep = select(views, case["R"], "globalcom2:preset=published")
    assert keep.thumbnail.nonzero().flatten().tolist() == sorted(arrays["thumb_keep"].tolist())
    assert torch.equal(keep.crops, arrays["crop_keep"].bool())


def test_the_papers_preset_is_its_options(views):
    paper = select(views, 0.3, "globalcom2:preset=paper")
    assert same(paper, select(views, 0.3, allocation="softmax", alpha=0.5, newlines="counted"))
    assert not same(paper, select(views, 0.3))
    assert same(select(views, 0.3, "globalcom2:preset=default"), select(views, 0.3))


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_an_argument_too(views, name):
    assert same(select(views, 0.3, preset=name), select(views, 0.3, f"globalcom2:preset={name}"))
    registered = get_method("globalcom2")
    assert same(select(views, 0.3, registered, preset=name), select(views, 0.3, preset=name))
    assert same(
        select(views, 0.3, "globalcom2:alpha=0.1", preset=name, newlines="none"),
        select(views, 0.3, f"globalcom2:preset={name},alpha=0.1,newlines=none"),
    )


def test_arguments_win_over_options_and_these_over_presets(views):
    text = "globalcom2:preset=published,alpha=0.1,newlines=none"
    assert same(select(views, 0.3, text), select(views, 0.3, exact=False, alpha=0.1, newlines="none"))
    assert same(
        select(views, 0.3, text, exact=True, newlines="all", alpha=0.2),
        select(views, 0.3, newlines="all", alpha=0.2, allocation="softmax"),
    )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("globalcom2:preset=papr", "preset must be one of default, paper, published, got 'papr'. Did you mean 'paper'"),
        ("globalcom2:preset=1", "preset must be one of"),
        ("uniform:preset=paper", "preset must be left out with method 'uniform', got 'paper'"),
        ("globalcom2:layer=-1", "option of method 'globalcom2' must be one of .*, got 'layer'"),
        ("globalcom2:exact=1", "exact must be True or False, got 1"),
        ("globalcom2:config=x", "must not be 'config'"),
        ("globalcom2:options=x", "must not be 'options'"),
    ],
)
def test_wrong_texts(views, method, message):
    with pytest.raises(InputError, match=message):
        select(views, 0.3, method)


@pytest.mark.parametrize(
    ("method", "preset", "message"),
    [
        ("globalcom2:preset=paper", "paper", "preset must be given once"),
        ("uniform", "paper", "preset must be left out with method 'uniform'"),
        (lowest_first, "paper", "preset must be left out with method 'lowest_first'"),
        ("globalcom2", "Paper", "Did you mean 'paper'"),
    ],
)
def test_wrong_presets(views, method, preset, message):
    with pytest.raises(InputError, match=message):
        select(views, 0.3, method, preset=preset)


def test_texts_write_presets_out():
    assert parse_method("globalcom2:preset=paper,newlines=none,alpha=0.1") == (
        "globalcom2",
        {"layer": -1, "allocation": "softmax", "alpha": 0.1, "newlines": "none"},
    )


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_recognised_among_settings(name):
    found, rest = preset_within({**preset_settings(name), "crop_mass": "max"})
    assert (found, rest) == (None if name == "default" else name, {"crop_mass": "max"})
    assert preset_within({"layer": -1})[0] is None


def test_presets_cannot_be_changed():
    preset_settings("paper")["alpha"] = 0.9
    assert PRESETS["paper"]["alpha"] == 0.5
    with pytest.raises(TypeError):
        PRESETS["paper"]["alpha"] = 0.9


# Texts


values = st.one_of(
    st.booleans(), st.none(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=6)
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["alpha", "layer", "score", "x"]), values))
def test_texts_are_read_as_they_were_written(options):
    try:
        text = method_text("name", options)
    except InputError:
        assert any(isinstance(value, str) for value in options.values())
        return
    assert split_method(text) == ("name", None, options)


def test_plain_words_and_numbers_can_be_written():
    options = {"a": "softmax", "b": 0.5, "c": -1, "d": None, "e": True, "f": "1"}
    assert method_text("m", options) == "m:a=softmax,b=0.5,c=-1,d=None,e=True,f='1'"
    with pytest.raises(InputError, match=r"must be numbers, .*written in one line"):
        method_text("m", {"a": [1, 2]})


# Functions and Methods


def test_a_function_ranks(views):
    keep = select(views, 0.25, lowest_first, newlines="none")
    lowest = (-views.scores.flatten()).argsort(descending=True)
    few = int(keep.crops.sum())
    assert set(keep.crops.flatten().nonzero().flatten().tolist()) == set(lowest[:few].tolist())
    assert same(
        select(views, 0.25, lowest_first, sign=1.0), select(views, 0.25, lambda v, r: lowest_first(v, r, sign=1))
    )


def test_a_method_need_not_be_registered(views):
    method = Method("mine", lowest_first)
    assert same(select(views, 0.25, method), select(views, 0.25, lowest_first))
    assert "mine" not in globalcom2.list_methods()
    assert method.where == "test_presets:lowest_first"


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lowest_first, "lowest_first"),
        (lambda views, ratio: None, "<lambda>"),
        (functools.partial(lowest_first, sign=2.0), "lowest_first"),
        (type("Ranker", (), {"__call__": lambda self, views, ratio: None})(), "Ranker"),
    ],
)
def test_the_name_of_a_function(function, name):
    assert as_method(function).name == name


@pytest.mark.parametrize("function", [lambda: None, lambda views: None])
def test_a_function_must_take_views_and_a_ratio(views, function):
    with pytest.raises(
        InputError, match=r"must be a function of \(views, retention_ratio, \*\*options\), got <lambda>"
    ):
        select(views, 0.3, function)


@pytest.mark.parametrize(
    ("function", "good", "bad", "message"),
    [
        (
            lowest_first,
            {"sign": 1},
            {"sgn": 1},
            "option of method 'lowest_first' must be one of sign, got 'sgn'. Did you",
        ),
        (lambda views, ratio, power=1: None, {"power": 2}, {"views": 2}, "must be one of power, got 'views'"),
        (lambda views, ratio, *, power: None, {"power": 2}, {}, "option 'power' of method '<lambda>' must be given"),
        (lambda views, ratio, /, power: None, {"power": 2}, {"x": 1}, "must be one of power, got 'x'"),
    ],
)
def test_options_of_functions(function, good, bad, message):
    check_options(as_method(function), good)
    with pytest.raises(InputError, match=message):
        check_options(as_method(function), bad)


def test_a_function_with_a_registered_name_is_not_taken_for_it(views):
    def globalcom2(views, ratio):
        return lowest_first(views, ratio)

    assert as_method(globalcom2).name == "globalcom2 (function)"
    with pytest.raises(InputError, match="preset must be left out"):
        select(views, 0.3, globalcom2, preset="paper")


def test_an_argument_is_no_option():
    with pytest.raises(InputError, match=r"must not be 'layer', got it among them\. Pass it by itself"):
        check_options(as_method("globalcom2"), {"layer": 1}, also=["layer"])


def test_a_function_may_take_any_option():
    check_options(as_method(lambda views, ratio, **options: None), {"whatever": 1})


def test_part_of_a_name_is_enough_for_a_suggestion():
    with pytest.raises(InputError, match=r"got 'ratio'. Did you mean 'retention_ratio'\?"):
        check_options(as_method("globalcom2"), {"ratio": 0.1}, also=["retention_ratio", "layer"])


def test_what_a_function_returns_is_checked(views):
    with pytest.raises(
        InputError, match=r"method '<lambda>' \(test_presets:<lambda>\) must return a .*Ranking, got int 1"
    ):
        select(views, 0.3, lambda views, ratio: 1)


def test_what_is_returned_is_described_in_one_line(views):
    with pytest.raises(InputError) as caught:
        select(views, 0.3, lambda views, ratio: (views.thumbnail_scores, views.scores))
    assert "got tuple (tensor([[" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("target", ["no_such_module:function", "math:no_such_function"])
def test_a_method_that_cannot_be_imported(views, target):
    with pytest.raises(InputError, match=f"target of method 'x' must be one that can be imported, got '{target}'"):
        select(views, 0.3, Method("x", target))


@pytest.mark.parametrize("target", [3, "name", None])
def test_a_methods_target(target):
    with pytest.raises(InputError, match="target of method 'x' must be 'module:function' or a function"):
        Method("x", target)
