"""Guides command in every family whose images keep their resolution: what has something to show gets more tokens."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from families.native import NATIVE
from globalcom2 import CompressionConfig, compress, select
from globalcom2.hf.compression import Compression
from native_cases import case_of, left_clean
from tiny import picture

RATIO = 0.1
SIDE, PART = 120, 32
"""px of a picture, which is 2 x 2 windows of 8 or 7 tokens a side, and of its corner with something to see."""
READ = ("received", "mean_query")
TOWERS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "paddleocr_vl", "ernie4_5_vl_moe", "kimi_k25", "mistral3"]
"""One family for each vision tower."""
ALONE = {"alpha": 1.0, "likeness": 0.0, "crop_price": 0.0}
"""What the guide sees decides alone: neither a window's own scores nor how much its tokens are alike."""


@pytest.fixture(params=NATIVE)
def case(request):
    with left_clean(case_of(request.param)) as case:
        yield case


def corner(window):
    """One grey, but for noise in the outer corner of one of the windows."""
    pixels = np.full((SIDE, SIDE, 3), 200, np.uint8)
    y, x = (0 if part == 0 else SIDE - PART for part in divmod(window, 2))
    pixels[y : y + PART, x : x + PART] = np.random.default_rng(0).integers(0, 256, (PART, PART, 3))
    return Image.fromarray(pixels)


def budgets(case, image, **options):
    """Tokens that each window keeps."""
    inputs = case.tiny.inputs([case.tiny.tag], [image])
    with torch.no_grad(), compress(case.model, RATIO, **options) as compression:
        case.model(**inputs)
    counts = compression.report[0].keep.crops.sum(1).tolist()
    assert len(counts) == 4
    assert sum(counts) == 23
    return counts


def test_the_one_corner_with_something_to_see_gets_twice_as_much_as_any_other(case):
    """With both guides; and where a guide decides alone."""
    alone = ((1, ALONE), (1, {"guide": "thumbnail", **ALONE})) if case.name in TOWERS else ()
    for window, options in ((3, {}), (3, {"guide": "thumbnail"}), *alone):
        counts = budgets(case, corner(window), **options)
        own = counts.pop(window)
        assert own >= 2 * max(counts), (counts, own, options)


def test_budgets_by_attention_differ_by_a_factor_of_two(case):
    """Random towers do not look where there is something to see, but they do not look everywhere alike."""
    for score in READ:
        counts = budgets(case, corner(3), score=score)
        assert max(counts) >= 2 * max(1, min(counts)), (score, counts)


def test_without_a_commander_windows_share_by_their_size():
    """What the tests above say is the commander's doing."""
    with left_clean(case_of("qwen2_vl")) as case:
        counts = budgets(case, corner(3), method="uniform")
        assert all(abs(count - tokens * 23 / 225) < 1 for count, tokens in zip(counts, (64, 56, 56, 49), strict=True))


@pytest.mark.parametrize("name", TOWERS)
def test_scale_and_offset_of_scores_decide_nothing(name):
    """The views that a family gives, with other scores of the same order: the same tokens stay."""
    seen = []

    def noting(views, known_grid):
        seen.append(views)
        return select(views, 0.5)

    with left_clean(case_of(name)) as case, torch.no_grad():
        inputs = case.tiny.inputs([case.tiny.tag], [picture(128, 120)])
        with Compression(case.model, CompressionConfig(0.5, guide="thumbnail"), noting):
            case.model(**inputs)
    (views,) = seen
    assert views.crop_features is not None
    assert views.thumbnail_scores is None
    expected = select(views, RATIO)
    apart = torch.randn(views.scores.shape[:-1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for scale in (1e-3, 1.0, 1e3):
        for offset in (0.0, 5.0, -300.0):  # in units of the scale
            for each in (0.0, 2.0):  # towers were not trained to compare windows
                other = dataclasses.replace(
                    views,
                    scores=scale * (views.scores.double() + offset + (each * apart)[..., None]),
                    guide_scores=scale * (views.guide_scores.double() - offset),
                )
                assert torch.equal(select(other, RATIO).crops, expected.crops), (scale, offset, each)


@pytest.mark.parametrize("name", TOWERS)
def test_a_thumbnail_that_guides_looks_at_the_picture(name):
    """It is another map than the pooled one, and which tokens stay follows from it."""
    kept = []
    with left_clean(case_of(name)) as case, torch.no_grad():
        inputs = case.tiny.inputs([case.tiny.tag], [picture(128, 120)])
        for guide in ("pooled", "thumbnail"):
            with compress(case.model, 0.2, guide=guide, alpha=1.0) as compression:
                case.model(**inputs)
            kept.append(compression.report[0].keep.crops)
    assert not torch.equal(*kept)
