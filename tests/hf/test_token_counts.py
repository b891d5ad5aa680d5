"""How many tokens a compressed call keeps, and in which order."""

import pytest
import torch
from PIL import Image

from calls import generate
from globalcom2 import compress
from globalcom2.core.layout import kept_places
from tiny import picture


def test_counts_follow_from_size_and_ratio_alone(tiny):
    for size in ((168, 168), (400, 100), (100, 400), (250, 250), (64, 90), (30, 30)):
        totals = set()
        for seed in range(12):
            inputs = tiny.inputs(["<image>"], [picture(*size, seed)])
            with compress(tiny.model, 0.15) as compression, torch.no_grad():
                tiny.model(**inputs)
            totals.add(compression.report.tokens_after)
            expected = kept_places(compression.report[0].layout, 0.15)
        assert totals == {expected} == {int(0.15 * compression.report.tokens_before + 0.5)}


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (2, 400), (400, 2)])
def test_strips_and_dots(tiny, size):
    """Whatever the stock model accepts: crops of a strip may hold no token at all, only newlines."""
    inputs = tiny.inputs(["<image> x"], [Image.new("RGB", size)])
    for options in ({}, {"exact": False}, {"newlines": "all"}, {"method": "uniform"}):
        with compress(tiny.model, 0.25, **options) as compression:
            generate(tiny.model, inputs)
        kept = compression.report[0]
        assert 0 < kept.tokens_after < kept.tokens_before
        if not options:
            assert kept.tokens_after == kept_places(kept.layout, 0.25)


def test_newlines_of_the_published_code_are_kept_and_not_counted(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    with compress(tiny.model, 0.25, newlines="all") as compression, torch.no_grad():
        tiny.model(**inputs)
    entry = compression.report[0]
    assert entry.keep.newlines.all()
    assert entry.tokens_after == round(0.25 * (36 + 4 * 36)) + 12
    assert kept_places(entry.layout, 0.25, "all") == entry.tokens_after


def test_thumbnail_order_changes_the_order_of_the_thumbnail_alone(tiny):
    inputs = tiny.inputs(["<image>"], [picture(168, 168)])
    features = {}
    for order in ("raster", "score"):
        with compress(tiny.model, 0.25, thumbnail_order=order) as compression:
            call = compression.shorten_call(tiny.model, dict(inputs)).call
        features[order] = call["mm_encoder_outputs"]["image"].pooler_output[0]
    count = int(compression.report[0].keep.thumbnail.sum())
    assert torch.equal(features["raster"][count:], features["score"][count:])
    scores = compression.report[0].thumbnail_scores
    kept = compression.report[0].keep.thumbnail.nonzero().flatten()
    by_score = kept[scores[kept].argsort(descending=True)]
    plain = tiny.model.model.get_image_features(
        inputs["pixel_values"], inputs["image_sizes"], return_dict=True
    ).pooler_output[0]
    torch.testing.assert_close(features["score"][:count], plain[by_score])
    torch.testing.assert_close(features["raster"][:count], plain[kept])
