"""newlines="from_m": a line keeps its newline from its m-th kept token on, and totals stay exact."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from globalcom2 import CompressionConfig, InputError, Ranking, Views, select
from globalcom2.core.newlines import check_newlines, image_budget, opens_at
from globalcom2.core.selection import budget_of


@st.composite
def packings(draw):
    """(grid, token grid, valid, lines) of stitched crops with some padding, as AnyRes makes them."""
    rows, cols = draw(st.sampled_from([(1, 1), (2, 2), (1, 3), (3, 2)]))
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    canvas = torch.ones(rows * height, cols * width, dtype=torch.bool)
    canvas[: draw(st.integers(0, (rows * height - 1) // 2))] = False
    canvas[:, cols * width - draw(st.integers(0, (cols * width - 1) // 2)) :] = False
    shown = canvas.any(1)
    number = (shown.cumsum(0) - 1)[:, None].expand_as(canvas).masked_fill(~canvas, -1)
    valid, lines = (
        m.view(rows, height, cols, width).transpose(1, 2).reshape(rows * cols, -1) for m in (canvas, number)
    )
    return (rows, cols), (height, width), valid, lines


def held_by(crops, views):
    """Kept tokens of every line, counted one by one."""
    held = [0] * views.line_count
    for keep, line in zip(crops.flatten().tolist(), views.lines.flatten().tolist(), strict=True):
        if keep:
            held[line] += 1
    return torch.tensor(held)


@given(packings(), st.floats(0.01, 1.0), st.sampled_from(["from_2", "from_3", "from_7"]), st.integers(0, 2**31),
       st.sampled_from(["globalcom2", "globalcom2:allocation=softmax", "uniform"]))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_totals_are_exact_and_newlines_follow_the_rule(packing, ratio, rule, seed, method):
    grid, tokens, valid, lines = packing
    generator = torch.Generator().manual_seed(seed)
    scores, thumbnail = torch.randn(*valid.shape, generator=generator), torch.randn(valid.shape[1], generator=generator)
    views = Views(scores, valid, grid, None, thumbnail, tokens, lines)
    keep = select(views, ratio, method, newlines=rule)
    assert int(keep.thumbnail.sum() + keep.crops.sum() + keep.newlines.sum()) == budget_of(views, ratio, rule).total
    assert budget_of(views, ratio, rule) == budget_of(views, ratio, "counted")
    assert not (keep.crops & ~valid).any()
    if keep.crops.sum() == valid.sum():
        return  # what is left over buys newlines
    held = held_by(keep.crops, views)
    assert (held[keep.newlines] >= opens_at(rule)).all()
    # Left-over budget may buy a line its last token before the newline, and where nothing else is left, one more.
    assert ((held >= opens_at(rule)) & ~keep.newlines).sum() <= 1 or method != "globalcom2"


@pytest.mark.parametrize("opens", [2, 3])
@pytest.mark.parametrize("seed", range(20))
def test_the_largest_number_of_tokens_that_can_be_paid(seed, opens):
    """Shares by ratio: no larger total, with the newlines that it opens, fits the budget."""
    generator = torch.Generator().manual_seed(seed)
    lines = torch.arange(8).repeat_interleave(8).repeat(4, 1) % 8 + torch.tensor([0, 0, 8, 8])[:, None]
    scores, ratios = torch.randn(4, 64, generator=generator), torch.rand(4, generator=generator)
    views = Views(scores, None, (2, 2), None, torch.randn(64, generator=generator), lines=lines)
    keep = select(views, 0.1, lambda views, ratio: Ranking(views.thumbnail_scores, views.scores, ratios[None]),
                  newlines=f"from_{opens}")  # fmt: skip
    total = int(keep.crops.sum())
    bare = Views(scores, None, (2, 2), None, views.thumbnail_scores)
    for more in range(total + 1, total + 17):
        larger = select(
            bare,
            (more + 64) / 320,
            lambda views, ratio: Ranking(views.thumbnail_scores, views.scores, ratios[None]),
            thumbnail_weight=320 / (more + 64),
        )
        assert int(larger.crops.sum()) == more
        cost = more + int((held_by(larger.crops, views) >= opens).sum())
        assert cost > budget_of(views, 0.1).crops


def test_one_line_per_rule():
    """16 lines of 4 tokens in one crop; the 8 best tokens stand on lines 0 (3), 1 (2) and 2 to 4 (1 each)."""
    scores = torch.zeros(1, 64)
    for place, score in zip([0, 1, 2, 4, 5, 8, 12, 16], range(80, 0, -10), strict=True):
        scores[0, place] = float(score)
    lines = torch.arange(16).repeat_interleave(4)[None]
    views = Views(scores, None, (1, 1), None, torch.zeros(64), (16, 4), lines)
    options = {"method": "globalcom2:alpha=0,crop_price=0", "thumbnail_weight": 1e-9}
    counted, second, third = (
        select(views, 11 / 144, newlines=rule, **options) for rule in ("counted", "from_2", "from_3")
    )
    assert [int(keep.crops.sum()) for keep in (counted, second, third)] == [7, 8, 9]
    assert counted.newlines.nonzero().flatten().tolist() == [0, 1, 2]
    assert second.newlines.nonzero().flatten().tolist() == [0, 1]
    assert third.newlines.nonzero().flatten().tolist() == [0]


@pytest.mark.parametrize(
    "value", ["from_1", "from_0", "from_", "from_-2", "from_2.0", "second", 2, None, ("counted",), ["none"]]
)
def test_wrong_rules(value):
    with pytest.raises(InputError, match=r"newlines must be one of counted, all, none, from_2, from_3, \.\.\., got"):
        check_newlines(value)


def test_a_config_takes_any_rule():
    assert CompressionConfig(newlines="from_5").newlines == "from_5"
    assert CompressionConfig(method="globalcom2:newlines=from_12").newlines == "from_12"
    with pytest.raises(InputError, match="from_1"):
        CompressionConfig(newlines="from_1")


def test_budgets_are_those_of_counted_newlines():
    assert image_budget(0.1, 64, 256, 16, "from_3") == image_budget(0.1, 64, 256, 16, "counted")
    assert [opens_at(rule) for rule in ("counted", "all", "none", "from_2", "from_40")] == [1, 0, 0, 2, 40]
