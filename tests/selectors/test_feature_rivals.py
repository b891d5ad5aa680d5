"""Published selectors that compare features, against their definitions carried out token by token."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from families import FAMILIES
from globalcom2 import InputError, UnsupportedModelError, Views, compress, load_mini, select
from globalcom2.core.selection import budget_of
from globalcom2.selectors.dart import dart
from globalcom2.selectors.divprune import divprune
from globalcom2.selectors.scope import scope
from globalcom2.selectors.vidcom2 import vidcom2
from tiny import picture

NAMES = ["divprune", "scope", "scope:joint=False", "dart", "dart:joint=False", "vidcom2"]


def views(seed=0, crops=2, side=2, batch=1, *, pad=0, lines=False, repeated=False, thumbnail=True, **more):
    """Random views in one row, with a batch axis; `pad` of the last crop's columns show no image."""
    generator = torch.Generator().manual_seed(seed)
    tokens = side * side
    shape = (batch, 1 + crops, tokens)
    features = torch.randn(*shape, 6, generator=generator)
    if repeated:
        features = features[:, :1, :1].expand(*shape, 6).clone() * (1 + torch.rand(*shape, 1, generator=generator))
    scores = torch.randn(shape, generator=generator).softmax(-1)
    valid = torch.ones(crops, side, side, dtype=torch.bool)
    if crops:
        valid[-1, :, side - pad :] = False
    line = torch.arange(side)[:, None].expand(side, side).masked_fill(~valid, -1)
    given = {
        "features": features,
        "keys": torch.randn(*shape, 5, generator=generator),
        "thumbnail_scores": scores[:, 0] if thumbnail else None,
        "valid": valid.flatten(1),
        "lines": line.flatten(1) if lines else None,
        "score_type": "attention",
    }
    return Views(scores[:, 1:], **{**given, **more})


def one_by_one(seen, n):
    """The n-th image of a batch, without a batch axis."""
    own = {name: getattr(seen, name) for name in ("scores", "features", "keys", "thumbnail_scores")}
    own = {name: None if tensor is None else tensor[n] for name, tensor in own.items()}
    return Views(own.pop("scores"), valid=seen.valid, lines=seen.lines, score_type=seen.score_type, **own)


def listed(seen):
    """Of the first image: places (view, token) that show image, thumbnail first, and their features."""
    shown = [[True] * seen.tokens, *seen.valid.tolist()]
    if seen.thumbnail_scores is None:
        shown[0] = [False] * seen.tokens
    places = [(v, t) for v, row in enumerate(shown) for t, real in enumerate(row) if real]
    return places, {place: seen.features[0][place].double().numpy() for place in places}


def order_of(ranking, places):
    """Places by what a ranking says of the first image, best first."""
    own = [] if ranking.thumbnail is None else ranking.thumbnail[0].tolist()
    values = [own, *ranking.crops[0].tolist()]
    return sorted(places, key=lambda place: -values[place[0]][place[1]])


def cosine(x, y):
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


# DivPrune


def farthest_first(places, features, count):
    def distance(p, q):
        return 1 - cosine(features[p], features[q])

    chosen = [max(places, key=lambda p: min(distance(p, q) for q in places if q != p))]
    while len(chosen) < count:
        rest = [p for p in places if p not in chosen]
        chosen.append(max(rest, key=lambda p: min(distance(p, q) for q in chosen)))
    return chosen


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("seed", range(5))
def test_divprune_is_the_greedy_choice(seed, pad):
    seen = views(seed, pad=pad)
    places, features = listed(seen)
    assert len(places) == 12 - 2 * pad
    ranking = divprune(seen, 1.0)
    assert ranking.thumbnail_competes
    assert ranking.ratios is None
    assert order_of(ranking, places) == farthest_first(places, features, len(places))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_divprunes_nearest_two_are_at_least_half_as_far_apart_as_can_be(count):
    """A bound for farthest-first choices in a metric; lengths of chords between directions are one."""
    seen = views(7)
    places, features = listed(seen)

    def apart(chosen):
        pairs = itertools.combinations(chosen, 2)
        return min(math.sqrt(2 - 2 * cosine(features[p], features[q])) for p, q in pairs)

    keep = select(seen, count / 12, "divprune")
    kept = torch.cat([keep.thumbnail[:, None], keep.crops], 1)[0].nonzero().tolist()
    assert len(kept) == count
    best = max(apart(chosen) for chosen in itertools.combinations(places, count))
    assert best / 2 <= apart([tuple(place) for place in kept]) <= best + 1e-9


def test_equally_far_tokens_come_by_index():
    """Of one direction and many lengths, whose cosines differ from 1 in their last bits."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(32, generator=generator) * (0.1 + torch.rand(1, 3, 64, 1, generator=generator))
    seen = views(0, side=8, features=features)
    places, _ = listed(seen)
    assert order_of(divprune(seen, 1.0), places) == places


# SCOPE


def salient_and_covering(places, features, saliency, alpha=1.0):
    covered, order = dict.fromkeys(places, 0.0), []

    def worth(v):
        gain = sum(max(0.0, cosine(features[u], features[v]) - covered[u]) for u in places)
        return saliency[v] ** alpha * gain

    while len(order) < len(places):
        pick = max((p for p in places if p not in order), key=worth)
        order.append(pick)
        covered = {u: max(c, cosine(features[u], features[pick])) for u, c in covered.items()}
    return order


def saliencies(seen, places):
    rows = [seen.thumbnail_scores[0].tolist(), *seen.scores[0].tolist()]
    return {(v, t): rows[v][t] for v, t in places}


@pytest.mark.parametrize("alpha", [1.0, 0.5])
@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("seed", range(3))
def test_scope_over_all_views(seed, pad, alpha):
    seen = views(seed, side=3, pad=pad)
    places, features = listed(seen)
    ranking = scope(seen, 1.0, alpha=alpha)
    assert ranking.thumbnail_competes
    expected = salient_and_covering(places, features, saliencies(seen, places), alpha)
    first = len(places) * 2 // 3  # then next to nothing is gained, and rounding decides
    assert order_of(ranking, places)[:first] == expected[:first]


@pytest.mark.parametrize("pad", [0, 1])
def test_scope_view_by_view(pad):
    seen = views(3, side=3, pad=pad)
    ranking = scope(seen, 0.5, joint=False)
    assert torch.equal(ranking.ratios, torch.full((1, 2), 0.5, dtype=torch.float64))
    places, features = listed(seen)
    saliency = saliencies(seen, places)
    for view in range(3):
        own = [place for place in places if place[0] == view]
        expected = salient_and_covering(own, features, saliency)
        half = len(own) // 2
        assert order_of(ranking, own)[:half] == expected[:half]


def test_scopes_saliency_of_logits_is_their_softmax():
    seen = views(5, side=3, pad=1)
    own = seen.scores * seen.valid
    given = {"valid": seen.valid, "features": seen.features}
    attention = Views(
        own / own.sum(-1, keepdim=True), thumbnail_scores=seen.thumbnail_scores, score_type="attention", **given
    )
    logits = torch.where(seen.valid, seen.scores.log() + 3.0, 50.0)  # of padding, and of no account
    other = Views(logits, thumbnail_scores=seen.thumbnail_scores.log(), **given)
    one, two = select(attention, 0.4, "scope"), select(other, 0.4, "scope")
    assert torch.equal(one.crops, two.crops)
    assert torch.equal(one.thumbnail, two.thumbnail)


def test_scope_without_saliency_is_coverage_alone():
    seen = views(6, side=3)
    places, features = listed(seen)
    expected = salient_and_covering(places, features, dict.fromkeys(places, 1.0))
    assert order_of(scope(seen, 1.0, alpha=0), places)[:12] == expected[:12]


# DART


@pytest.mark.parametrize("pivots", [1, 3])
@pytest.mark.parametrize("joint", [True, False])
def test_dart(joint, pivots):
    seen = views(8, side=3, pad=1)
    places, features = listed(seen)
    norm = {place: np.abs(seen.keys[0][place].double().numpy()).sum() for place in places}
    ranking = dart(seen, 0.5, pivots=pivots, joint=joint)
    assert (ranking.ratios is None) == joint == ranking.thumbnail_competes
    groups = [places] if joint else [[p for p in places if p[0] == view] for view in range(3)]
    for group in groups:
        chosen = sorted(group, key=lambda p: -norm[p])[:pivots]
        likeness = {p: max(cosine(features[p], features[q]) for q in chosen) for p in group}
        rest = sorted((p for p in group if p not in chosen), key=lambda p: likeness[p])
        assert order_of(ranking, group) == chosen + rest


def test_more_pivots_than_tokens():
    seen = views(8, pad=1)
    keep = select(seen, 1.0, "dart", pivots=50)
    assert torch.equal(keep.crops[0], seen.valid)


# VidCom2


@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.parametrize("pad", [0, 1])
def test_vidcom2(pad, temperature):
    steady = views(9, crops=3, side=3).features * torch.tensor([0.3, 1.0, 0.4, 1.1, 0.5, 1.2])
    seen = views(9, crops=3, side=3, pad=pad, features=steady + torch.tensor([5.0, 0.0, 5.0, 0.0, 5.0, 0.0]))
    ratio = 0.4
    valid = seen.valid.numpy()
    x = seen.features[0, 1:].double().numpy()
    shown = x[valid]
    channels = np.argsort(shown.var(0))[:3]

    def unit(y):
        return y / np.linalg.norm(y, axis=-1, keepdims=True)

    def kernels(y, centre):
        squared = ((unit(y) - unit(centre)) ** 2).sum(-1)
        return sum(np.exp(-squared / (2 * 2.0**k)) for k in (-3, -2, -1, 0, 1))

    whole = [kernels(x[c][valid[c]][:, channels], shown[:, channels].mean(0)) for c in range(3)]
    own = [kernels(y := x[c][valid[c]][:, channels], y.mean(0)) for c in range(3)]
    power = np.exp(-np.array([g.mean() for g in whole]) / temperature)
    share = power / power.sum()
    ranking = vidcom2(seen, ratio, temperature=temperature)
    np.testing.assert_allclose(ranking.ratios[0].numpy(), np.clip(ratio * (1 + share - share.mean()), 0, 1), atol=2e-4)
    for c in range(3):
        np.testing.assert_allclose(ranking.crops[0, c].numpy()[valid[c]], -(whole[c] + own[c]), atol=1e-5)
    assert torch.equal(ranking.thumbnail, seen.thumbnail_scores)


def test_vidcom2_of_a_thumbnail_with_a_token_grid_of_its_own():
    features = torch.randn(4, 9, 6)
    seen = Views(
        torch.randn(4, 9), grid=(2, 2), thumbnail_scores=torch.randn(20), thumbnail_grid=(4, 5), crop_features=features
    )
    keep = select(seen, 0.3, "vidcom2")
    assert int(keep.thumbnail.sum()) == 6
    assert int(keep.crops.sum()) == 11


# All of them


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 999),
    st.integers(0, 3),
    st.integers(1, 4),
    st.floats(0.01, 1.0),
    st.sampled_from(["counted", "none", "all"]),
    st.booleans(),
    st.booleans(),
)
def test_totals_are_exact_padding_is_dropped_and_a_batch_equals_its_images(
    name, seed, crops, side, ratio, newlines, repeated, thumbnail
):
    pad = seed % 2 if side > 1 else 0
    seen = views(seed, crops, side, batch=2, pad=pad, lines=True, repeated=repeated, thumbnail=thumbnail or not crops)
    keep = select(seen, ratio, name, newlines=newlines)
    budget = budget_of(seen, ratio, newlines)
    paid = keep.newlines.sum(-1) if newlines == "counted" else 0
    total = keep.thumbnail.sum(-1) + keep.crops.sum((-2, -1)) + paid
    assert total.tolist() == [budget.total] * 2
    assert not (keep.crops & ~seen.valid).any()
    for n in range(2):
        single = select(one_by_one(seen, n), ratio, name, newlines=newlines)
        assert torch.equal(single.thumbnail, keep.thumbnail[n])
        assert torch.equal(single.crops, keep.crops[n])


@pytest.mark.parametrize("name", NAMES)
def test_padding_says_nothing(name):
    seen = views(1, side=3, pad=1, lines=True)
    other = {key: getattr(seen, key).clone() for key in ("features", "keys")}
    for tensor in other.values():
        tensor[:, 1:][:, ~seen.valid] = 77.0
    changed = views(1, side=3, pad=1, lines=True, **other)
    one, two = select(seen, 0.3, name), select(changed, 0.3, name)
    assert torch.equal(one.thumbnail, two.thumbnail)
    assert torch.equal(one.crops, two.crops)


@pytest.mark.parametrize("name", NAMES)
def test_without_features(name):
    with pytest.raises(InputError, match=f"features must be given for method '{name.partition(':')[0]}', got None"):
        select(Views(torch.rand(4, 9), thumbnail_scores=torch.rand(9)), 0.3, name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("scope", {"alpha": -1}, "alpha must be a number of at least 0, got -1"),
        ("scope", {"alpha": True}, "alpha must be a number"),
        ("scope", {"joint": 1}, "joint must be True or False, got 1"),
        ("dart", {"joint": None}, "joint must be True or False, got None"),
        ("dart", {"pivots": 0}, "pivots must be a positive integer, got 0"),
        ("dart", {"pivots": 2.0}, "pivots must be a positive integer, got 2.0"),
        ("vidcom2", {"temperature": 0}, "temperature must be a positive number, got 0"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(InputError, match=message):
        select(views(), 0.3, name, **options)


@functools.cache
def built(family):
    return FAMILIES[family]()


@functools.cache
def mini():
    return load_mini()


@pytest.mark.parametrize("name", [*NAMES, "downsample", "thumbnail_only"])
def test_with_the_mini_model(name):
    model, processor = mini()
    inputs = processor(
        text=["<image>"] * 2, images=[picture(224, 224), picture(90, 260)], return_tensors="pt", padding=True
    )
    with torch.no_grad(), compress(model, 0.1, name) as compression:
        logits = model(**inputs).logits
    assert logits.isfinite().all()
    for entry in compression.report:
        assert entry.tokens_after == math.floor(0.1 * entry.tokens_before + 0.5)
        assert not (entry.keep.crops & ~entry.layout.valid).any()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("divprune", "method must be one that reads scores alone"),
        ("scope", "method must be one that reads scores alone"),
        ("dart", "method must be one that reads no keys"),
        ("vidcom2", None),
    ],
)
def test_in_a_family_whose_thumbnail_has_a_token_grid_of_its_own(name, message):
    tiny = built("lfm2_vl")
    inputs = tiny.inputs([tiny.tag], [picture(300, 200)])

    def call():
        with torch.no_grad(), compress(tiny.model, 0.3, name) as compression:
            tiny.model(**inputs)
        return compression.report

    if message is None:
        assert [entry.tokens_after for entry in call()] == [math.floor(0.3 * call()[0].tokens_before + 0.5)]
    else:
        with pytest.raises((InputError, UnsupportedModelError), match=message):
            call()
