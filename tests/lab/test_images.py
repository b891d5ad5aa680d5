"""Every kind of Pillow image becomes the RGB that one sees; expected values come from numpy."""

import io

import numpy as np
import pytest
from PIL import Image

from globalcom2 import DataError, InputError, compress, draw_picture, open_image
from globalcom2.lab.dataset import Example
from globalcom2.lab.images import to_rgb
from tiny import picture

DRAW = np.random.default_rng(0)
DEEP = DRAW.integers(0, 65536, (6, 9)).astype(np.uint16)
COLORS = DRAW.integers(0, 256, (6, 9, 3)).astype(np.uint8)
ALPHA = DRAW.integers(0, 256, (6, 9)).astype(np.uint8)


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def grey(values):
    """(height, width) values as RGB, rounded."""
    return np.repeat(np.rint(values).astype(int)[..., None], 3, -1)


def on_white(colors, alpha):
    share = alpha[..., None] / 255
    return colors * share + 255 * (1 - share)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_span_black_to_white(tmp_path, name):
    found = pixels(open_image(saved(tmp_path, Image.fromarray(DEEP), name)))
    assert np.array_equal(found, grey(DEEP / 65535 * 255))
    assert np.ptp(found) > 200


@pytest.mark.parametrize(("mode", "order"), [("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2"), ("I;16N", "=u2")])
def test_every_byte_order_of_sixteen_bits(mode, order):
    image = Image.frombytes(mode, (9, 6), DEEP.astype(order).tobytes())
    assert np.array_equal(pixels(to_rgb(image)), grey(DEEP / 65535 * 255))


def test_big_endian_tiff_that_lies_on_its_side(tmp_path):
    image = Image.frombytes("I;16B", (9, 6), DEEP.astype(">u2").tobytes())
    found = open_image(saved(tmp_path, image, "big.tif", tiffinfo={0x0112: 6}))
    assert found.size == (6, 9)
    assert np.array_equal(pixels(found), np.rot90(grey(DEEP / 65535 * 255), -1))


@pytest.mark.parametrize(("top", "scale"), [(255, 1), (256, 1 / 257), (65535, 1 / 257)])
def test_integers_are_eight_or_sixteen_bits(tmp_path, top, scale):
    values = (DEEP.astype(np.int64) * top // 65535).astype(np.int32)
    values[0, 0] = top
    found = pixels(open_image(saved(tmp_path, Image.fromarray(values), "i.tif")))
    assert np.array_equal(found, grey(values * scale))


@pytest.mark.parametrize(("top", "scale"), [(1.0, 255), (1.5, 1), (255.0, 1)])
def test_floats_are_shares_or_eight_bits(tmp_path, top, scale):
    values = (DEEP / 65535 * top).astype(np.float32)
    values[0, 0] = top
    found = pixels(open_image(saved(tmp_path, Image.fromarray(values), "f.tif")))
    assert np.abs(found - grey(values * scale)).max() <= 1
    assert found[0, 0, 0] == round(top * scale)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.array([[-1024, 3071]] * 2, np.int32), "0 to 65535 in mode I, got -1024 to 3071"),
        (np.array([[0, 65536]] * 2, np.int32), "0 to 65535 in mode I, got 0 to 65536"),
        (np.array([[-0.5, 0.5]] * 2, np.float32), "0 to 255 in mode F, got -0.5 to 0.5"),
        (np.array([[0, 300]] * 2, np.float32), "0 to 255 in mode F, got 0 to 300"),
        (np.array([[0, np.nan]] * 2, np.float32), "NaN or infinity in mode F"),
        (np.array([[0, np.inf]] * 2, np.float32), "NaN or infinity in mode F"),
    ],
)
def test_values_without_a_range_are_refused_with_a_cure(tmp_path, values, message):
    path = saved(tmp_path, Image.fromarray(values), "odd.tif")
    with pytest.raises(DataError, match=f"'odd.tif' must hold .*{message}.*(Scale|Replace)"):
        open_image(path)


def test_the_cure_works():
    a = np.array([[-1024, 3071], [0, 1000]], np.int32)
    scaled = Image.fromarray(((a - a.min()) / (a.max() - a.min()) * 255).astype("uint8"))
    assert pixels(to_rgb(scaled))[..., 0].tolist() == [[0, 255], [63, 126]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La"])
def test_alpha_lies_on_white(tmp_path, mode):
    straight = Image.fromarray(np.dstack([COLORS, ALPHA]))
    expected = on_white(COLORS, ALPHA)
    if mode in ("LA", "La"):
        straight = Image.merge("LA", [Image.fromarray(COLORS[..., 0]), Image.fromarray(ALPHA)])
        expected = on_white(COLORS[..., :1].repeat(3, -1), ALPHA)
    image = straight if mode.isupper() else straight.convert(mode)
    assert np.abs(pixels(to_rgb(image)) - expected).max() <= (1 if mode.isupper() else 2)
    if mode.isupper():
        assert np.abs(pixels(open_image(saved(tmp_path, image, "a.png"))) - expected).max() <= 1


def test_black_on_transparent_is_black_on_white(tmp_path):
    drawn = np.zeros((6, 9, 4), np.uint8)
    drawn[2, 3, 3] = 255
    expected = np.full((6, 9, 3), 255)
    expected[2, 3] = 0
    rgba = Image.fromarray(drawn)
    palette = Image.fromarray((drawn[..., 3] == 255).astype(np.uint8), "L").convert("P")
    palette.putpalette([0, 0, 0, 0, 0, 0])
    for name, image, options in (
        ("rgba.png", rgba, {}),
        ("one.png", palette, {"transparency": 0}),
        ("table.png", palette, {"transparency": bytes([0, 255])}),
        ("one.gif", palette, {"transparency": 0}),
    ):
        assert np.array_equal(pixels(open_image(saved(tmp_path, image, name, **options))), expected), name
    alpha = rgba.getchannel("A")
    flat = Image.new("P", (9, 6))
    flat.putpalette([0, 0, 0])
    both = flat.convert("PA")
    both.putalpha(alpha)
    assert both.mode == "PA"
    assert np.array_equal(pixels(to_rgb(both)), expected)
    assert np.array_equal(pixels(to_rgb(rgba.quantize())), expected)  # a palette with alpha of its own


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_a_transparent_colour_is_white(tmp_path, mode):
    values = {"L": COLORS[..., 0], "RGB": COLORS, "I;16": DEEP}[mode]
    expected = values.astype(int) if mode == "RGB" else grey(values / (257 if mode == "I;16" else 1))
    key = int(values[1, 1]) if values.ndim == 2 else tuple(map(int, values[1, 1]))
    hit = (values == key) if values.ndim == 2 else (values == key).all(-1)
    expected[hit] = 255
    assert hit.any()
    path = saved(tmp_path, Image.fromarray(values), "key.png", transparency=key)
    assert "transparency" in Image.open(path).info
    assert np.array_equal(pixels(open_image(path)), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_are_converted_by_pillow(mode):
    image = Image.fromarray(COLORS).convert("RGB" if mode == "LAB" else mode)
    if mode == "LAB":
        image = Image.frombytes("LAB", (9, 6), COLORS.tobytes())
    assert np.array_equal(pixels(to_rgb(image)), np.asarray(image.convert("RGB")))


def test_an_image_is_not_changed():
    image = Image.fromarray(DEEP)
    to_rgb(image)
    assert image.mode == "I;16"
    assert np.array_equal(np.asarray(image), DEEP)
    opaque = Image.fromarray(np.dstack([COLORS, np.full((6, 9), 255, np.uint8)]))
    assert np.array_equal(pixels(to_rgb(opaque)), COLORS)


def test_examples_of_a_set_are_decoded_alike():
    encoded = io.BytesIO()
    Image.fromarray(DEEP).save(encoded, "PNG")
    assert np.array_equal(pixels(Example(3, encoded.getvalue(), ()).image), grey(DEEP / 257))
    turned = Image.Exif()
    turned[0x0112] = 6
    for kind in ("PNG", "TIFF"):
        encoded = io.BytesIO()
        Image.fromarray(COLORS).save(encoded, kind, exif=turned)
        example = Example(3, encoded.getvalue(), ())
        assert example.size == (6, 9)
        assert np.array_equal(pixels(example.image), np.rot90(COLORS, -1))
    encoded = io.BytesIO()
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(encoded, "TIFF")
    with pytest.raises(DataError, match="image of example 3 must hold finite values"):
        Example(3, encoded.getvalue(), ()).image  # noqa: B018


def test_a_drawing_shows_a_deep_image_as_it_was_seen(tiny):
    image = picture(168, 168)
    deep = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    with compress(tiny.model, 0.5) as compression:
        tiny.model.generate(**tiny.inputs(["<image>"], [image]), max_new_tokens=1)
    drawn = [draw_picture(i, compression.report[0]).axes[0].images[0].get_array() for i in (deep, image.convert("L"))]
    assert np.array_equal(*drawn)


def test_an_address_is_told_to_be_downloaded():
    for address in ("https://example.com/a.png", "http://example.com/a.png", "s3://bucket/a.png"):
        with pytest.raises(InputError, match=f"got the address '{address}'. Download it first"):
            open_image(address)
