"""One order over all crops, against the definition carried out token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import toys
from globalcom2 import InputError, Views, select
from globalcom2.core import allocation
from globalcom2.core.newlines import image_budget
from globalcom2.core.ranking import Ranking


def sequentially(thumbnail, crops, valid, lines, line_count, competes, budget, opens, counted):
    """(thumbnail's kept tokens, crops' kept tokens, lines that keep their newline) as sets, of plain lists."""
    crop_tokens = [(c, t) for c, row in enumerate(crops) for t in range(len(row)) if valid[c][t]]
    score = {("crop", c, t): crops[c][t] for c, t in crop_tokens}
    line = {("crop", c, t): lines[c][t] for c, t in crop_tokens}
    names = [("crop", c, t) for c, t in crop_tokens]
    total, first = budget.crops, set()
    if competes:
        own = [("thumbnail", 0, t) for t in range(len(thumbnail))]
        score |= {name: thumbnail[name[2]] for name in own}
        names, total = own + names, budget.total
    else:
        order = sorted(range(len(thumbnail)), key=lambda t: (-thumbnail[t], t))
        first = {("thumbnail", 0, t) for t in order[: budget.thumbnail]}
    names = sorted(names, key=lambda name: -score[name])  # stable: equal scores by index
    held, bought, kept = [0] * line_count, set(), []

    def opens_a_line(name):
        return counted and name in line and held[line[name]] + 1 == opens

    for name in names:
        cost = 2 if opens_a_line(name) else 1
        if cost > total:
            break
        total -= cost
        kept.append(name)
        if cost == 2:
            bought.add(line[name])
        if counted and name in line:
            held[line[name]] += 1
    rest = [name for name in names if name not in kept]
    if total and rest:
        cheap = [name for name in rest if not opens_a_line(name)]
        kept.append((cheap or rest)[0])
        total -= 1
    for number in range(line_count):
        if counted and total and number not in bought:
            bought.add(number)
            total -= 1
    return first | set(kept), bought


@st.composite
def joint_cases(draw):
    crops, side = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    tokens = side * side
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    valid = torch.rand(crops, tokens, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    valid[0, 0] = True
    lines = torch.randint(0, draw(st.integers(1, 8)), (crops, tokens), generator=generator)
    lines = torch.where(valid, lines, -1)
    numbers = lines[valid].unique()
    lines[valid] = torch.searchsorted(numbers, lines[valid])
    levels = draw(st.sampled_from([1, 3, 1000]))  # few levels: many ties
    scores = torch.randint(0, levels, (2, 1 + crops, tokens), generator=generator).float()
    ratio = draw(st.one_of(st.floats(0.001, 1.0), st.sampled_from([0.01, 0.05, 0.5, 1.0])))
    return valid, lines, len(numbers), scores, ratio


@settings(max_examples=1000, deadline=None)
@given(joint_cases(), st.sampled_from(["counted", "all", "none"]), st.booleans(), st.integers(1, 4))
def test_joint_is_the_sequential_definition(case, newlines, competes, opens):
    valid, lines, count, scores, ratio = case
    budget = image_budget(ratio, scores.shape[-1], int(valid.sum()), count, newlines)
    counted = newlines == "counted"
    ranking = Ranking(scores[:, 0], scores[:, 1:], thumbnail_competes=competes)
    thumbnail, crops, kept_lines = allocation.joint(
        ranking, budget, valid, lines if counted else None, count if counted else 0, opens
    )
    assert not (crops & ~valid).any()
    for which in (0, 1):
        kept, bought = sequentially(
            scores[which, 0].tolist(),
            scores[which, 1:].tolist(),
            valid.tolist(),
            lines.tolist(),
            count,
            competes,
            budget,
            opens,
            counted,
        )
        found = {("thumbnail", 0, t) for t in thumbnail[which].nonzero().flatten().tolist()}
        found |= {("crop", c, t) for c, t in crops[which].nonzero().tolist()}
        assert found == kept
        total = len(kept)
        if counted:
            assert set(kept_lines[which].nonzero().flatten().tolist()) == bought
            total += len(bought)
        assert total == budget.total


def test_less_than_a_token_and_its_newline(monkeypatch):
    """One place for crops: the token stays, its newline does not."""
    toys.register(monkeypatch, lambda views, ratio: Ranking(views.thumbnail_scores, views.scores))
    lines = torch.tensor([[0, 0, 1, 1]])
    views = Views(torch.tensor([[0.0, 3.0, 1.0, 2.0]]), grid=(1, 1), thumbnail_scores=torch.zeros(4), lines=lines)
    keep = select(views, 0.2, "toy")
    assert int(keep.thumbnail.sum()) == 1
    assert keep.crops.tolist() == [[False, True, False, False]]
    assert not keep.newlines.any()


def test_a_crop_may_be_left_without_a_token(monkeypatch):
    toys.register(monkeypatch, lambda views, ratio: Ranking(views.thumbnail_scores, views.scores))
    scores = torch.randn(4, 16)
    scores[2] += 100
    views = Views(scores, grid=(2, 2), thumbnail_scores=torch.randn(16))
    assert select(views, 0.2, "toy").crops.sum(1).tolist() == [0, 0, 13, 0]


@pytest.mark.parametrize("newlines", ["counted", "all", "none"])
@pytest.mark.parametrize("competes", [False, True])
@pytest.mark.parametrize("ratio", [0.003, 0.1, 0.7, 1.0])
def test_select_keeps_the_promised_total(monkeypatch, newlines, competes, ratio):
    toys.register(
        monkeypatch, lambda views, ratio: Ranking(views.thumbnail_scores, views.scores, thumbnail_competes=competes)
    )
    lines = torch.arange(8).repeat_interleave(8).repeat(4, 1) + torch.tensor([0, 0, 8, 8])[:, None]
    views = Views(torch.randn(2, 4, 64), grid=(2, 2), thumbnail_scores=torch.randn(2, 64), lines=lines)
    keep = select(views, ratio, "toy", newlines=newlines)
    totals = keep.thumbnail.sum(1) + keep.crops.sum((1, 2)) + (keep.newlines.sum(1) if newlines == "counted" else 0)
    assert totals.tolist() == [image_budget(ratio, 64, 256, 16, newlines).total] * 2
    assert keep.newlines.all() if newlines == "all" else newlines == "counted" or not keep.newlines.any()


def test_without_crops_and_without_a_thumbnail(monkeypatch):
    for competes in (False, True):
        toys.register(
            monkeypatch,
            lambda views, ratio, competes=competes: Ranking(
                views.thumbnail_scores, views.scores, thumbnail_competes=competes
            ),
        )
        keep = select(Views(torch.zeros(0, 9), thumbnail_scores=torch.arange(9.0)), 0.3, "toy")
        assert keep.thumbnail.nonzero().flatten().tolist() == [6, 7, 8]
        assert keep.crops.shape == (0, 9)
        frames = Views(torch.arange(18.0).view(2, 9), guidance=torch.zeros(2, 9))
        assert select(frames, 0.5, "toy").crops.tolist() == [[False] * 9, [True] * 9]


def test_a_joint_order_has_no_published_rounding(monkeypatch):
    toys.register(monkeypatch, lambda views, ratio: Ranking(views.thumbnail_scores, views.scores))
    views = Views(torch.zeros(4, 9), grid=(2, 2), thumbnail_scores=torch.zeros(9))
    with pytest.raises(InputError, match="exact must be True for method 'toy', got False"):
        select(views, 0.5, "toy", exact=False)
