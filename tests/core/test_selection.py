"""Budgets and selection as properties: whatever the scores, the totals are those of the sizes and the ratio."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from globalcom2 import InputError, Views, list_methods, select
from globalcom2.core.allocation import apportion, ranks
from globalcom2.core.budget import check_ratio, keep_counts
from globalcom2.core.methods import get_method
from globalcom2.core.selection import budget_of
from globalcom2.errors import DataError
from globalcom2.selectors.globalcom2 import globalcom2

METHODS = st.sampled_from(
    [("globalcom2", {}), ("globalcom2", {"allocation": "softmax"}), ("uniform", {}), ("random", {})]
)


@st.composite
def layouts(draw):
    """(valid, grid, token_grid, lines): a grid whose canvas is padded on two opposite sides, as anyres pads."""
    rows, cols = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    side = draw(st.integers(1, 6))
    height, width = rows * side, cols * side
    canvas = torch.ones(height, width, dtype=torch.bool)
    if draw(st.booleans()):
        pad = draw(st.integers(0, (height - 1) // 2))
        canvas[:pad], canvas[height - pad :] = False, False
    else:
        pad = draw(st.integers(0, (width - 1) // 2))
        canvas[:, :pad], canvas[:, width - pad :] = False, False
    number = torch.where(canvas.any(1), canvas.any(1).long().cumsum(0) - 1, -1)[:, None].expand(height, width)
    number = torch.where(canvas, number, -1)

    def tiles(x):
        return x.reshape(rows, side, cols, side).transpose(1, 2).reshape(rows * cols, side * side)

    return tiles(canvas), (rows, cols), (side, side), tiles(number)


@st.composite
def cases(draw):
    valid, grid, token_grid, lines = draw(layouts())
    kind = draw(st.sampled_from(["normal", "flat", "one hot", "huge", "equal"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    scores = torch.randn(2, valid.shape[0] + 1, valid.shape[1], generator=generator)
    scale = {"normal": 1.0, "flat": 1e-6, "one hot": 1.0, "huge": 1e6, "equal": 0.0}[kind]
    scores = scores * scale
    if kind == "one hot":
        scores[:, :, 0] = 1e4
    ratio = draw(st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1 / 3])))
    return valid, grid, token_grid, lines, scores, ratio


def views_of(case, which, *, lines=False):
    valid, grid, token_grid, numbers, scores, _ = case
    return Views(
        scores[which, 1:],
        valid,
        grid,
        thumbnail_scores=scores[which, 0],
        token_grid=token_grid,
        lines=numbers if lines else None,
    )


@settings(max_examples=2000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(cases(), METHODS)
def test_totals_are_exact_and_independent_of_scores(case, method):
    (method, options), valid, ratio = method, case[0], case[-1]
    tokens = valid.shape[1]
    everything = tokens + int(valid.sum())
    expected = max(1, math.floor(ratio * everything + 0.5))
    totals = []
    for which in (0, 1):
        views = views_of(case, which)
        keep = select(views, ratio, method, **options)
        assert not (keep.crops & ~valid).any()
        totals.append((int(keep.thumbnail.sum()), int(keep.crops.sum())))
    assert totals[0] == totals[1]
    assert sum(totals[0]) == expected
    if ratio == 1.0:
        assert keep.thumbnail.all()
        assert torch.equal(keep.crops, valid)


@settings(max_examples=600, deadline=None)
@given(cases(), METHODS)
def test_newlines_are_paid_for_and_kept_only_where_a_token_is(case, method):
    (method, options), valid, lines, ratio = method, case[0], case[3], case[-1]
    views = views_of(case, 0, lines=True)
    keep = select(views, ratio, method, newlines="counted", **options)
    budget = budget_of(views, ratio)
    assert not (keep.crops & ~valid).any()
    assert int(keep.thumbnail.sum()) == budget.thumbnail
    assert int(keep.crops.sum() + keep.newlines.sum()) == budget.crops
    occupied = torch.zeros(views.line_count, dtype=torch.bool)
    occupied[lines[keep.crops]] = True
    assert not (keep.newlines & ~occupied).any(), "a newline without a token"
    if (occupied & ~keep.newlines).any():  # tokens without newline: only what no open line could take
        on_open_line = valid & keep.newlines[lines.clamp(min=0)]
        assert not (on_open_line & ~keep.crops).any()


@settings(max_examples=300, deadline=None)
@given(cases(), st.sampled_from(["globalcom2", "uniform", "random"]), st.booleans(), st.booleans())
def test_a_batch_equals_its_images_one_by_one(case, method, with_lines, exact):
    valid, grid, token_grid, numbers, scores, ratio = case
    lines = numbers if with_lines else None
    batch = Views(scores[:, 1:], valid, grid, thumbnail_scores=scores[:, 0], token_grid=token_grid, lines=lines)
    together = select(batch, ratio, method, exact)
    for which in (0, 1):
        alone = select(views_of(case, which, lines=with_lines), ratio, method, exact)
        assert torch.equal(together.thumbnail[which], alone.thumbnail)
        assert torch.equal(together.crops[which], alone.crops)
        if with_lines:
            assert torch.equal(together.newlines[which], alone.newlines)


@pytest.mark.parametrize("grid", [(2, 1), (1, 3), (3, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("ratio", [0.05, 0.1, 0.125, 0.2, 0.25, 0.3])
def test_flat_images_in_a_batch(grid, ratio):
    """Crops of equal worth: the odd token goes to the same crop in every batch."""
    for side in (4, 6, 8, 24):
        crops, thumbnails = torch.zeros(3, grid[0] * grid[1], side * side), torch.zeros(3, side * side)
        shape = {"grid": grid, "token_grid": (side, side)}
        together = select(Views(crops, thumbnail_scores=thumbnails, **shape), ratio)
        alone = select(Views(crops[0], thumbnail_scores=thumbnails[0], **shape), ratio)
        for which in range(3):
            assert torch.equal(together.crops[which], alone.crops), side


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_apportion_against_a_plain_loop(data):
    n = data.draw(st.integers(1, 6))
    caps = data.draw(st.lists(st.integers(0, 30), min_size=n, max_size=n))
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=n, max_size=n))
    total = data.draw(st.integers(0, sum(caps)))
    got = apportion(
        torch.tensor([total]), torch.tensor([weights]), torch.zeros(1, n, dtype=torch.long), torch.tensor(caps)
    )[0]
    # Independent: fill one unit at a time would be another method, so solve for the quotas by capping and rescaling.
    quota, fixed = [0.0] * n, [c == 0 for c in caps]
    while True:
        left = total - sum(caps[i] for i in range(n) if fixed[i])
        mass = sum(weights[i] for i in range(n) if not fixed[i])
        quota = [float(caps[i]) if fixed[i] else left * weights[i] / mass for i in range(n)]
        over = [i for i in range(n) if not fixed[i] and quota[i] > caps[i] + 1e-9]
        if not over:
            break
        for i in over:
            fixed[i] = True
    assert int(got.sum()) == total
    for i in range(n):
        assert 0 <= int(got[i]) <= caps[i]
        assert abs(int(got[i]) - quota[i]) < 1 + 1e-6


def test_ranks_break_ties_by_index():
    assert ranks(torch.tensor([1.0, 3.0, 3.0, 0.0])).tolist() == [2, 0, 1, 3]


def test_the_richest_region_gets_the_most():
    thumbnail = torch.zeros(8, 8)
    thumbnail[:4, 4:] = 2.0  # top right
    views = Views(torch.randn(4, 64), grid=(2, 2), thumbnail_scores=thumbnail.flatten())
    counts = select(views, 0.25).crops.sum(1).tolist()
    assert counts[1] == max(counts)
    assert counts[1] > 1.3 * max(counts[0], counts[2], counts[3])


def test_regions_follow_the_valid_area():
    # One column of three crops, the first and the last half padded: the top quarter of the image is in crop 0.
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[0, :4], valid[2, 4:] = False, False
    thumbnail = torch.zeros(8, 8)
    thumbnail[:2] = 5.0
    views = Views(torch.randn(3, 64), valid.flatten(1), (3, 1), thumbnail_scores=thumbnail.flatten())
    keep = select(views, 0.25)
    ratios = keep.crops.sum(1) / valid.flatten(1).sum(1)
    assert ratios[0] > 1.5 * ratios[1]
    assert ratios[0] > 1.5 * ratios[2]


@pytest.mark.parametrize("constant", [-5.0, 0.0, 3.0])
def test_a_constant_added_to_the_thumbnail_changes_nothing(constant):
    """Crops of unequal valid area must not win or lose by the sign of the scores."""
    valid = torch.ones(3, 8, 8, dtype=torch.bool)
    valid[0, :4], valid[2, 4:] = False, False
    thumbnail = torch.zeros(8, 8, dtype=torch.float64)
    thumbnail[3:5] = 0.5
    local = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))

    def counts(thumbnail):
        views = Views(local, valid.flatten(1), (3, 1), thumbnail_scores=thumbnail.flatten())
        return select(views, 0.25, temperature=2.0, alpha=0.0).crops.sum(1)

    assert torch.equal(counts(thumbnail), counts(thumbnail + constant))
    flat = counts(torch.full((8, 8), constant)) / valid.flatten(1).sum(1)
    assert float(flat.max() - flat.min()) <= 1 / 32 + 1e-6


def test_allocation_by_attention_written_down_a_second_time():
    """3 x 1 crops, a quarter of the first and of the last padded; the thumbnail shows the valid 10 rows of tokens."""
    generator = torch.Generator().manual_seed(0)
    valid = torch.ones(3, 4, 4, dtype=torch.bool)
    valid[0, 0], valid[2, 3] = False, False
    scores, thumbnail = torch.randn(3, 16, generator=generator), torch.randn(16, generator=generator)
    views = Views(scores[None], valid.flatten(1), (3, 1), thumbnail_scores=thumbnail[None])
    ratios = globalcom2(views, 0.2, allocation="attention").ratios[0]
    for softmax in ({"temperature": 10.0}, {"crop_mass": "sum"}, {"allocation": "softmax"}):
        assert not torch.allclose(ratios, globalcom2(views, 0.2, **softmax).ratios[0])

    seen = [math.exp(v) for v in thumbnail.tolist()]
    own = [[math.exp(v) if ok else 0.0 for v, ok in zip(*row, strict=True)] for row in zip(scores.tolist(), valid.flatten(1).tolist(), strict=True)]  # fmt: skip
    edges = [0.0, 3 / 10 * 4, 7 / 10 * 4, 4.0]  # of the crops, in rows of the thumbnail
    for crop, count in enumerate((12, 16, 12)):
        mass = sum(
            value * max(0.0, min(edges[crop + 1], i // 4 + 1) - max(edges[crop], i // 4))
            for i, value in enumerate(seen)
        )
        share = (mass / sum(seen) + sum(own[crop]) / sum(map(sum, own))) / 2
        assert ratios[crop].item() == pytest.approx(0.2 * (0.25 + 0.75 * share * 40 / count), rel=1e-6)


@pytest.mark.parametrize("score_type", ["attention", "received", "similarity"])
def test_allocation_by_attention_needs_logits(score_type):
    views = Views(torch.rand(4, 9), grid=(2, 2), thumbnail_scores=torch.rand(9), score_type=score_type)
    with pytest.raises(InputError, match=f"scores before the softmax .* got score_type '{score_type}'"):
        select(views, 0.5, allocation="attention")
    with pytest.raises(InputError, match="got a video's guidance"):
        select(Views(torch.rand(4, 9), guidance=torch.rand(4, 9)), 0.5, allocation="attention")
    with pytest.raises(InputError, match="allocation must be one of joint, softmax, attention"):
        select(views, 0.5, allocation="area")
    assert select(views, 0.5).crops.sum() == select(views, 0.5, allocation="softmax").crops.sum()


@pytest.mark.parametrize("option", [{"temperature": 3.0}, {"crop_mass": "mean"}, {"regions": "blocks"}], ids=str)
def test_options_without_effect_are_refused(option):
    views = Views(torch.rand(4, 9), grid=(2, 2), thumbnail_scores=torch.rand(9))
    with pytest.raises(InputError, match=f"{next(iter(option))} must be left out with allocation='attention'"):
        select(views, 0.5, allocation="attention", **option)


def test_huge_scores_keep_their_order():
    views = Views(torch.arange(256.0).view(4, 64) * 1e30, grid=(2, 2), thumbnail_scores=torch.zeros(64))
    assert select(views, 0.25).crops[:, -10:].all()


def test_the_thumbnail_has_a_say_in_which_tokens_stay():
    thumbnail = torch.zeros(8, 8)
    thumbnail[1, 1] = 10.0
    views = Views(torch.zeros(4, 64), grid=(2, 2), thumbnail_scores=thumbnail.flatten())
    kept = select(views, 0.05).crops[0].view(8, 8)
    assert kept[1:5, 1:5].sum() == kept.sum()
    local = select(
        Views(torch.eye(64)[[9, 20, 30, 40]], grid=(2, 2), thumbnail_scores=thumbnail.flatten()), 0.05, alpha=0.0
    )
    assert local.crops[0, 9]


def test_random_depends_on_the_seed_alone():
    views = [Views(torch.randn(4, 64), grid=(2, 2), thumbnail_scores=torch.randn(64)) for _ in range(2)]
    assert torch.equal(select(views[0], 0.1, "random").crops, select(views[1], 0.1, "random").crops)
    assert not torch.equal(select(views[0], 0.1, "random", seed=1).crops, select(views[0], 0.1, "random").crops)


def test_softmaxed_scores_need_their_own_temperature():
    scores = torch.randn(5, 576).softmax(-1)
    scores[0, :144] *= 4
    logits = Views(scores[1:], grid=(2, 2), thumbnail_scores=scores[0])
    attention = Views(scores[1:], grid=(2, 2), thumbnail_scores=scores[0], score_type="attention")
    counts = [select(v, 0.5, allocation="softmax").crops.sum(1) for v in (logits, attention)]
    spread = [int(c.max() - c.min()) / 576 for c in counts]
    assert spread[0] < 0.02
    assert spread[1] > 0.2


def test_a_temperature_means_the_same_at_every_resolution():
    coarse = torch.randn(12, 12)
    fine = coarse.repeat_interleave(2, 0).repeat_interleave(2, 1)
    views = [Views(torch.zeros(1, 9, m.numel()), None, (3, 3), None, m.flatten()[None]) for m in (coarse, fine)]
    ratios = [globalcom2(v, 0.3, temperature=10.0).ratios for v in views]
    assert torch.allclose(*ratios)


def test_newlines_can_be_given_up_for_tokens():
    lines = torch.arange(8).repeat_interleave(8).repeat(4, 1) + torch.tensor([0, 0, 8, 8])[:, None]
    views = Views(torch.randn(4, 64), grid=(2, 2), thumbnail_scores=torch.randn(64), lines=lines)
    counted, none = select(views, 0.1), select(views, 0.1, newlines="none")
    assert not none.newlines.any()
    assert none.thumbnail.sum() == counted.thumbnail.sum()
    assert none.crops.sum() == counted.crops.sum() + counted.newlines.sum()
    assert select(views, 1.0, newlines="none").crops.all()


@settings(deadline=None)
@given(ratio=st.floats(0.001, 1.0), weight=st.floats(0.01, 20.0), newlines=st.sampled_from(["counted", "all", "none"]))
def test_the_thumbnails_weight_moves_tokens_and_keeps_the_total(ratio, weight, newlines):
    torch.manual_seed(0)
    lines = torch.arange(8).repeat_interleave(8).repeat(4, 1) + torch.tensor([0, 0, 8, 8])[:, None]
    views = Views(torch.randn(4, 64), grid=(2, 2), thumbnail_scores=torch.randn(64), lines=lines)
    usual, moved = (select(views, ratio, newlines=newlines, thumbnail_weight=w) for w in (1.0, weight))

    def total(keep):
        return int(keep.thumbnail.sum() + keep.crops.sum() + (keep.newlines.sum() if newlines != "all" else 0))

    assert total(moved) == total(usual)
    if newlines == "none":  # 16 of 336 are newlines, which no token can stand for
        assert total(moved) == min(320, max(1, math.floor(ratio * 336 + 0.5)))
    assert (moved.thumbnail.sum() - usual.thumbnail.sum()) * (weight - 1.0) >= 0


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "2", True])
def test_a_bad_thumbnail_weight_is_refused(weight):
    with pytest.raises(InputError, match="thumbnail_weight must be"):
        select(Views(torch.zeros(1, 4), grid=(1, 1), thumbnail_scores=torch.zeros(4)), 0.5, thumbnail_weight=weight)


@pytest.mark.parametrize("method", ["divprune", "scope", "dart", "hired", "thumbnail_only"])
def test_a_thumbnail_that_competes_has_no_weight(method):
    given = {name: torch.rand(3, 4, 4) for name in ("features", "keys")}
    views = Views(torch.rand(2, 4), thumbnail_scores=torch.rand(4), layer_scores=torch.rand(1, 3, 4), **given)
    select(views, 0.5, method, thumbnail_weight=1.0)
    with pytest.raises(InputError, match=f"thumbnail_weight must be 1 for method '{method}', got 2: it ranks"):
        select(views, 0.5, method, thumbnail_weight=2.0)


def test_an_image_without_crops_keeps_its_thumbnail():
    keep = select(Views(torch.zeros(0, 64), thumbnail_scores=torch.arange(64.0)), 0.25)
    assert keep.crops.shape == (0, 64)
    assert keep.thumbnail.nonzero().flatten().tolist() == list(range(48, 64))


def test_an_image_without_thumbnail_has_only_crops():
    keep = select(Views(torch.randn(4, 64), grid=(2, 2)), 0.25, "uniform")
    assert keep.thumbnail.shape == (0,)
    assert int(keep.crops.sum()) == 64
    with pytest.raises(InputError, match="thumbnail_scores must be given"):
        select(Views(torch.randn(4, 64), grid=(2, 2)), 0.25)


@pytest.mark.parametrize(("crop_mass", "winner"), [("sum", 0), ("mean", 0), ("max", 3)])
def test_crop_mass(crop_mass, winner):
    thumbnail = torch.zeros(8, 8)
    thumbnail[:4, :4], thumbnail[7, 7] = 1.0, 3.0
    views = Views(torch.randn(4, 64), grid=(2, 2), thumbnail_scores=thumbnail.flatten())
    assert int(select(views, 0.25, crop_mass=crop_mass, temperature=0.5).crops.sum(1).argmax()) == winner


@pytest.mark.parametrize("method", list_methods())
def test_selectors_leave_their_input_alone(method):
    given = {
        "scores": torch.rand(4, 64),
        "thumbnail_scores": torch.rand(64),
        "features": torch.randn(5, 64, 8),
        "keys": torch.randn(5, 64, 8),
        "cls": torch.randn(5, 8),
        "layer_scores": torch.rand(len(get_method(method).layers), 5, 64),
    }
    before = {name: tensor.clone() for name, tensor in given.items()}
    select(Views(grid=(2, 2), score_type="attention", **given), 0.2, method)
    for name, tensor in given.items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_dtype(dtype):
    views = Views(torch.randn(4, 64).to(dtype), grid=(2, 2), thumbnail_scores=torch.randn(64).to(dtype))
    assert int(select(views, 0.25).crops.sum()) == 64


@pytest.mark.parametrize(
    ("ratio", "message"),
    [(25, r"got 25. Did you mean 0.25\?"), (0, "got 0"), (-0.1, "got -0.1"), (1.01, "Did you mean 0.0101"), ("a", "got 'a'"),
     (float("nan"), "got nan"), (True, "got True"), (10**400, "hundreds of digits")],
)  # fmt: skip
def test_ratios_out_of_range(ratio, message):
    with pytest.raises(InputError, match=message):
        check_ratio(ratio)


def test_budget_is_plain_integers():
    assert keep_counts(0.1, 576, 2304, 48) == (293, 58, 235)
    assert keep_counts(1.0, 576, 2304, 48) == (2928, 576, 2352)
    assert keep_counts(0.0001, 64, 64) == (1, 1, 0)
    assert keep_counts(0.5, 64, 0) == (32, 32, 0)
    assert keep_counts(0.5, 0, 0) == (0, 0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Views(torch.zeros(4, 64), grid=(3, 2)), r"rows \* cols == 4"),
        (lambda: Views(torch.zeros(4, 60)), "A view that is not square"),
        (lambda: Views(torch.zeros(4, 64, dtype=torch.long)), "got int64"),
        (lambda: Views(torch.zeros(4, 64), torch.ones(4, 63, dtype=torch.bool)), r"got bool \(4, 63\)"),
        (lambda: Views(torch.zeros(4, 64), thumbnail_scores=torch.zeros(63)), "thumbnail_scores"),
        (lambda: Views(torch.zeros(0, 64)), "no view to keep"),
        (lambda: Views(torch.zeros(4, 64), features=torch.zeros(4, 64, 8)), "Thumbnail first"),
        (lambda: Views(torch.zeros(4, 64), score_type="logit"), "score_type"),
        (lambda: Views(torch.zeros(4, 64), grid=4), "grid must be"),
        (lambda: Views(torch.zeros(4, 64), grid=(-2, -2)), "grid must be"),
        (lambda: Views(torch.zeros(4, 64), grid=(1.6, 2.5)), "grid must be"),
        (lambda: Views(torch.zeros(4, 64), valid=[[True]]), "valid must be a bool tensor"),
        (lambda: Views(torch.zeros(4, 64), lines=torch.zeros(4, 64)), "lines must be an int tensor"),
        (lambda: Views(torch.zeros(4, 64), lines=torch.full((4, 64), 2)), "without gaps"),
    ],
)
def test_shapes_that_do_not_fit(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_bad_arguments_of_select():
    views = Views(torch.randn(4, 64), grid=(2, 2), thumbnail_scores=torch.randn(64))
    with pytest.raises(InputError, match="Did you mean 'globalcom2'"):
        select(views, 0.1, "globalcom")
    with pytest.raises(InputError, match="Did you mean 'temperature'"):
        select(views, 0.1, temprature=3)
    with pytest.raises(InputError, match="alpha"):
        select(views, 0.1, alpha=2.0)
    for temperature in (0.0, float("inf"), float("nan"), "a"):
        with pytest.raises(InputError, match="temperature must be a positive"):
            select(views, 0.1, temperature=temperature)
    with pytest.raises(InputError, match=r"views must be a globalcom2\.Views"):
        select(torch.randn(4, 64), 0.1)
    with pytest.raises(InputError, match="seed must be an integer"):
        select(views, 0.1, "random", seed=1.5)
    with pytest.raises(InputError, match="crop_mass"):
        select(views, 0.1, crop_mass="median")
    with pytest.raises(InputError, match="newlines"):
        select(views, 0.1, newlines="some")
    for where in ("scores", "thumbnail_scores"):
        broken = {"scores": torch.randn(4, 64), "thumbnail_scores": torch.randn(64)}
        broken[where].view(-1)[3] = float("nan")
        with pytest.raises(DataError, match=f"{where} must be finite, got 1"):
            select(Views(broken["scores"], grid=(2, 2), thumbnail_scores=broken["thumbnail_scores"]), 0.1)
