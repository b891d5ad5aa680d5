"""From masks of views to places of a prompt, and how many of these an image keeps, counted place by place."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from globalcom2 import Views, select
from globalcom2.core.groups import places_of
from globalcom2.core.layout import Layout, kept_places, unpacked
from globalcom2.core.selection import Keep

RULES = ["counted", "none", "all"]


def stitched(rows, cols, side, *, top=0, left=0, thumbnail=True, newlines=True, strip=0):
    """A layout built token by token: padding above and left, a newline after each line of the stitched crops.

    `strip` newlines that end no token follow the run.
    """
    crops, tokens, first = rows * cols, side * side, side * side * thumbnail
    valid = torch.zeros(crops, tokens, dtype=torch.bool)
    lines = torch.full((crops, tokens), -1)
    run, line = list(range(first)), 0
    for y in range(top, rows * side):
        for x in range(left, cols * side):
            crop, token = (y // side) * cols + x // side, (y % side) * side + x % side
            valid[crop, token], lines[crop, token] = True, line
            run.append(first + crop * tokens + token)
        if newlines and left < cols * side:
            run.append(first + crops * tokens + line)
            line += 1
    run += [-1] * strip
    return Layout(
        (rows, cols), (side, side), valid, lines if newlines else None, torch.tensor(run), thumbnail=thumbnail
    )


def drawn(layout, seed, batch=2):
    """Views of that layout with random scores, as selectors get them."""
    generator = torch.Generator().manual_seed(seed)
    crops = layout.grid[0] * layout.grid[1]
    thumbnail = torch.randn(batch, math.prod(layout.thumbnail_grid), generator=generator)
    guidance = None if layout.thumbnail else torch.rand(batch, crops, layout.tokens, generator=generator)
    scores = torch.randn(batch, crops, layout.tokens, generator=generator)
    return Views.of(layout, thumbnail, scores, "logits", guidance=guidance)


LAYOUTS = {
    "square": stitched(2, 2, 3),
    "padded": stitched(2, 3, 4, top=1, left=2),
    "long": stitched(1, 5, 2, left=3),
    "no newlines": stitched(2, 2, 3, top=2, newlines=False),
    "no thumbnail": stitched(3, 1, 3, thumbnail=False, newlines=False),
    "strip": stitched(2, 1, 3, top=4, strip=2),
    "no crops": stitched(0, 0, 4, newlines=False),
    "thumbnail last": unpacked((2, 2), (2, 3), thumbnail_last=True),
    "other thumbnail": unpacked((1, 2), (2, 2), thumbnail_last=False, thumbnail_grid=(3, 5)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_place_shows_its_slot(name):
    layout, generator = LAYOUTS[name], torch.Generator().manual_seed(3)
    crops, first = layout.grid[0] * layout.grid[1], layout.thumbnail_tokens

    def mask(*shape):
        return torch.rand(3, *shape, generator=generator) < 0.5

    newlines = None if layout.lines is None else mask(layout.line_count)
    keep = Keep(mask(first), mask(crops, layout.tokens), newlines)
    expected = []
    for image in range(3):
        row = []
        for slot in layout.slots.tolist():
            if slot < 0:
                row.append(False)
            elif slot < first:
                row.append(bool(keep.thumbnail[image, slot]))
            elif slot < first + crops * layout.tokens:
                crop, token = divmod(slot - first, layout.tokens)
                row.append(bool(keep.crops[image, crop, token]))
            else:
                row.append(bool(newlines[image, slot - first - crops * layout.tokens]))
        expected.append(row)
    assert places_of(keep, layout).tolist() == expected


@pytest.mark.parametrize("thumbnail_last", [False, True])
def test_whole_views_stand_one_after_another(thumbnail_last):
    layout = unpacked((2, 1), (1, 2), thumbnail_last=thumbnail_last, thumbnail_grid=(1, 3))
    keep = Keep(torch.tensor([[True, False, True]]), torch.tensor([[[True, True], [False, False]]]))
    own, crops = [True, False, True], [True, True, False, False]
    assert places_of(keep, layout).tolist() == [crops + own if thumbnail_last else own + crops]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", LAYOUTS)
@settings(max_examples=12, deadline=None)
@given(ratio=st.floats(0.01, 0.99), seed=st.integers(0, 999), weight=st.sampled_from([0.5, 1.0, 3.0]))
def test_kept_places_are_those_that_a_selection_keeps(name, rule, ratio, seed, weight):
    layout = LAYOUTS[name]
    views = drawn(layout, seed)
    keep = select(views, ratio, newlines=rule, thumbnail_weight=weight)
    counts = {sum(row) for row in places_of(keep, layout).tolist()}
    assert counts == {kept_places(layout, ratio, rule, weight)}


@pytest.mark.parametrize("name", LAYOUTS)
@given(ratio=st.floats(0.01, 0.99))
def test_kept_places_are_the_rounded_part_of_what_the_run_holds(name, ratio):
    """By default. The run is counted place by place; newlines that end no token are not paid for."""
    layout = LAYOUTS[name]
    real = sum(slot >= 0 for slot in layout.slots.tolist())
    assert kept_places(layout, ratio) == max(1, math.floor(ratio * real + 0.5))
    assert kept_places(layout, 1.0) == len(layout.slots)
