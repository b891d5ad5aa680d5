"""The floors: views made smaller, and the thumbnail alone."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from globalcom2 import InputError, Views, compress, load_mini, select
from globalcom2.core.ranking import Counts
from globalcom2.core.selection import budget_of
from globalcom2.selectors.downsample import downsample
from globalcom2.selectors.thumbnail_only import thumbnail_only
from tiny import picture


def views(seed=0, grid=(2, 2), token_grid=(8, 8), batch=1, *, pad=0, lines=False, thumbnail=True):
    """Random scores; `pad` rows of tokens at the top and the bottom of the stitched crops show no image."""
    generator = torch.Generator().manual_seed(seed)
    (rows, cols), (height, width) = grid, token_grid
    shown = torch.ones(rows * height, cols * width, dtype=torch.bool)
    shown[:pad] = shown[rows * height - pad :] = False
    line = (torch.arange(rows * height) - pad)[:, None].expand_as(shown).masked_fill(~shown, -1)

    def tiles(x):
        return x.reshape(rows, height, cols, width).transpose(1, 2).reshape(rows * cols, height * width)

    scores = torch.randn(batch, 1 + rows * cols, height * width, generator=generator)
    return Views(
        scores[:, 1:],
        tiles(shown),
        grid,
        thumbnail_scores=scores[:, 0] if thumbnail else None,
        token_grid=token_grid,
        lines=tiles(line) if lines else None,
    )


def kept_and_summed(ranking, counts, features):
    """Kept tokens per view, thumbnail first, with what they become, by Merge's definition one token at a time."""
    values = torch.cat([ranking.thumbnail[:, None], ranking.crops], 1)[0]
    into, weight = ranking.merge.into[0], ranking.merge.weight[0]
    found = []
    for view, count in enumerate([counts.thumbnail, *counts.crops[0].tolist()]):
        kept = values[view].argsort(descending=True, stable=True)[:count].tolist()
        sums = {token: features[view, token] * weight[view, token] for token in kept}
        for token in range(features.shape[1]):
            target = int(into[view, token])
            if token not in kept and target in kept:
                sums[target] = sums[target] + features[view, token] * weight[view, token]
        found.append(sums)
    return found


@pytest.mark.parametrize(
    ("token_grid", "cells"),
    [((8, 8), (4, 4)), ((8, 8), (8, 8)), ((8, 8), (2, 2)), ((6, 6), (3, 3)), ((4, 8), (2, 4)), ((9, 3), (3, 1))],
)
def test_downsample_is_average_pooling_where_the_grid_divides(token_grid, cells):
    seen = views(token_grid=token_grid)
    counts = Counts(math.prod(cells), torch.full((1, 4), math.prod(cells)))
    features = torch.randn(5, seen.tokens, 3)
    ranking = downsample(seen, 0.5, counts=counts)
    pooled = F.avg_pool2d(
        features.mT.unflatten(2, token_grid), [n // m for n, m in zip(token_grid, cells, strict=True)]
    )
    for own, expected in zip(kept_and_summed(ranking, counts, features), pooled.flatten(2).mT, strict=True):
        made = torch.stack([own[token] for token in sorted(own)])
        torch.testing.assert_close(made, expected, atol=1e-6, rtol=1e-5)


def before_all_others(ranking):
    """The tokens of a view that stand before all others, bool (1 + crops, tokens)."""
    return torch.cat([ranking.thumbnail[:, None], ranking.crops], 1)[0] > 0


@pytest.mark.parametrize("token_grid", [(8, 8), (3, 5), (7, 2), (1, 4), (2, 10)])
@pytest.mark.parametrize("pad", [0, 2])
def test_any_number_of_cells_is_exact(token_grid, pad):
    pad = min(pad, token_grid[0] - 1)
    seen = views(token_grid=token_grid, pad=pad)
    height, width = token_grid
    most = int(seen.valid.sum(-1).min())
    for count in [*range(1, most + 1)][:: max(1, most // 16)]:
        counts = Counts(count, torch.full((1, 4), count))
        ranking = downsample(seen, 0.5, counts=counts)
        kept, merge = before_all_others(ranking), ranking.merge
        shown = torch.cat([torch.ones(1, height * width, dtype=torch.bool), seen.valid])
        assert kept.sum(-1).tolist() == [count] * 5
        assert not (kept & ~shown).any()
        for view in range(5):
            into, weight = merge.into[0, view].tolist(), merge.weight[0, view]
            cells = {token: [token] for token in kept[view].nonzero().flatten().tolist()}
            for token, target in enumerate(into):
                if target >= 0:
                    assert shown[view, token]
                    cells[target].append(token)
            everything = sorted(token for cell in cells.values() for token in cell)
            assert everything == shown[view].nonzero().flatten().tolist()
            for centre, cell in cells.items():
                rows, cols = sorted({t // width for t in cell}), sorted({t % width for t in cell})
                assert sorted(cell) == [r * width + c for r in rows for c in cols], "a cell is a rectangle"
                assert rows == list(range(rows[0], rows[-1] + 1))
                assert cols == list(range(cols[0], cols[-1] + 1))
                assert weight[cell].tolist() == pytest.approx([1 / len(cell)] * len(cell))

                def off(token, rows=rows, cols=cols):
                    return (2 * (token // width) - rows[0] - rows[-1]) ** 2 + (
                        2 * (token % width) - cols[0] - cols[-1]
                    ) ** 2

                assert off(centre) == min(map(off, cell))
            per_band = {}
            for cell in cells.values():
                per_band.setdefault(min(cell) // width, []).append(cell)
            assert max(map(len, per_band.values())) - min(map(len, per_band.values())) <= 1


def test_views_without_a_token_merge_nothing():
    seen = views()
    ranking = downsample(seen, 0.1, counts=Counts(0, torch.tensor([[0, 3, 0, 1]])))
    kept = before_all_others(ranking)
    assert kept.sum(-1).tolist() == [0, 0, 3, 0, 1]
    assert (ranking.merge.into[0, [0, 1, 3]] == -1).all()


def test_downsample_of_a_thumbnail_with_a_token_grid_of_its_own():
    for more in ({"thumbnail_scores": torch.randn(20)}, {}):
        seen = Views(torch.randn(4, 9), grid=(2, 2), thumbnail_grid=(4, 5), **more)
        with pytest.raises(InputError, match=r"another than 'downsample' .* got \(4, 5\) and \(3, 3\) for crops"):
            select(seen, 0.3, "downsample")


def test_the_mini_model_reads_pooled_views():
    """8 x 8 tokens of every view to 4 x 4, before the projector."""
    model, processor = load_mini()
    inputs = processor(text="<image>", images=picture(224, 224), return_tensors="pt")
    with torch.no_grad(), compress(model, 0.25, "downsample", newlines="all") as compression:
        made = compression.shorten_call(model, dict(inputs)).call["mm_encoder_outputs"]["image"].pooler_output
        (entry,) = compression.report
        base = model.model
        hidden = base.vision_tower(inputs["pixel_values"][0], output_hidden_states=True).hidden_states
        features = hidden[model.config.vision_feature_layer][:, 1:]
        pooled = F.avg_pool2d(features.mT.unflatten(2, (8, 8)), 2)
        projected = base.multi_modal_projector(pooled.flatten(2).mT).flatten(0, 1)
    assert entry.keep.crops.sum(-1).tolist() == [16] * 4
    expected, seen = [], torch.zeros(5, dtype=torch.int64)
    for place in entry.kept.nonzero().flatten().tolist():
        slot = int(entry.layout.slots[place])
        if slot >= 5 * 64:
            expected.append(base.image_newline)
            continue
        view, token = divmod(slot, 64)
        expected.append(projected[view * 16 + token // 8 // 2 * 4 + token % 8 // 2])
        seen[view] += 1
    assert seen.tolist() == [16] * 5
    torch.testing.assert_close(torch.cat([*made]), torch.stack(expected), atol=1e-4, rtol=1e-4)


# The thumbnail alone


@pytest.mark.parametrize(("ratio", "own"), [(0.05, 16), (0.15, 48), (0.2, 64)])
def test_the_thumbnail_is_kept_first(ratio, own):
    seen = views(3)
    keep = select(seen, ratio, "thumbnail_only")
    best = seen.thumbnail_scores[0].argsort(descending=True)[:own]
    assert sorted(best.tolist()) == keep.thumbnail[0].nonzero().flatten().tolist()
    assert not keep.crops.any()


def test_crops_get_what_is_left_best_scores_first():
    seen = views(4, pad=3)
    keep = select(seen, 0.5, "thumbnail_only")
    assert keep.thumbnail.all()
    left = math.floor(0.5 * (64 + int(seen.valid.sum())) + 0.5) - 64
    scores = seen.scores[0].masked_fill(~seen.valid, -math.inf).flatten()
    assert (
        sorted(scores.argsort(descending=True)[:left].tolist()) == keep.crops[0].flatten().nonzero().flatten().tolist()
    )


def test_scores_of_any_size_stay_behind_the_thumbnail():
    seen = Views(torch.full((4, 9), 1e30), grid=(2, 2), thumbnail_scores=torch.full((9,), -1e30))
    assert select(seen, 0.2, "thumbnail_only").thumbnail.all()


def test_thumbnail_only_needs_one():
    with pytest.raises(InputError, match="thumbnail_scores must be given for method 'thumbnail_only'"):
        thumbnail_only(views(thumbnail=False), 0.3)


def test_a_thumbnail_with_more_tokens_than_a_crop():
    seen = Views(torch.randn(4, 9), grid=(2, 2), thumbnail_scores=torch.randn(20), thumbnail_grid=(4, 5))
    assert int(select(seen, 0.3, "thumbnail_only").thumbnail.sum()) == 17


# Both


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["downsample", "thumbnail_only"]),
    st.integers(0, 999),
    st.sampled_from([(1, 1), (2, 2), (1, 3), (0, 0)]),
    st.sampled_from([(4, 4), (1, 1), (3, 5)]),
    st.floats(0.01, 1.0),
    st.sampled_from(["counted", "none", "all"]),
)
def test_totals_are_exact_padding_is_dropped_and_a_batch_equals_its_images(
    name, seed, grid, token_grid, ratio, newlines
):
    pad = seed % 2 if token_grid[0] > 2 else 0
    seen = views(seed, grid, token_grid, 2, pad=pad, lines=True)
    keep = select(seen, ratio, name, newlines=newlines)
    paid = keep.newlines.sum(-1) if newlines == "counted" else 0
    total = keep.thumbnail.sum(-1) + keep.crops.sum((-2, -1)) + paid
    assert total.tolist() == [budget_of(seen, ratio, newlines).total] * 2
    assert not (keep.crops & ~seen.valid).any()
    for n in range(2):
        own = Views(
            seen.scores[n], seen.valid, grid, thumbnail_scores=seen.thumbnail_scores[n], token_grid=token_grid,
            lines=seen.lines,
        )  # fmt: skip
        single = select(own, ratio, name, newlines=newlines)
        assert torch.equal(single.thumbnail, keep.thumbnail[n])
        assert torch.equal(single.crops, keep.crops[n])
        if keep.merge is not None:
            assert torch.equal(single.merge.into, keep.merge.into[n])
            assert torch.equal(single.merge.weight, keep.merge.weight[n])
