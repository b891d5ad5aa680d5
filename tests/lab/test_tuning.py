"""What `tune` promises is false in at most 5 of 100 sets, whatever the losses are like; and it promises what is plain."""

import math
from itertools import pairwise

import numpy as np
import pytest

from globalcom2 import InputError
from globalcom2.lab import tuning
from globalcom2.lab.dataset import Example, Question
from globalcom2.lab.evals import settings_of
from globalcom2.lab.promises import (
    BETS,
    Candidate,
    Losses,
    check,
    choose,
    fewest_pictures,
    holds,
    pictures_needed,
    plan,
    split,
    upper_bound,
    walk,
)


def losses(lost, asked=8):
    lost = np.asarray(lost)
    asked = np.broadcast_to(asked, lost.shape)
    return Losses(lost, asked, int(asked.max()))


@pytest.mark.parametrize("bound", [0.01, 0.02, 0.05, 0.2])
@pytest.mark.parametrize("pictures", [60, 299, 302])
def test_rare_total_losses_at_the_bound_are_promised_in_5_of_100_sets_at_most(bound, pictures):
    """Each picture loses all its answers with a chance of `bound`: the chance of a promise, by the binomial formula."""
    chances = [
        math.comb(pictures, wrong) * bound**wrong * (1 - bound) ** (pictures - wrong) for wrong in range(pictures + 1)
    ]
    for bet in BETS[::10]:
        passing = []
        for wrong in range(pictures + 1):
            lost = np.zeros(pictures, int)
            lost[:wrong] = 8
            passing.append(holds(losses(lost), bet, bound))
            if not passing[-1]:
                break
        assert sum(chance for chance, passes in zip(chances, passing, strict=False) if passes) <= 0.05


def edge(kind, pictures, bound, rng):
    """Questions asked about and lost on pictures of a population that loses exactly `bound`."""
    asked = np.full(pictures, 8)
    if kind == "whole pictures":
        lost = np.where(rng.random(pictures) < bound, 8, 0)
    elif kind == "single questions":
        lost = rng.binomial(8, bound, pictures)
    elif kind == "gains and losses":
        lost = rng.binomial(8, 2 * bound, pictures) - rng.binomial(8, bound, pictures)
    else:  # one picture in ten has 20 questions, the others two, and loses three times as much
        large = rng.random(pictures) < 0.1
        asked = np.where(large, 20, 2)
        rates = np.where(large, 1.5 * bound, bound * (3.8 - 1.5 * 2) / 1.8)
        lost = asked * (rng.random(pictures) < rates)
    return lost, asked


@pytest.mark.parametrize("kind", ["whole pictures", "single questions", "gains and losses", "unequal pictures"])
def test_a_false_promise_is_made_in_5_of_100_sets_at_most(kind):
    """Three settings at the bound, of which none holds, through the whole search; a fourth loses more and is cheapest."""
    bound, pictures, sets, wrong = 0.06, 160, 150, 0
    for seed in range(sets):
        rng = np.random.default_rng(seed)
        found = [edge(kind, pictures, bound, rng) for _ in range(3)]
        asked = found[0][1]
        tries = [Losses(lost, own, 20) for lost, own in found]
        tries.append(Losses(asked.copy(), asked, 20))
        choosing, checking = split(pictures, seed)
        candidates = choose(
            [Losses(one.lost[choosing], one.asked[choosing], 20) for one in tries], [9, 8, 7, 1], bound, len(checking)
        )

        def checked(candidate, tries=tries, checking=checking):
            one = tries[candidate.index]
            return Losses(one.lost[checking], one.asked[checking], 20)

        wrong += any(done.holds for done in check(walk(candidates), checked, bound))
    assert wrong <= 0.05 * sets


def test_what_plainly_holds_is_promised_and_the_cheapest_of_it():
    """600 pictures with 8 questions; two settings lose half a point, one a point and a half; the bound is two points."""
    got = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        rates, costs = (0.004, 0.005, 0.005, 0.015), (100.0, 50.0, 25.0, 10.0)
        lost = [rng.binomial(8, rate + 0.005, 600) - rng.binomial(8, 0.005, 600) for rate in rates]
        choosing, checking = split(600, seed)
        candidates = choose([losses(one[choosing]) for one in lost], costs, 0.02, len(checking))
        done = check(walk(candidates), lambda one, lost=lost, half=checking: losses(lost[one.index][half]), 0.02)
        got.append([one.candidate.cost for one in done if one.holds][-1:])
    assert got.count([25.0]) >= 30
    assert got.count([]) <= 4


def test_the_upper_bound_is_the_least_bound_that_would_be_promised():
    rng = np.random.default_rng(0)
    for _ in range(3):
        found = losses(rng.binomial(8, 0.02, 200) - rng.binomial(8, 0.01, 200))
        bet = float(rng.choice(BETS))
        grid = [step / 400 for step in range(1, 80)]
        passing = [bound for bound in grid if holds(found, bet, bound)]
        upper = upper_bound(found, bet)
        assert passing == [bound for bound in grid if bound >= upper]
        assert upper > found.rate


def test_every_question_counts_alike():
    """One picture with 20 questions loses 5, nine with 2 lose 1 together: 6 of 38."""
    found = losses([5, 1] + [0] * 8, [20] + [2] * 9)
    assert found.rate == 6 / 38
    assert abs(found.margins(6 / 38).sum()) < 1e-12
    assert found.margins(0.3).min() >= 0.3 - 1


def test_the_fewest_pictures_are_enough_and_one_less_is_not():
    for bound in (0.01, 0.02, 0.1):
        count = fewest_pictures(bound)
        assert holds(losses(np.zeros(count, int)), float(BETS[-1]), bound)
        assert not holds(losses(np.zeros(count - 1, int)), float(BETS[-1]), bound)
    assert fewest_pictures(0.01) == 302  # 299 with the whole purse at stake


def test_pictures_needed():
    rng = np.random.default_rng(1)
    found = losses(rng.binomial(8, 0.01, 300))
    count = pictures_needed(found, 0.02)
    assert plan(found, 0.02, count, seed=1, total_losses=0)[1] > 0.7
    assert plan(found, 0.02, int(0.8 * count), seed=1, total_losses=0)[1] < 0.8
    assert pictures_needed(found, 0.005) is None
    assert pictures_needed(losses(np.zeros(50, int)), 0.05) >= fewest_pictures(0.05)


def test_the_order_of_checking():
    """Likeliest first, then only what is cheaper; what has hardly a chance is left out."""
    chances = [(300, 0.9), (200, 1.0), (150, 0.6), (160, 0.7), (100, 0.6), (90, 0.05), (170, 0.65)]
    found = walk([Candidate(n, cost, 0.0, 0.5, chance) for n, (cost, chance) in enumerate(chances)])
    assert [one.index for one in found] == [1, 3, 4]
    for before, after in pairwise(found):
        assert after.cost < before.cost


def test_checking_stops_at_the_first_that_fails():
    asked = []

    def of(candidate):
        asked.append(candidate.index)
        return losses(np.full(300, 8 if candidate.index == 1 else 0))

    done = check([Candidate(n, 3.0 - n, 0.0, 0.9, 1.0) for n in range(3)], of, 0.02)
    assert asked == [0, 1]
    assert [one.holds for one in done] == [True, False]


def test_halves_are_apart_and_drawn_by_the_seed():
    first, second = split(11, 3)
    assert (len(first), len(second)) == (5, 6)
    assert sorted([*first, *second]) == list(range(11))
    assert list(first) == list(split(11, 3)[0]) != list(split(11, 4)[0])
    assert [len(half) for half in split(10, 0, 0.25)] == [2, 8]
    with pytest.raises(InputError, match="pictures must be 2 or more, got 1"):
        split(1)
    with pytest.raises(InputError, match=r"max_loss must be a share in \(0, 1\), got 1"):
        choose([], [], 1, 10)


@pytest.fixture
def answered(monkeypatch):
    """`evaluate` from a table: what each setting gets right of each picture's 4 questions. Notes what is asked."""
    table, asked = {}, []

    def evaluate(model, processor, examples, settings, *, batch_size, journal, progress):
        rows = []
        for setting in settings:
            asked.append((setting.name, [example.number for example in examples]))
            progress(len(examples))
            right = "".join(table[setting.name](example.number) for example in examples)
            rows.append({**setting.described, "right": right, "visual_tokens": 100 * setting.retention_ratio})
        return rows

    monkeypatch.setattr(tuning, "evaluate", evaluate)
    return table, asked


def test_a_search_from_the_first_question_to_the_result(answered):
    table, asked = answered
    examples = [Example(number, b"", (Question("k", "q", "a"),) * 4) for number in range(100, 300)]
    settings = settings_of(["uniform"], [0.5, 0.25, 0.1])
    table |= {
        "all tokens 1": lambda number: "1110",
        "uniform 0.5": lambda number: "1110",
        "uniform 0.25": lambda number: "1110" if number % 50 else "1101",  # other answers, none lost
        "uniform 0.1": lambda number: "1000",
    }
    search = tuning.Tuning(None, None, examples, settings, 0.05, seed=1)
    done = {"choosing": 0, "checking": 0}
    search.choose(lambda count: done.__setitem__("choosing", done["choosing"] + count))
    assert [setting.name for setting in search.chosen] == ["uniform 0.25"]
    search.check(lambda count: done.__setitem__("checking", done["checking"] + count))
    assert done == {"choosing": 400, "checking": 200}
    result = search.result()
    assert result["promised"] == {
        "method": "uniform", "retention_ratio": 0.25, "options": {}, "visual_tokens": 25.0,
    }  # fmt: skip
    assert result["pictures_needed"] is None
    halves = [result[half]["numbers"] for half in ("choosing", "checking")]
    assert sorted(halves[0] + halves[1]) == list(range(100, 300))
    assert [run["loss"] for run in result["choosing"]["runs"]] == [0.0, 0.0, 0.0, 0.5]
    assert [(run["method"], run["loss"]) for run in result["checking"]["runs"]] == [
        ("all tokens", 0.0),
        ("uniform", 0.0),
    ]
    assert {tuple(numbers) for name, numbers in asked if name == "uniform 0.1"} == {tuple(halves[0])}


def test_a_search_that_finds_nothing_tells_how_many_images_would_do(answered):
    table, _ = answered
    examples = [Example(number, b"", (Question("k", "q", "a"),) * 4) for number in range(40)]
    table |= {"all tokens 1": lambda number: "1111", "uniform 0.5": lambda number: "1111"}
    search = tuning.Tuning(None, None, examples, settings_of(["uniform"], [0.5]), 0.05)
    search.choose()
    search.check()
    result = search.result()
    assert result["promised"] is None
    assert search.config is None
    assert result["checking"]["runs"] == []
    needed = result["pictures_needed"]
    assert fewest_pictures(0.05) * 2 <= needed <= 400
    table["uniform 0.5"] = lambda number: "0111"
    search.choose()
    assert search.result()["pictures_needed"] is None
    with pytest.raises(InputError, match="settings must hold a ratio below 1"):
        tuning.Tuning(None, None, examples, settings_of(["uniform"], [1.0]), 0.05)
