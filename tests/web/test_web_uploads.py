"""Pictures of strangers: limits and formats come before anything is decoded."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from globalcom2 import DataError, InputError
from globalcom2.web.uploads import FORMATS, Limits, open_upload, picture_to_show

LIMITS = Limits(upload_mb=0.5, pixels=100 * 100)
COLORS = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def saved(folder, name, image=None, **options):
    image = image or Image.fromarray(COLORS)
    image.save(folder / name, **options)
    return str(folder / name)


@pytest.mark.parametrize("ending", ["png", "bmp", "tif", "ppm", "gif", "webp", "jpg"])
def test_formats_that_are_let_in(tmp_path, ending):
    options = {"lossless": True} if ending == "webp" else {"quality": 95} if ending == "jpg" else {}
    found = open_upload(saved(tmp_path, f"a.{ending}", **options), LIMITS)
    assert (found.mode, found.size) == ("RGB", (60, 40))
    if ending not in ("jpg", "gif"):
        assert np.array_equal(np.asarray(found), COLORS)


def test_sixteen_bits_alpha_and_turned_pictures(tmp_path):
    deep = Image.fromarray(np.full((4, 6), 65535, np.uint16))
    assert np.asarray(open_upload(saved(tmp_path, "deep.png", deep), LIMITS)).min() == 255
    clear = Image.new("RGBA", (6, 4), (0, 0, 0, 0))
    assert np.asarray(open_upload(saved(tmp_path, "clear.png", clear), LIMITS)).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = open_upload(saved(tmp_path, "turned.png", exif=exif), LIMITS)
    assert np.array_equal(np.asarray(turned), np.rot90(COLORS, -1))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert open_upload(str(tmp_path / "a.gif"), LIMITS).getpixel((4, 4)) == (255, 0, 0)


def test_what_browsers_cannot_show_is_shown_as_a_copy(tmp_path):
    copy = picture_to_show(saved(tmp_path, "a.tif"), LIMITS)
    assert np.array_equal(np.asarray(copy), COLORS)
    assert picture_to_show(saved(tmp_path, "a.png"), LIMITS) is None


def bomb(width, height):
    """A PNG that says it is large and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def eps():
    file = io.BytesIO()
    Image.fromarray(COLORS).save(file, "EPS")
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"no picture", "'text.png', which is none. Save it as PNG or JPEG"),
        ("empty.png", b"", "which is none"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "which is none"),
        ("a.eps", eps(), "which is none"),
        ("a.pdf", b"%PDF-1.4", "which is none"),
        ("cut.png", None, "cannot be decoded"),
        ("large.png", bomb(101, 100), "at most 10,000 pixels, got 101 x 100"),
        ("huge.png", bomb(40_000, 40_000), "at most 10,000 pixels, got more"),
        ("heavy.bmp", b"BM" + b"x" * 600_000, "at most 0.5 MB, got 0.6 MB"),
        ("strip.png", "strip", "at most 200 times as long as wide"),
    ],
)
def test_what_is_refused(tmp_path, name, content, message):
    path = tmp_path / name
    if content is None:
        content = (tmp_path / "whole.png", Image.fromarray(COLORS).save(tmp_path / "whole.png"))[0].read_bytes()[:-1000]
    if content == "strip":
        Image.new("RGB", (2, 500)).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as refused:
        open_upload(str(path), LIMITS)
    assert str(tmp_path) not in str(refused.value), "a visitor learns nothing of the server's folders"
    with pytest.raises(DataError, match=message):
        picture_to_show(str(path), LIMITS)


def test_no_picture_and_a_deleted_one(tmp_path):
    with pytest.raises(InputError, match="Upload one, or choose an example"):
        open_upload(None, LIMITS)
    with pytest.raises(InputError, match="pictures stay 60 minutes") as refused:
        open_upload(str(tmp_path / "gone.png"), LIMITS)
    assert str(tmp_path) not in str(refused.value)


def test_limits_let_something_through():
    with pytest.raises(InputError, match="pixels must be positive, got 0"):
        Limits(pixels=0)
    assert Limits().upload_bytes == 10 * 1024 * 1024
    assert "EPS" not in FORMATS
