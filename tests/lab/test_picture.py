"""The drawing, and the opening of pictures."""

import logging
import warnings

import numpy as np
import pytest
from PIL import Image, ImageDraw

from drawing.made import made, padded, ratio_one
from families import FAMILIES
from globalcom2 import Report, compress, draw_page, draw_picture
from globalcom2.drawing.panel import Panel
from globalcom2.errors import DataError, InputError
from globalcom2.lab.images import open_image
from globalcom2.lab.picture import shaded
from globalcom2.lab.sheets import pictures_of
from tiny import picture


def boxes(figure):
    """Pixels that the views cover and pixels that the budgets cover, each as (left, bottom, right, top)."""
    renderer = figure.canvas.get_renderer()
    views, labels = [], []
    for axes in figure.axes:
        for image in axes.images:
            left, right, low, high = image.get_extent()
            (x0, y0), (x1, y1) = axes.transData.transform([(left, low), (right, high)])
            views.append((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))
        labels += [text.get_window_extent(renderer).extents for text in axes.texts if "%" in text.get_text()]
    return views, labels


def apart(a, b):
    return a[2] <= b[0] + 1 or b[2] <= a[0] + 1 or a[3] <= b[1] + 1 or b[3] <= a[1] + 1


@pytest.mark.parametrize("size", [(168, 168), (400, 100), (100, 400), (250, 250), (64, 90)])
def test_draws_every_grid(tiny, tmp_path, size):
    image = picture(*size)
    with compress(tiny.model, 0.2) as compression:
        tiny.model.generate(**tiny.inputs(["<image>"], [image]), max_new_tokens=1)
    path = tmp_path / "kept.png"
    figure = draw_picture(image, compression.report[0], path)
    assert Image.open(path).size[0] > 400
    shares = [t.get_text().split()[0] for axis in figure.axes for t in axis.texts if "%" in t.get_text()]
    assert shares == [f"{ratio:.0%}" for ratio in compression.report[0].crop_ratios]
    assert str(compression.report[0].tokens_after) in figure.get_suptitle()


@pytest.mark.parametrize(
    "entry",
    [made((1, 6), (8, 8)), made((6, 6), (24, 24)), made((1, 1), (1, 1)), made((5, 1), (3, 3)), made(layout=padded())],
    ids=lambda entry: str(entry.grid),
)
def test_budgets_hide_no_token_and_stay_apart(entry):
    views, labels = boxes(draw_picture(picture(300, 200), entry))
    assert len(labels) == len(entry.crop_ratios)
    assert all(apart(label, view) for label in labels for view in views)
    assert all(apart(a, b) for i, a in enumerate(labels) for b in labels[:i])


@pytest.mark.parametrize("entry", [made((0, 0)), ratio_one(made((2, 2))), made((1, 3), known_grid=False)])
def test_draws_what_has_no_crops_no_scores_or_no_known_places(entry):
    figure = draw_picture(picture(90, 60), entry)
    assert str(entry.tokens_after) in figure.get_suptitle()


def test_a_video_is_refused(tmp_path):
    from globalcom2.adapters.videos import frames_layout

    with pytest.raises(InputError, match="draw_page draws its frames"):
        draw_picture(picture(90, 60), made(layout=frames_layout(3, (2, 2), newline=False)))


@pytest.mark.parametrize("ground", ["white", "black", (90, 105, 130)])
def test_kept_and_dropped_differ_at_a_glance_on_any_ground(tmp_path, ground):
    """Mean colours of a kept and of a dropped token in the saved file; outlines and hatching count."""
    entry, path = made((1, 1), (2, 2), 0.25), tmp_path / "kept.png"
    figure = draw_picture(Image.new("RGB", (100, 100), ground), entry, path)
    pixels = np.asarray(Image.open(path).convert("RGB"), float)
    crop = boxes(figure)[0][-1]
    scale = pixels.shape[1] / figure.bbox.width
    left, low, right, high = (edge * scale for edge in crop)
    colors = {True: [], False: []}
    for (y, x), keep in np.ndenumerate(entry.keep.crops.view(2, 2).numpy()):
        rows = [int(pixels.shape[0] - high + (high - low) * (y + at) / 2) for at in (0, 1)]
        cols = [int(left + (right - left) * (x + at) / 2) for at in (0, 1)]
        colors[bool(keep)].append(pixels[rows[0] : rows[1], cols[0] : cols[1]].mean((0, 1)))
    least = min(np.abs(kept - dropped).sum() for kept in colors[True] for dropped in colors[False])
    assert least > (60 if ground in ("white", "black") else 3)


def test_kept_tokens_are_untouched_and_padding_is_blank():
    view = Panel(made(layout=padded(2), ratio=0.4)).crops[2]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    shown = shaded(pixels, view)
    at = np.kron(view.keep, np.ones((4, 4), bool))
    assert view.kept
    assert (shown[at] == pixels[at]).all()
    assert (shown[8:] == shown[-1, -1]).all()
    assert not (shown[:8] == shown[-1, -1]).all()


TITLES = {
    "long": "What is the third word of the second line of the paragraph below the heading? " * 4,
    "one word": "x" * 400,
    "mathematics": "Does it cost $5 or $6_{x}^2? 100 % of $\\frac$",
    "scripts": "请问发票号码是多少？ これは何ですか 이것은 무엇입니까 \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 ❤\ufe0f \x07\ud800",
}


@pytest.mark.parametrize("title", TITLES.values(), ids=TITLES)
def test_titles_fit_and_draw_without_a_word(title, tmp_path, caplog):
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        figure = draw_picture(picture(100, 100), made(), tmp_path / "a.png", title=title)
    assert caplog.records == []
    box = figure._suptitle.get_window_extent(figure.canvas.get_renderer())
    assert box.x1 <= figure.bbox.x1
    assert box.y1 <= figure.bbox.y1
    views, _labels = boxes(figure)
    assert all(apart(box.extents, view) for view in views)
    if title == TITLES["mathematics"]:
        assert figure.get_suptitle().replace("\n", " ") == title


@pytest.mark.parametrize("draw", [draw_picture, draw_page])
@pytest.mark.parametrize(
    ("image", "entry", "message"),
    [
        ("a.png", made(), r"image must be a PIL.Image.Image, got str. open_image\(path\)"),
        (np.zeros((8, 8, 3), np.uint8), made(), r"got ndarray\. .*fromarray"),
        (picture(80, 80), 3, r"entry must be one of a report's, compression.report\[i\], got int"),
    ],
)
def test_what_is_no_image_or_no_entry(draw, image, entry, message):
    with pytest.raises(InputError, match=message):
        draw(image, entry)


def test_a_report_has_several_entries():
    report = Report(0.1, "globalcom2", [made(), made(seed=1)])
    with pytest.raises(InputError, match="got Report"):
        draw_picture(picture(80, 80), report)
    assert draw_page(picture(80, 80), report).count("<section") == 2


def test_tokens_lie_on_an_image_that_was_padded_to_a_square():
    """LLaVA-OneVision pads several images of one prompt, and cuts none of them."""
    tiny = FAMILIES["llava_onevision"]()
    images = [Image.new("RGB", (260, 60), color) for color in ("white", "red")]
    inputs = tiny.inputs(["<image><image> b"], images)
    with compress(tiny.model, 0.3) as compression:
        tiny.model(**inputs)
    for image, entry in zip(images, compression.report, strict=True):
        assert repr(entry).startswith("ImageReport(image, row 0, no crops, ")
        seen = np.asarray(pictures_of(image, entry).thumbnail).astype(int)
        above, middle = seen[0], seen[len(seen) // 2]
        assert np.ptp(above, axis=0).max() == np.ptp(middle, axis=0).max() == 0
        assert np.abs(above - middle).max() > 60, "the image's own colour stands in the middle alone"
    assert draw_picture(None, entry).axes[0].images[0].get_array().shape == (84, 84, 3)


def test_any_title_can_be_saved(tmp_path):
    draw_page(None, made(), tmp_path / "a.html", title="\ud800 half", answers=["\udcff"])
    assert "? half" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_a_document_is_readable_where_it_was_kept():
    """The page keeps its letters: dark on light in kept tokens, dim in dropped ones."""
    page = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(page).rectangle((0, 28, 64, 36), fill="black")
    view = Panel(made((1, 1), (4, 4), 0.5)).crops[0]
    shown = shaded(np.asarray(page), view).astype(int)
    at = np.kron(view.keep, np.ones((16, 16), bool))
    assert np.ptp(shown[at]) == 255
    assert np.ptp(shown[~at].mean(-1)) < 110


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
