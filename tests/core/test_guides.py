"""A guide commands and is not kept: exact totals, batches, what is refused, and what methods without a guide make of it."""

import dataclasses
import math
import random

import pytest
import torch

from globalcom2 import InputError, Views, list_methods, select
from globalcom2.adapters.windows import windows
from globalcom2.core.layout import kept_places
from globalcom2.core.methods import get_method
from globalcom2.errors import DataError
from globalcom2.selectors.globalcom2 import globalcom2

THUMBNAIL = ("hired", "thumbnail_only")
"""Methods that need a thumbnail."""
COMMANDED = [
    {},
    {"allocation": "softmax"},
    {"allocation": "softmax", "crop_mass": "max"},
    {"allocation": "attention"},
    {"likeness": 0.0, "crop_price": 0.0, "alpha": 1.0},
]


def views_of(height, width, seed=0, images=None, score_type="mean_query"):
    """Random views of an image of that many tokens, or of some images, with all that methods read."""
    layout = windows(height, width)
    crops, tokens = layout.valid.shape
    generator = torch.Generator().manual_seed(seed)

    def values(*shape):
        return torch.randn(*([] if images is None else [images]), *shape, generator=generator)

    guide = layout.guide_grid[0] * layout.guide_grid[1]
    return Views(
        values(crops, tokens).softmax(-1),
        layout.valid,
        layout.grid,
        values(1 + crops, tokens, 6),
        None,
        layout.token_grid,
        score_type=score_type,
        layer_scores=values(1, 1 + crops, tokens).softmax(-1),
        keys=values(1 + crops, tokens, 6),
        guide_scores=values(guide),
        guide_grid=layout.guide_grid,
    )


def readable(name):
    """A score type that the method takes."""
    return get_method(name).score or "mean_query"


def test_totals_follow_from_size_and_ratio_alone():
    """max(1, floor(ratio * height * width + 0.5)) in 20,000 random cases."""
    draw = random.Random(0)
    for _ in range(20000):
        height, width = draw.randint(1, 48), draw.randint(1, 48)
        ratio = draw.choice([draw.uniform(1e-4, 1.0), round(draw.uniform(0.01, 1.0), 2), 1.0])
        expected = max(1, math.floor(ratio * (height * width) + 0.5))
        assert kept_places(windows(height, width), ratio) == expected, (height, width, ratio)


@pytest.mark.parametrize("method", ["globalcom2", "globalcom2:allocation=softmax", "uniform", "random"])
def test_selection_keeps_so_many_and_no_padding(method):
    draw = random.Random(1)
    for case in range(20):
        height, width = draw.randint(1, 40), draw.randint(1, 40)
        ratio = draw.choice([draw.uniform(1e-3, 1.0), 0.1, 1.0])
        views = views_of(height, width, case)
        keep = select(views, ratio, method)
        assert int(keep.crops.sum()) == max(1, math.floor(ratio * (height * width) + 0.5))
        assert not (keep.crops & ~views.valid).any()
        assert keep.thumbnail.shape == (0,)
        assert keep.newlines is None
        if ratio == 1.0:
            assert torch.equal(keep.crops, views.valid)


@pytest.mark.parametrize("options", COMMANDED)
def test_batch_equals_single(options):
    views = views_of(20, 33, images=3)
    batch = select(views, 0.2, **options)
    names = ("scores", "features", "layer_scores", "keys", "crop_features", "guide_scores")
    for n in range(3):
        one = dataclasses.replace(views, **{name: getattr(views, name)[n] for name in names})
        assert torch.equal(select(one, 0.2, **options).crops, batch.crops[n])


@pytest.mark.parametrize("options", COMMANDED)
def test_a_guide_moves_tokens_to_where_it_looks(options):
    views = views_of(28, 42)
    height, width = views.guide_grid
    counts = []
    for window in range(6):
        guide = torch.zeros(height, width)
        row, col = divmod(window, 3)
        guide[row * height // 2 : (row + 1) * height // 2, col * width // 3 : (col + 1) * width // 3] = 4.0
        keep = select(dataclasses.replace(views, guide_scores=guide.flatten()), 0.2, **options)
        counts.append(keep.crops.sum(1))
    told = torch.stack(counts)
    assert torch.equal(told.argmax(0), torch.arange(6)), "each window keeps most when the guide looks at it"
    assert (told.diagonal() > told.sum(0).sub(told.diagonal()) / 5).all()


def test_a_guide_is_read_as_a_thumbnail_would_be():
    """Crops are ranked as if the guide were a thumbnail that is kept beside them."""
    views = views_of(31, 20, images=2)
    as_thumbnail = Views(
        views.scores,
        views.valid,
        views.grid,
        thumbnail_scores=views.guide_scores,
        token_grid=views.token_grid,
        score_type=views.score_type,
        thumbnail_grid=views.guide_grid,
        crop_features=views.crop_features,
    )
    for options in COMMANDED[1:4]:
        own, other = globalcom2(views, 0.2, **options), globalcom2(as_thumbnail, 0.2, **options)
        assert own.thumbnail is None
        assert torch.equal(own.crops, other.crops)
        assert torch.equal(own.ratios, other.ratios)
    # What the thumbnail itself keeps leaves the crops another count: these two are of 93 tokens.
    first = globalcom2(views, 93 / 620).crops
    ratio = next(r / 1000 for r in range(100, 200) if select(as_thumbnail, r / 1000).crops[0].sum() == 93)
    assert torch.equal(first.argsort(dim=-1), globalcom2(as_thumbnail, ratio).crops.argsort(dim=-1))


@pytest.mark.parametrize("name", [name for name in list_methods() if name not in ("globalcom2", *THUMBNAIL)])
def test_all_other_methods_see_an_image_without_a_thumbnail(name):
    views = views_of(20, 17, score_type=readable(name))
    without = dataclasses.replace(views, guide_scores=None, guide_grid=None)
    keep, expected = (select(own, 0.15, name) for own in (views, without))
    assert torch.equal(keep.crops, expected.crops)
    assert keep.thumbnail.shape == (0,)
    assert int(keep.crops.sum()) == 51


@pytest.mark.parametrize("name", THUMBNAIL)
def test_methods_of_a_thumbnail_say_that_there_is_none(name):
    with pytest.raises(InputError, match=f"{name}.*no thumbnail"):
        select(views_of(20, 17, score_type=readable(name)), 0.15, name)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_guide_must_be_finite(value):
    views = views_of(20, 17)
    guide = views.guide_scores.clone()
    guide[3] = value
    wrong = dataclasses.replace(views, guide_scores=guide)
    with pytest.raises(DataError, match="guide_scores must be finite, got 1 "):
        select(wrong, 0.2)
    assert int(select(wrong, 0.2, check=False).crops.sum()) == 68


def test_one_at_most_commands():
    views = views_of(20, 17)
    crops, tokens = views.scores.shape
    for other in ({"thumbnail_scores": torch.zeros(tokens)}, {"guidance": torch.zeros(crops, tokens)}):
        with pytest.raises(InputError, match="guide_scores must be None"):
            dataclasses.replace(views, **other)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guide_grid": None}, "guide_scores and guide_grid must be given together"),
        ({"guide_scores": None}, "guide_scores and guide_grid must be given together"),
        ({"guide_grid": (6, 7)}, r"guide_scores must be a float tensor of shape \(42,\)"),
        ({"guide_grid": 42}, "guide_grid must be"),
        ({"guide_grid": (7, -6)}, "guide_grid must be"),
        ({"guide_grid": (0, 6), "guide_scores": torch.zeros(0)}, "guide_grid must be"),
        ({"guide_scores": torch.zeros(42, dtype=torch.int64), "guide_grid": (7, 6)}, "guide_scores must be a float"),
        ({"guide_scores": torch.zeros(1, 42), "guide_grid": (7, 6)}, "guide_scores must be a float"),
        ({"guide_scores": [0.0] * 42, "guide_grid": (7, 6)}, "guide_scores must be a float"),
    ],
)
def test_guides_that_do_not_fit(changes, message):
    views = views_of(20, 14)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(views, **changes)
