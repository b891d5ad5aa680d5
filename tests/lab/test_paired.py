"""Paired differences to the default, and equal budgets where tokens leave inside the language model."""

import random

import numpy as np
import pytest

from globalcom2.hf.inside import drops_of
from globalcom2.lab.fitting import fit
from globalcom2.lab.labels import FULL
from globalcom2.lab.paired import standing, with_differences

OWNERS = np.repeat(np.arange(60), 4)


def row_of(method, right, ratio=0.1, tokens=34.0, **options):
    return {
        "method": method,
        "retention_ratio": ratio,
        "options": options,
        "accuracy": float(np.mean(right)),
        "visual_tokens": tokens,
        "right": "".join(str(int(hit)) for hit in right),
    }


@pytest.fixture
def answers():
    """Of the default and of a worse method, which fail on the same hard pictures."""
    draw = np.random.default_rng(1)
    hard = draw.random(60)[OWNERS]
    default = draw.random(240) > 0.5 * hard
    return default, default & (draw.random(240) > 0.06)


def test_differences_equal_a_paired_bootstrap_by_hand(answers):
    default, worse = answers
    rows = with_differences([row_of("globalcom2", default), row_of("uniform", worse)], OWNERS)
    assert rows[1]["difference"] == pytest.approx(worse.mean() - default.mean())
    # By picture: how much worse, and the default's own accuracy.
    default_of, worse_of = (right.reshape(60, 4).mean(1) for right in (default, worse))
    draw, paired, apart = random.Random(0), [], []
    for _ in range(4000):
        one, other = (draw.choices(range(60), k=60) for _ in range(2))
        paired.append((worse_of[one] - default_of[one]).mean())
        apart.append(worse_of[one].mean() - default_of[other].mean())
    assert np.allclose(rows[1]["difference_interval"], np.percentile(paired, [2.5, 97.5]), atol=0.006)
    low, high = rows[1]["difference_interval"]
    assert high - low < 0.6 * np.diff(np.percentile(apart, [2.5, 97.5]))[0]  # pictures are drawn for both at once
    assert standing(rows[1]) == "behind"


def test_only_equal_budgets_at_one_ratio_are_compared(answers):
    default, worse = answers
    rows = [
        row_of(FULL, default, 1.0, 340.0),
        row_of("globalcom2", worse),
        row_of("globalcom2", worse, 0.1, 34.0, alpha=0.5),
        row_of("random", default),
        row_of("scope", default, 0.25, 85.0),
        row_of(FULL, default, 0.1, 200.0, inside="fastv"),
        row_of("globalcom2", default, 0.1, 35.9, inside="fastv"),
    ]
    found = with_differences(rows, OWNERS)
    assert [row["difference"] is None for row in found] == [True, True, False, False, True, True, False]
    assert [standing(row) for row in found] == ["", "default", "level", "ahead", "", "", "ahead"]
    assert found[2]["difference_interval"] == [0.0, 0.0]
    assert all(row["difference_interval"] is None for row in found if row["difference"] is None)


@pytest.mark.parametrize("depth", [4, 32])
@pytest.mark.parametrize(
    ("options", "ratio", "alone"),
    [
        ({"inside": "fastv"}, 0.1, False),
        ({"inside": "fastv", "inside_layer": 1, "inside_share": 0.25}, 0.05, False),
        ({"inside": "pyramiddrop"}, 0.25, False),
        ({"inside": "fastv", "inside_layer": 1}, 0.4, True),
        ({"inside": "pyramiddrop"}, 0.5, True),
    ],
)
def test_layers_read_the_ratio_on_average(options, ratio, alone, depth):
    found = fit(options, ratio, depth, alone=alone)
    drops = drops_of(options["inside"], options.get("inside_layer"), found.inside_share, depth)
    visual = 10**6
    read = drops.by_layer(round(found.prompt_ratio * visual), depth)
    assert np.mean(read) / visual == pytest.approx(ratio, abs=1e-4)
    assert (found.prompt_ratio == 1.0) == alone


def test_a_ratio_out_of_reach():
    """FastV alone gives two of four layers everything: the mean cannot be a tenth, what is left at the end can."""
    assert fit({"inside": "fastv"}, 0.1, 4, alone=True) == (1.0, 0.1)
    drops = drops_of("pyramiddrop", None, fit({"inside": "pyramiddrop"}, 0.1, 4, alone=True).inside_share, 4)
    assert drops.by_layer(1000, 4)[-1] == pytest.approx(100, abs=2)
    assert fit({"inside": "pyramiddrop"}, 0.9, 4, alone=False).prompt_ratio == 1.0  # no more than there is
