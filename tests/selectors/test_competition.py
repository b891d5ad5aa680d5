"""The joint order of globalcom2, against plain loops."""

import math

import pytest
import torch

from globalcom2 import InputError, Views, select
from globalcom2.selectors import competition
from globalcom2.selectors.competition import compete
from globalcom2.selectors.globalcom2 import globalcom2

VALID = torch.ones(4, 9, dtype=torch.bool)


def drawn(seed, batch=(), tokens=9):
    generator = torch.Generator().manual_seed(seed)
    worth = torch.randn(*batch, 4, tokens, generator=generator).double()
    return worth, torch.randn(*batch, 4, tokens, 6, generator=generator)


def sequence_of(scores):
    return scores.flatten().argsort(descending=True).tolist()


def by_hand(worth, features, count, likeness, crop_price):
    """The documented rounds for one image, with lists."""
    crops, tokens = worth.shape
    values, where = worth.flatten().tolist(), [i // tokens for i in range(crops * tokens)]
    rank = [sum(values[j] > values[i] for j in range(len(values)) if where[j] == where[i]) for i in range(len(values))]
    priced = [v - crop_price * math.log(1 + r) for v, r in zip(values, rank, strict=True)]
    order = sorted(range(len(values)), key=lambda i: -priced[i])
    few, rest = order[: 2 * count], order[2 * count :]
    x = features.flatten(0, 1).double()
    x = x - x.mean(0)
    x = (x / x.norm(dim=1, keepdim=True)).tolist()
    for _ in range(4):
        charged = {}
        for place, i in enumerate(few):
            before = few[:place]
            cosines = [sum(a * b for a, b in zip(x[i], x[j], strict=True)) for j in before]
            had = sum(where[j] == where[i] for j in before)
            charged[i] = values[i] - likeness * max([0.0, *cosines]) - crop_price * math.log(1 + had)
        few = sorted(few, key=lambda i: -charged[i])
    return few + rest


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("likeness", "crop_price"), [(1.5, 0.5), (0.7, 0.0), (3.0, 2.0)])
def test_the_order_written_down_a_second_time(seed, likeness, crop_price):
    worth, features = drawn(seed)
    found = compete(worth[None], VALID, features[None], 6, likeness, crop_price)
    assert sequence_of(found) == by_hand(worth, features, 6, likeness, crop_price)


@pytest.mark.parametrize("crop_price", [0.0, 0.5, 4.0])
def test_price_alone_is_the_order_token_by_token(crop_price):
    worth, _ = drawn(3)
    had, left, order = [0] * 4, set(range(36)), []
    while left:
        best = max(left, key=lambda i: float(worth.flatten()[i]) - crop_price * math.log(1 + had[i // 9]))
        order.append(best)
        had[best // 9] += 1
        left.remove(best)
    assert sequence_of(compete(worth[None], VALID, None, 9, 1.5, crop_price)) == order


def test_what_is_seen_already_comes_later():
    """Crops 0 and 1 show one thing and are worth most; crop 2 shows another."""
    features = torch.zeros(1, 4, 9, 3)
    features[:, :2, :, 0], features[:, 2, :, 1], features[:, 3, :, 2] = 1.0, 1.0, 1.0
    worth = torch.tensor([4.0, 3.9, 3.0, 0.0]).view(1, 4, 1).expand(1, 4, 9).clone().double()
    first = [i // 9 for i in sequence_of(compete(worth, VALID, features, 18, 2.0, 0.0))[:3]]
    assert first == [0, 2, 0]
    assert [i // 9 for i in sequence_of(compete(worth, VALID, features, 18, 0.0, 0.0))[:3]] == [0, 0, 0]


def test_batch_equals_single_and_padding_comes_last():
    worth, features = drawn(1, (3,))
    valid = VALID.clone()
    valid[2, 4:], valid[0, 0] = False, False
    many = compete(worth, valid, features, 7, 1.5, 0.5)
    for one in range(3):
        alone = compete(worth[one : one + 1], valid, features[one : one + 1], 7, 1.5, 0.5)
        assert sequence_of(alone) == sequence_of(many[one])
        assert many[one][~valid].max() < many[one][valid].min()


def test_large_budgets_compare_the_last_candidates(monkeypatch):
    """The first tokens of a large budget are safe: they stand in front, in the order of worth and price."""
    worth, features = drawn(2)
    monkeypatch.setattr(competition, "MOST", 8)
    order = sequence_of(compete(worth[None], VALID, features[None], 10, 1.5, 0.5))
    plain = sequence_of(compete(worth[None], VALID, None, 10, 1.5, 0.5))
    assert order[:12] == plain[:12]
    assert order[12:20] != plain[12:20]
    assert sorted(order[12:20]) == sorted(plain[12:20])
    assert order[20:] == plain[20:]


def views(scores, thumbnail, features, score_type="similarity"):
    return Views(scores, None, (2, 2), features, thumbnail, score_type=score_type)


@pytest.mark.parametrize("score_type", ["logits", "attention", "mean_query", "received", "similarity"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_neither_scale_nor_the_offset_of_a_view_matters(score_type, scale):
    scores, features = drawn(4, tokens=64)
    thumbnail = torch.randn(64, generator=torch.Generator().manual_seed(5)).double()
    features = torch.cat([features.mean(0, keepdim=True), features])
    offsets = torch.tensor([5.0, -3.0, 0.0, 40.0])[:, None]
    plain = select(views(scores, thumbnail, features, score_type), 0.1)
    moved = select(views((scores + offsets) * scale, (thumbnail - 7) * scale, features, score_type), 0.1)
    assert torch.equal(plain.crops, moved.crops)
    counts = plain.crops.sum(1)
    assert counts.max() >= 2 * counts.min()


@pytest.mark.parametrize("score_type", ["logits", "attention", "received", "similarity"])
def test_the_thumbnail_commands_how_many(score_type):
    """Crops of equal scores; the thumbnail's lower right quarter is what matters."""
    scores = drawn(6, tokens=64)[0][:1].expand(4, 64)
    thumbnail = torch.zeros(8, 8).double()
    thumbnail[4:, 4:] = 1e-3
    counts = select(views(scores, thumbnail.flatten(), None, score_type), 0.1).crops.sum(1)
    assert int(counts[3]) >= 2 * int(counts[:3].max())
    assert counts[:3].max() - counts[:3].min() <= 1


def test_equal_scores_everywhere():
    keep = select(views(torch.zeros(4, 64), torch.zeros(64), torch.ones(5, 64, 8)), 0.1)
    assert int(keep.thumbnail.sum() + keep.crops.sum()) == 32
    counts = keep.crops.sum(1)
    assert counts.max() - counts.min() <= 1


def test_equal_scores_say_nothing_whatever_their_value():
    """A resized map of equal scores differs in its last bits."""
    valid = torch.ones(4, 3, 3, dtype=torch.bool)
    valid[2:, 1:] = False

    def counts(value):
        given = {"thumbnail_scores": torch.full((121,), value), "thumbnail_grid": (11, 11)}
        return select(Views(torch.full((4, 9), value), valid.flatten(1), (2, 2), **given), 0.3).crops.sum(1).tolist()

    assert {tuple(counts(value)) for value in (0.1, 1.3584252, 2.7, 33.3)} == {tuple(counts(0.0))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likeness": -1.0}, r"likeness must be a number in \[0, 1e\+06\], got -1"),
        ({"crop_price": "high"}, "crop_price must be a number"),
        ({"likeness": float("nan")}, "likeness must be a number"),
        ({"alpha": 1.5}, r"alpha must be a number in \[0, 1\]"),
        ({"likeness": 1.0, "allocation": "softmax"}, "likeness must be left out with allocation='softmax'"),
        ({"likeness": 1.0, "temperature": 10.0}, "likeness must be left out with allocation='softmax'"),
        ({"temperature": 1.0, "allocation": "joint"}, "temperature must be left out with allocation='joint'"),
        ({"crop_price": 1.0, "exact": False}, "crop_price must be left out with allocation='softmax', got 1.0"),
        (
            {"allocation": "joint", "exact": False},
            "must be left out with allocation='joint', got 'blocks'. Use allocation='softmax', which exact=False needs",
        ),
        ({"temperature": True}, "temperature must be a positive number, got True"),
    ],
)
def test_options_out_of_place(options, message):
    with pytest.raises(InputError, match=message):
        select(views(torch.randn(4, 64), torch.randn(64), None), 0.1, **options)


def test_videos_keep_their_own_allocation():
    guided = Views(torch.randn(1, 4, 16), guidance=torch.randn(1, 4, 16))
    assert globalcom2(guided, 0.2).ratios is not None
    assert globalcom2(guided, 0.2, allocation="joint").ratios is None
