"""The thumbnail commands in every family and with every score type: what has something to show gets more tokens."""

import dataclasses
import functools

import numpy as np
import pytest
import torch
from PIL import Image

import toys
from families import FAMILIES
from globalcom2 import UnsupportedModelError, compress, select
from globalcom2.core.ranking import Ranking
from globalcom2.core.scores import SCORE_TYPES
from tiny import picture

RATIO = 0.25
SIDES = {"granite4_vision": 500}
"""Sides of the picture in px, where 336 are too few: tokens of Granite's first crops all see the corner."""
WITHOUT_ATTENTION = {"got_ocr2": ("similarity",)}
"""Families whose tower has no attention that can be read, and their scores."""
CASES = [(name, score) for name in FAMILIES for score in WITHOUT_ATTENTION.get(name, SCORE_TYPES)]


@functools.cache
def built(name):
    return FAMILIES[name]()


def corner(name):
    """One grey, but for noise in the lower right corner, a sixth of each side."""
    side = SIDES.get(name, 336)
    pixels = np.full((side, side, 3), 200, np.uint8)
    part = side // 6
    pixels[-part:, -part:] = np.random.default_rng(0).integers(0, 256, (part, part, 3))
    return Image.fromarray(pixels)


def call(name, image=None, **options):
    """The entry of the report of a call with the picture, or another one."""
    tiny = built(name)
    with torch.no_grad(), compress(tiny.model, RATIO, **options) as compression:
        tiny.model(**tiny.inputs([tiny.tag], [image or corner(name)]))
    return compression.report[0]


def spread(entry):
    """The largest budget of a crop over the smallest, of which one token at least is counted."""
    counts = entry.keep.crops.sum(1).tolist()
    assert len(counts) >= 4
    return max(counts) / max(min(counts), 1)


@pytest.mark.parametrize(("name", "score"), CASES)
def test_budgets_differ_by_a_factor_of_two(name, score):
    assert spread(call(name, score=score)) >= 2


@pytest.mark.parametrize("name", ["llava_next", "idefics3", "smolvlm", "ovis2", "internvl", "lfm2_vl", "minicpmv4_6"])
def test_the_papers_allocation_hardly_commands_by_similarity(name):
    """What the default was before: the reason for another one. If this fails, the test above says nothing."""
    assert spread(call(name, score="similarity", allocation="softmax")) < 2


def test_families_without_readable_attention_are_those_that_refuse_it():
    for name in WITHOUT_ATTENTION:
        with pytest.raises(UnsupportedModelError):
            compress(built(name).model, RATIO, score="mean_query")


@pytest.mark.parametrize("name", FAMILIES)
def test_scale_and_offset_of_scores_decide_nothing(monkeypatch, name):
    """The views that a family gives, with other scores of the same order: the same tokens stay."""
    seen = []

    def noting(views, ratio):
        seen.append(views)
        return Ranking(views.thumbnail_scores, views.scores, torch.full(views.scores.shape[:2], ratio))

    toys.register(monkeypatch, noting, reads=("crop_features",))
    call(name, picture(336, 336), method="toy")
    views = seen[-1]
    assert views.crop_features is not None
    expected = select(views, RATIO)
    apart = torch.randn(views.scores.shape[:-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e3):
        for offset in (0.0, 5.0, -300.0):  # in units of the scale: the map of the thumbnail is in single precision
            for each in (0.0, 2.0):  # towers were not trained to compare crops
                other = dataclasses.replace(
                    views,
                    scores=scale * (views.scores.double() + offset + (each * apart)[..., None]),
                    thumbnail_scores=scale * (views.thumbnail_scores.double() - offset),
                )
                found = select(other, RATIO)
                assert torch.equal(found.thumbnail, expected.thumbnail), (scale, offset, each)
                assert torch.equal(found.crops, expected.crops), (scale, offset, each)
