"""Windows of an image's tokens, and the guide's size, against a canvas numbered by hand."""

import math

import pytest
import torch

from globalcom2.adapters.windows import WINDOW, guide_size, windows

SIDES = [(h, w) for h in range(1, 46) for w in (1, 2, 13, 14, 15, 28, 29, 44)] + [(183, 5), (3, 400)]
"""Height and width in tokens."""


def canvas_of(layout):
    """What stands in each place of the stitched windows: the number of a token in its run, -1 for padding."""
    (rows, cols), (height, width) = layout.grid, layout.token_grid
    canvas = torch.full((rows * height, cols * width), -1)
    window, place = layout.slots // (height * width), layout.slots % (height * width)
    y, x = window // cols * height + place // width, window % cols * width + place % width
    canvas[y, x] = torch.arange(len(layout.slots))
    assert (canvas >= 0).sum() == len(layout.slots), "two tokens in one place"
    return canvas


def test_every_token_stands_in_its_place_of_one_window():
    for height, width in SIDES:
        layout = windows(height, width)
        canvas = canvas_of(layout)
        assert torch.equal(canvas[:height, :width], torch.arange(height * width).view(height, width))
        canvas[:height, :width] = -1
        assert (canvas == -1).all(), "padding is at the bottom and at the right"
        valid = torch.zeros(layout.valid.numel(), dtype=torch.bool).index_fill(0, layout.slots, True)
        assert torch.equal(layout.valid.flatten(), valid)
        assert layout.valid.any(1).all(), "no window is all padding"


def test_windows_are_as_few_as_can_be_and_nearly_equal():
    for size in SIDES:
        layout = windows(*size)
        for side, count, edge in zip(size, layout.grid, layout.token_grid, strict=True):
            assert edge <= WINDOW == 14
            assert count == math.ceil(side / WINDOW)
            last = side - (count - 1) * edge
            assert edge - last < count, "the last window is smaller by less than one token per window"


def test_what_a_layout_says_of_itself():
    for size in SIDES:
        layout = windows(*size)
        assert layout.size == size
        assert (layout.lines, layout.line_count, layout.thumbnail, layout.thumbnail_tokens) == (None, 0, False, 0)
        assert layout.tower_tokens == size[0] * size[1], "a pooled guide costs the tower nothing"
        with_pass = windows(*size, "thumbnail")
        height, width = with_pass.guide_grid
        assert (with_pass.guide_pass, layout.guide_pass) == (True, False)
        assert with_pass.tower_tokens == size[0] * size[1] + height * width
        assert with_pass.size == size
        assert layout.guide_grid == with_pass.guide_grid == guide_size(*size)


def test_a_guide_is_a_third_of_the_image_and_at_least_one_token():
    for height, width in SIDES:
        for side, own in zip((height, width), guide_size(height, width), strict=True):
            assert own >= 1
            assert abs(own - side / 3) <= max(0.5, 1 - side / 3)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (14, 14)])
def test_an_image_of_one_window_has_no_padding(size):
    layout = windows(*size)
    assert layout.grid == (1, 1)
    assert layout.token_grid == size
    assert layout.valid.all()


def test_images_of_one_size_share_a_layout():
    assert windows(20, 31, "thumbnail") is windows(20, 31, "thumbnail")
    assert windows(20, 31, "thumbnail") is not windows(20, 31, "pooled")
