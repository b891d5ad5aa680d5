"""The drawing, and the opening of pictures."""

import numpy as np
import pytest
from PIL import Image

from globalcom2 import compress, draw_picture
from globalcom2.errors import DataError, InputError
from globalcom2.lab.images import open_image
from globalcom2.lab.picture import _greyed
from tiny import picture


@pytest.mark.parametrize("size", [(168, 168), (400, 100), (100, 400), (250, 250), (64, 90)])
def test_draws_every_grid(tiny, tmp_path, size):
    image = picture(*size)
    with compress(tiny.model, 0.2) as compression:
        tiny.model.generate(**tiny.inputs(["<image>"], [image]), max_new_tokens=1)
    path = tmp_path / "kept.png"
    figure = draw_picture(image, compression.report[0], path)
    assert Image.open(path).size[0] > 400
    texts = [t.get_text() for axis in figure.axes for t in axis.texts]
    assert texts == [f"{ratio:.0%}" for ratio in compression.report[0].crop_ratios]
    assert str(compression.report[0].tokens_after) in figure.get_suptitle()


def test_dropped_tokens_are_grey_and_kept_ones_untouched():
    pixels = np.array([[[200, 10, 30], [200, 10, 30]]], np.uint8)
    out = _greyed(pixels, np.array([[True, False]]))
    assert out[0, 0].tolist() == [200, 10, 30]
    assert len(set(out[0, 1].tolist())) == 1


def test_opens_what_can_be_used(tmp_path):
    picture(40, 30).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == (40, 30)
    Image.new("RGBA", (20, 20)).save(tmp_path / "b.png")
    assert open_image(str(tmp_path / "b.png")).mode == "RGB"
    turned = Image.Exif()
    turned[0x0112] = 6  # lying on its side
    picture(40, 30).save(tmp_path / "c.jpg", exif=turned)
    assert open_image(tmp_path / "c.jpg").size == (30, 40)


def test_files_that_cannot_be_used(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DataError, match="which is none"):
        open_image(tmp_path / "text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.png"):
        open_image(tmp_path / "empty.png")
    picture(300, 300).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:5000])
    with pytest.raises(DataError, match="must be complete"):
        open_image(tmp_path / "cut.png")
    for size in ((1, 1), (1, 10000), (10000, 1)):
        Image.new("RGB", size).save(tmp_path / "strip.png")
        with pytest.raises(DataError, match=f"got {size[0]} x {size[1]}"):
            open_image(tmp_path / "strip.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for size in (40, 100):  # a warning and an error in Pillow
        Image.new("RGB", (size, size)).save(tmp_path / "bomb.png")
        with pytest.raises(DataError, match="at most 1,000 pixels"):
            open_image(tmp_path / "bomb.png")
