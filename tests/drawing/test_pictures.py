"""Pictures of views: cut out of the image as the model's own processor cuts it."""

import numpy as np
import pytest
from PIL import Image

from drawing.made import made, padded
from globalcom2 import compress, draw_page, draw_picture
from globalcom2.adapters.videos import frames_layout
from globalcom2.core.layout import unpacked
from globalcom2.drawing.pictures import LONGEST_SIDE, Pictures, stitched
from tiny import picture


@pytest.mark.parametrize("size", [(168, 168), (250, 90), (90, 250), (200, 200)])
def test_views_look_like_those_of_the_processor(tiny, size):
    """Light in the middle of each place, against the processor's pixels; padding is black in both."""
    image = picture(*size)
    inputs = tiny.inputs(["<image>"], [image])
    with compress(tiny.model, 0.2) as compression:
        tiny.model.generate(**inputs, max_new_tokens=1)
    entry = compression.report[0]
    cut, seen = Pictures.of_image(image, entry.layout), entry.pictures
    assert len(cut.crops) == len(seen.crops) == entry.grid[0] * entry.grid[1]
    height, width = entry.layout.token_grid
    for ours, theirs, valid in zip(
        (cut.thumbnail, *cut.crops),
        (seen.thumbnail, *seen.crops),
        (np.ones(height * width, bool), *entry.layout.valid.numpy()),
        strict=True,
    ):
        small = [
            np.asarray(view.convert("L").resize((width, height), Image.Resampling.BOX), float)
            for view in (ours, theirs)
        ]
        inner = valid.reshape(height, width)
        assert not inner.any() or np.abs(small[0] - small[1])[inner].mean() < 12


def test_the_crops_lie_row_by_row():
    colors = ["red", "lime", "blue", "white", "black", "yellow"]
    image = Image.new("RGB", (300, 200))
    for number, color in enumerate(colors):
        image.paste(color, (number % 3 * 100, number // 3 * 100, number % 3 * 100 + 100, number // 3 * 100 + 100))
    pictures = Pictures.of_image(image, unpacked((2, 3), (4, 4), thumbnail_last=True))
    middles = [crop.getpixel((crop.width // 2, crop.height // 2)) for crop in pictures.crops]
    assert middles == [Image.new("RGB", (1, 1), color).getpixel((0, 0)) for color in colors]
    sheet = pictures.sheet((2, 3))
    assert sheet.width % 3 == sheet.height % 2 == 0
    assert sheet.getpixel((sheet.width // 2, sheet.height * 3 // 4)) == (0, 0, 0)


def test_padding_is_outside_of_the_image():
    pictures = Pictures.of_image(Image.new("RGB", (100, 80), "white"), padded(2))
    bottom = pictures.crops[3]
    assert bottom.getpixel((5, bottom.height - 1)) == (0, 0, 0)
    assert bottom.getpixel((5, bottom.height // 2 - 1)) == (255, 255, 255)


def test_crops_of_padding_alone_are_black(tiny):
    image = picture(1000, 30)  # the processor scales it to less than half a token
    with compress(tiny.model, 0.2) as compression:
        tiny.model(**tiny.inputs(["<image>"], [image]))
    entry = compression.report[0]
    assert not entry.layout.valid.any()
    assert [crop.getextrema() for crop in Pictures.of_image(image, entry.layout).crops] == [((0, 0),) * 3] * 3
    draw_picture(image, entry)
    assert "0/0" in draw_page(image, entry)


def test_none_where_nobody_knows_the_places():
    image = picture(100, 80)
    assert Pictures.of_image(image, unpacked((1, 4), (2, 2), thumbnail_last=True, known_grid=False)) is None
    assert Pictures.of_image(image, frames_layout(4, (2, 2), newline=False)) is None
    assert Pictures.of_image(image, unpacked((0, 0), (2, 2), thumbnail_last=True)).crops == ()


def test_a_sheet_has_a_bound():
    views = np.zeros((37, 3, 448, 448), np.float32)
    sheet = Pictures.of_views(views, made((6, 6), (2, 2)).layout).sheet((6, 6))
    assert max(sheet.size) <= LONGEST_SIDE
    assert sheet.width % 6 == sheet.height % 6 == 0


def test_values_of_one_kind_only_are_a_picture_too():
    layout = unpacked((1, 1), (2, 2), thumbnail_last=False)
    flat = Pictures.of_views(np.full((2, 3, 8, 8), 0.3, np.float32), layout)
    assert flat.thumbnail.size == (8, 8)
    views = np.zeros((2, 3, 8, 8), np.float32)
    views[0] = -2.0
    views[1] = 1.5
    shown = Pictures.of_views(views, layout)
    assert (shown.thumbnail.getpixel((0, 0)), shown.crops[0].getpixel((0, 0))) == ((0, 0, 0), (255, 255, 255))


def test_stitching_is_what_it_says():
    values = np.arange(2 * 3 * 2 * 2).reshape(6, 2, 2)
    whole = stitched(values, (2, 3))
    for crop in range(6):
        row, col = divmod(crop, 3)
        assert (whole[2 * row : 2 * row + 2, 2 * col : 2 * col + 2] == values[crop]).all()
