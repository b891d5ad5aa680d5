"""Published selectors on [CLS] attention, against their definitions carried out token by token."""

import functools
import importlib.resources
import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from families import FAMILIES
from globalcom2 import InputError, UnsupportedModelError, Views, compress, load_mini, select
from globalcom2.core.methods import get_method
from globalcom2.core.ranking import Counts
from globalcom2.core.selection import budget_of
from globalcom2.selectors.hired import budgets
from tiny import picture

NAMES = ("fastervlm", "hired", "visionzip", "prumerge", "vispruner", "hiprune")
PER_VIEW = tuple(name for name in NAMES if name != "hired")


def made(grid=(2, 2), side=6, batch=2, seed=0, pad=0, levels=None, power=1, lines=False, thumbnail=True, **more):
    """Views with everything that these methods read. `pad` rows of tokens at the canvas's top and bottom show no image.

    With `levels` many scores are equal, with a `power` some are outliers.
    """
    generator = torch.Generator().manual_seed(seed)
    (rows, cols), tokens = grid, side * side
    views = 1 + rows * cols

    def draw(*shape):
        return torch.rand(*shape, generator=generator)

    scores = draw(batch, views, tokens) ** power
    if levels is not None:
        scores = (scores * levels).floor()
    scores = (scores + 0.01) / (scores + 0.01).sum(-1, keepdim=True)
    canvas = torch.ones(rows * side, cols * side, dtype=torch.bool)
    canvas[:pad], canvas[rows * side - pad :] = False, False
    number = torch.where(canvas, (canvas.any(1).long().cumsum(0) - 1)[:, None], -1)

    def tiles(x):
        return x.view(rows, side, cols, side).transpose(1, 2).reshape(rows * cols, tokens)

    return Views(
        scores[:, 1:],
        valid=tiles(canvas),
        grid=grid,
        features=draw(batch, views, tokens, 5) - 0.5,
        thumbnail_scores=scores[:, 0] if thumbnail else None,
        lines=tiles(number) if lines else None,
        score_type="attention",
        layer_scores=draw(batch, 1, views, tokens),
        keys=draw(batch, views, tokens, 4) - 0.5,
        **more,
    )


def all_views(views, keep):
    """Of each view of each image: its place as (image, view), its valid tokens and the kept ones, in order of place."""
    for image in range(len(views.scores)):
        yield image, 0, list(range(views.tokens)), keep.thumbnail[image].nonzero().flatten().tolist()
        for crop in range(views.crops):
            real = views.valid_mask[crop].nonzero().flatten().tolist()
            yield image, 1 + crop, real, keep.crops[image, crop].nonzero().flatten().tolist()


def attention(views):
    return torch.cat([views.thumbnail_scores[:, None], views.scores], 1).tolist()


def best(scores, tokens, count):
    return sorted(tokens, key=lambda t: (-scores[t], t))[:count]


def cosine(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.hypot(*x) / math.hypot(*y)


def half_up(x):
    return math.floor(x + 0.5)


def together(first, second):
    return first + second


# Definitions. Each takes what a view has, its valid tokens and how many to keep.


def visionzip_parts(row, real, count, contextual):
    targets = 0 if count < 2 or not contextual else max(1, min(count - 1, half_up(count * contextual)))
    dominant = best(row, real, count - targets)
    rest = [t for t in real if t not in dominant]
    return dominant, rest[:: max(1, len(rest) // targets)][:targets] if targets else []


def joined(keys, dropped, kept):
    """The kept token with the most similar key, for each dropped one."""
    return {t: max(kept, key=lambda k: (round(cosine(keys[t], keys[k]), 6), -k)) for t in dropped}


def prumerge_parts(row, real, count):
    low, high = np.quantile([row[t] for t in real], [0.25, 0.75])
    found = sum(row[t] > high + 1.5 * (high - low) for t in real)
    chosen = best(row, real, min(count, max(1, min(found, (count + 1) // 2))))
    rest = [t for t in real if t not in chosen]
    wanted = count - len(chosen)
    return chosen, [rest[i * len(rest) // wanted] for i in range(wanted)]


def vispruner_set(row, features, real, count, important=0.5, step=8):
    chosen = best(row, real, min(count, max(1, half_up(count * important))))
    rest = [t for t in real if t not in chosen]
    while len(rest) > count - len(chosen):
        first, second = rest[::2], rest[1::2]
        near = {t: max((round(cosine(features[t], features[s]), 6) for s in second), default=-9) for t in first}
        out = best(near, first, min(step, len(rest) - count + len(chosen)))
        rest = [t for t in rest if t not in out]
    return chosen + rest


def hiprune_set(middle, deep, real, side, count, alpha):
    anchors = best(middle, real, int(count * alpha / 5 + 1e-9))
    kept = list(anchors)
    for t in anchors:
        y, x = divmod(t, side)
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if 0 <= v < side and 0 <= u < side and v * side + u in real and v * side + u not in kept:
                kept.append(v * side + u)
    return kept + best(deep, [t for t in real if t not in kept], count - len(kept))


def expected_set(name, views, image, view, real, count):
    row = attention(views)[image][view]
    if name == "fastervlm":
        return best(row, real, count)
    if name == "visionzip":
        return together(*visionzip_parts(row, real, count, 10 / 64))
    if name == "prumerge":
        return together(*prumerge_parts(row, real, count))
    if name == "vispruner":
        return vispruner_set(row, views.features[image, view].tolist(), real, count)
    return hiprune_set(views.layer_scores[image, 0, view].tolist(), row, real, views.token_grid[0], count, 0.1)


@pytest.mark.parametrize("name", PER_VIEW)
@pytest.mark.parametrize(
    "case", [{}, {"pad": 2}, {"levels": 3, "pad": 1}, {"grid": (1, 3), "side": 7}, {"power": 9, "pad": 1}]
)
@pytest.mark.parametrize("ratio", [0.05, 0.31, 1.0])
def test_sets_are_those_of_the_definition(name, case, ratio):
    views = made(**case)
    keep = select(views, ratio, name)
    for image, view, real, kept in all_views(views, keep):
        assert kept == sorted(expected_set(name, views, image, view, real, len(kept)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("visionzip", {"contextual": 0.0}),
        ("visionzip", {"contextual": 0.5}),
        ("visionzip", {"contextual": 1.0}),
        ("vispruner", {"important": 0.0, "step": 3}),
        ("vispruner", {"important": 1.0}),
        ("hiprune", {"alpha": 0.0}),
        ("hiprune", {"alpha": 0.7}),
        ("hiprune", {"alpha": 1.0}),
    ],
)
def test_options(name, options):
    views = made(pad=1)
    keep = select(views, 0.4, name, **options)
    rows = attention(views)
    for image, view, real, kept in all_views(views, keep):
        row, count = rows[image][view], len(kept)
        if name == "visionzip" and options["contextual"] == 1:
            expected = real[:: len(real) // count][:count]
        elif name == "visionzip":
            expected = together(*visionzip_parts(row, real, count, **options))
        elif name == "vispruner":
            expected = vispruner_set(row, views.features[image, view].tolist(), real, count, **options)
        else:
            middle = views.layer_scores[image, 0, view].tolist()
            expected = hiprune_set(middle, row, real, 6, count, **options)
        assert kept == sorted(expected)


def merged(features, merge, image, view, kept):
    """What a merge makes of the kept tokens of one view, by its definition."""
    into, weight = merge.into[image, view].tolist(), merge.weight[image, view].tolist()
    sums = {t: np.array(features[t]) * weight[t] for t in kept}
    for t, target in enumerate(into):
        if t not in sums and target in sums:
            sums[target] = sums[target] + np.array(features[t]) * weight[t]
    return sums


@pytest.mark.parametrize("case", [{}, {"pad": 2}, {"levels": 3}])
@pytest.mark.parametrize("ratio", [0.1, 0.31, 1.0])
def test_visionzip_adds_the_mean_of_those_that_join(case, ratio):
    views = made(**case)
    keep = select(views, ratio, "visionzip")
    for image, view, real, kept in all_views(views, keep):
        features, keys = views.features[image, view].tolist(), views.keys[image, view].tolist()
        dominant, targets = visionzip_parts(attention(views)[image][view], real, len(kept), 10 / 64)
        owner = joined(keys, set(real) - set(kept), targets) if targets else {}
        found = merged(features, keep.merge, image, view, kept)
        for t in kept:
            own = [features[d] for d, target in owner.items() if target == t]
            assert t not in dominant or not own
            expected = np.array(features[t]) + (np.mean(own, 0) if own else 0)
            np.testing.assert_allclose(found[t], expected, atol=1e-5)


@pytest.mark.parametrize("case", [{}, {"pad": 2, "power": 9}, {"levels": 3}])
@pytest.mark.parametrize(("ratio", "neighbours"), [(0.1, 32), (0.1, 3), (0.31, 1), (1.0, 32)])
def test_prumerge_averages_by_attention(case, ratio, neighbours):
    views = made(**case)
    keep = select(views, ratio, "prumerge", neighbours=neighbours)
    for image, view, real, kept in all_views(views, keep):
        features, keys = views.features[image, view].tolist(), views.keys[image, view].tolist()
        row = attention(views)[image][view]
        owner = joined(keys, set(real) - set(kept), kept)
        found = merged(features, keep.merge, image, view, kept)
        for t in kept:
            alike = {d: round(cosine(keys[d], keys[t]), 6) for d, target in owner.items() if target == t}
            group = [t, *best(alike, list(alike), neighbours)]
            weights = [row[g] / sum(row[g] for g in group) for g in group]
            expected = sum(w * np.array(features[g]) for w, g in zip(weights, group, strict=True))
            np.testing.assert_allclose(found[t], expected, atol=1e-5)


def test_prumerge_keeps_an_outlier_that_even_steps_would_miss():
    views = made(grid=(1, 1), side=8, batch=1)
    row = torch.full((64,), 0.01)
    row[[13, 50]] = torch.tensor([0.3, 0.2])
    views = Views(
        row[None], features=views.features[0], thumbnail_scores=row, keys=views.keys[0], score_type="attention"
    )
    kept = select(views, 0.1, "prumerge").crops[0].nonzero().flatten().tolist()
    assert {13, 50} < set(kept)


# HiRED


def test_hired_budgets_by_hand():
    """Four crops in a square, a thumbnail of 4 x 4 tokens, two rows and columns of it over each crop."""
    early = torch.zeros(1, 16)
    # The best eight: four over the first crop, three over the second, one over the fourth.
    early[0, [0, 1, 4, 5, 2, 3, 6, 10]] = torch.arange(8, 0, -1.0)
    views = made(side=4, batch=1)
    # 24 tokens: 12 are the thumbnail's, 12 are shared 4 : 3 : 0 : 1.
    thumbnail, crops = budgets(views, early, torch.tensor([24]), 0.5)
    assert (thumbnail.tolist(), crops.tolist()) == ([12], [[6, 5, 0, 1]])  # 6, 4.5, 0, 1.5: equal remainders, the lower
    # 48: the thumbnail is full at 16; 32 are shared as 16, 12, 0, 4.
    thumbnail, crops = budgets(views, early, torch.tensor([48]), 0.5)
    assert (thumbnail.tolist(), crops.tolist()) == ([16], [[16, 12, 0, 4]])
    # 60: 44 left; the first crop is full at 16, the second and the fourth share 28 as 16 and 12, full at 16.
    thumbnail, crops = budgets(views, early, torch.tensor([60]), 0.5)
    assert (thumbnail.tolist(), crops.tolist()) == ([16], [[16, 16, 0, 12]])
    # 76 with a tenth for the thumbnail: the crops have room for 64.
    thumbnail, crops = budgets(views, early, torch.tensor([76]), 0.1)
    assert (thumbnail.tolist(), crops.tolist()) == ([12], [[16, 16, 16, 16]])
    # A quarter for the thumbnail: the best twelve count, of which four more lie where zeros are, by index.
    thumbnail, crops = budgets(views, early, torch.tensor([24]), 0.25)
    assert (thumbnail.tolist(), int(crops.sum())) == ([6], 18)


def test_hired_counts_a_cell_on_a_border_for_both_crops():
    """Three crops over four columns: a crop's region is a column and a third."""
    views = made(grid=(1, 3), side=4, batch=1)
    early = torch.zeros(1, 16)
    early[0, [0, 4, 8, 12, 1, 5, 9, 13]] = 1.0  # the first two columns
    _, crops = budgets(views, early, torch.tensor([16]), 0.5)
    # Columns over the first crop: 1 and 1/3, over the second 2/3, over the third none: 8 tokens as 2 to 1.
    assert crops.tolist() == [[5, 3, 0]]


@pytest.mark.parametrize("pad", [0, 3])
@pytest.mark.parametrize(("ratio", "alpha"), [(0.05, 0.5), (0.2, 0.5), (0.7, 0.3), (0.2, 0.0), (0.3, 1.0), (1.0, 0.5)])
def test_hired_keeps_the_best_late_tokens_of_its_budgets(ratio, alpha, pad):
    views = made(pad=pad)
    keep = select(views, ratio, "hired", alpha=alpha)
    total = budget_of(views, ratio).total
    thumbnail, crops = budgets(views, views.layer_scores[:, 0, 0], torch.tensor([total, total]), alpha)
    assert keep.thumbnail.sum(-1).tolist() == thumbnail.tolist()
    assert keep.crops.sum(-1).tolist() == crops.tolist()
    assert min(36, int(alpha * total)) <= int(thumbnail[0]) <= 36
    rows = attention(views)
    for image, view, real, kept in all_views(views, keep):
        assert kept == sorted(best(rows[image][view], real, len(kept)))


def test_hired_pays_for_newlines_out_of_one_budget():
    views = made(lines=True)
    for newlines in ("counted", "from_2", "none"):
        keep = select(views, 0.2, "hired", newlines=newlines)
        total = budget_of(views, 0.2, newlines).total
        paid = keep.newlines.sum(-1) if newlines != "none" else 0
        assert (keep.thumbnail.sum(-1) + keep.crops.sum((1, 2)) + paid).tolist() == [total, total]
        share = keep.thumbnail.sum(-1) / (keep.thumbnail.sum(-1) + keep.crops.sum((1, 2)))
        assert ((share - 0.5).abs() < 0.05).all()


# All of them


@st.composite
def cases(draw):
    side = draw(st.integers(1, 5))
    grid = draw(st.sampled_from([(1, 1), (1, 2), (2, 2), (3, 1)]))
    return made(
        grid=grid,
        side=side,
        seed=draw(st.integers(0, 2**20)),
        pad=draw(st.integers(0, (grid[0] * side - 1) // 2)),
        levels=draw(st.sampled_from([None, 1, 2])),
        lines=draw(st.booleans()),
    )


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(views=cases(), ratio=st.floats(0.01, 1.0), newlines=st.sampled_from(["counted", "none", "all", "from_2"]))
def test_totals_are_exact_and_padding_is_never_kept(name, views, ratio, newlines):
    keep = select(views, ratio, name, newlines=newlines)
    budget = budget_of(views, ratio, newlines)
    paid = keep.newlines.sum(-1) if keep.newlines is not None and newlines in ("counted", "from_2") else 0
    total = keep.thumbnail.sum(-1) + keep.crops.sum((1, 2)) + paid
    assert total.tolist() == [budget.total, budget.total]
    assert not (keep.crops & ~views.valid_mask).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "case", [{"lines": True}, {"levels": 2, "pad": 2}, {"grid": (1, 2), "side": 24, "lines": True}]
)
def test_a_batch_keeps_what_single_images_keep(name, case):
    views = made(batch=3, **case)
    keep = select(views, 0.13, name)
    for i in range(3):
        own = Views(
            views.scores[i],
            valid=views.valid,
            grid=views.grid,
            features=views.features[i],
            thumbnail_scores=views.thumbnail_scores[i],
            lines=views.lines,
            score_type="attention",
            layer_scores=views.layer_scores[i],
            keys=views.keys[i],
        )
        alone = select(own, 0.13, name)
        assert torch.equal(keep.thumbnail[i], alone.thumbnail)
        assert torch.equal(keep.crops[i], alone.crops)
        if alone.merge is not None:
            assert torch.equal(keep.merge.into[i], alone.merge.into)
            torch.testing.assert_close(keep.merge.weight[i], alone.merge.weight)


@pytest.mark.parametrize("name", PER_VIEW[1:])
def test_sets_of_different_sizes_in_one_batch(name):
    """Newlines leave each image of a batch counts of its own."""
    method, views = get_method(name), made()
    sizes = torch.tensor([[0, 3, 36, 11], [20, 1, 2, 35]])
    answer = method.load()(views, 0.4, counts=Counts(5, sizes))
    for image in range(2):
        for crop, count in enumerate(sizes[image].tolist()):
            kept = answer.crops[image, crop].topk(count).indices.tolist()
            assert sorted(kept) == sorted(expected_set(name, views, image, 1 + crop, list(range(36)), count))


def test_each_kind_of_token_comes_in_its_own_order():
    """Where newlines leave room for a token less, the least of the last kind goes."""
    views = made()
    answer = get_method("hiprune").load()(views, 0.4, alpha=1.0, counts=Counts(5, torch.full((2, 4), 20)))
    for image in range(2):
        for crop in range(4):
            middle = views.layer_scores[image, 0, 1 + crop].tolist()
            order = answer.crops[image, crop].argsort(descending=True).tolist()
            assert order[:4] == best(middle, range(36), 4)
            rest = hiprune_set(middle, views.scores[image, crop].tolist(), range(36), 6, 20, 1.0)
            buffers = [t for t in order[4:20] if any(abs(t - a) in (1, 6) for a in order[:4])]
            assert set(buffers) <= set(rest)
            assert views.scores[image, crop][order[20:]].tolist() == sorted(
                views.scores[image, crop][order[20:]].tolist(), reverse=True
            )


@pytest.mark.parametrize("name", NAMES)
def test_they_leave_their_input_alone(name):
    views, before = made(), made()
    select(views, 0.2, name)
    for tensor in ("scores", "thumbnail_scores", "features", "keys", "layer_scores", "valid"):
        assert torch.equal(getattr(views, tensor), getattr(before, tensor))


@pytest.mark.parametrize("name", PER_VIEW)
def test_views_without_a_thumbnail_are_treated_alike(name):
    views, videos = made(), made(thumbnail=False, guidance=torch.zeros(2, 4, 36))
    keep, frames = select(views, 0.25, name), select(videos, 0.25, name)
    assert frames.thumbnail.shape == (2, 0)
    assert torch.equal(frames.crops, keep.crops)
    if keep.merge is not None:
        assert torch.equal(frames.merge.into[:, 1:], keep.merge.into[:, 1:])
        assert torch.equal(frames.merge.weight[:, 1:], keep.merge.weight[:, 1:])


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_crops_keeps_of_its_thumbnail(name):
    views = made()
    alone = Views(
        views.scores[:, :0],
        thumbnail_scores=views.thumbnail_scores,
        features=views.features[:, :1],
        keys=views.keys[:, :1],
        layer_scores=views.layer_scores[:, :, :1],
        score_type="attention",
    )
    assert select(alone, 0.25, name).thumbnail.sum(-1).tolist() == [9, 9]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hired", {"alpha": 1.5}, r"alpha must be a number in \[0, 1\], got 1.5"),
        ("hiprune", {"alpha": "a"}, r"alpha must be a number in \[0, 1\], got 'a'"),
        ("visionzip", {"contextual": -0.1}, r"contextual must be a number in \[0, 1\], got -0.1"),
        ("vispruner", {"important": True}, r"important must be a number in \[0, 1\], got True"),
        ("vispruner", {"step": 0}, "step must be a positive integer, got 0"),
        ("prumerge", {"neighbours": 2.5}, "neighbours must be a positive integer, got 2.5"),
    ],
)
def test_options_out_of_range(name, options, message):
    with pytest.raises(InputError, match=message):
        select(made(), 0.2, name, **options)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("hired", "layer_scores"),
        ("hiprune", "layer_scores"),
        ("visionzip", "keys"),
        ("prumerge", "keys"),
        ("vispruner", "features"),
    ],
)
def test_what_they_cannot_do_without(name, missing):
    views = made()
    object.__setattr__(views, missing, None)
    with pytest.raises(InputError, match=f"{missing} must be given for method '{name}', got None"):
        select(views, 0.2, name)


def test_what_else_they_refuse():
    with pytest.raises(
        InputError, match=r"thumbnail_scores must be given for method 'hired', got None: .*Use 'fastervlm'"
    ):
        select(made(thumbnail=False), 0.2, "hired")
    views = made()
    object.__setattr__(views, "score_type", "logits")
    with pytest.raises(InputError, match="score_type must be 'attention' or 'received' for method 'prumerge'"):
        select(views, 0.2, "prumerge")


# With a model


@functools.cache
def mini():
    model, processor = load_mini()
    with importlib.resources.as_file(importlib.resources.files("globalcom2.mini") / "demo.png") as file:
        image = Image.open(file).convert("RGB")
    return model, processor, processor(text="<image>\nHow many animals?", images=image, return_tensors="pt")


@pytest.mark.parametrize("name", NAMES)
def test_the_mini_model_answers_and_keeps_the_exact_count(name):
    model, processor, inputs = mini()
    with torch.no_grad(), compress(model, 0.1, name) as compression:
        out = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert processor.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert int(compression.report[0].kept.sum()) == math.floor(0.1 * 664 + 0.5)


@pytest.mark.parametrize("name", ["fastervlm", "visionzip", "prumerge", "vispruner", "hired"])
def test_towers_without_cls_have_the_mean_query(name):
    tiny = FAMILIES["llava_onevision"]()
    inputs = tiny.inputs([tiny.tag], [picture(168, 84)])
    with torch.no_grad(), compress(tiny.model, 0.3, name) as compression:
        tiny.model(**inputs)
    assert 0 < int(compression.report[0].kept.sum()) < len(compression.report[0].kept)


def test_a_tower_without_the_middle_layer_is_refused(tiny):
    with pytest.raises((InputError, UnsupportedModelError), match="'hiprune', which reads layer 4: layer must be in"):
        compress(tiny.model, 0.3, "hiprune")


@pytest.mark.parametrize("name", NAMES)
def test_docstrings_say_what_differs(name):
    assert "Differs from the paper: " in inspect.getdoc(get_method(name).load())
