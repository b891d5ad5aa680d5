"""The page of what was kept: one document, all of it inside, every text escaped, numbers those of the report."""

import dataclasses
import json
import re
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from drawing.made import made, padded, ratio_one
from globalcom2 import compress, draw_page
from globalcom2.adapters.videos import frames_layout
from globalcom2.drawing.page import in_frame, kept_page
from globalcom2.drawing.panel import Panel
from globalcom2.drawing.pictures import Pictures
from globalcom2.errors import InputError
from tiny import picture

VOID = {"meta", "input", "img", "br", "path"}
EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)></script></title></style>&amp;"


class Reader(HTMLParser):
    """Elements with their attributes and texts; fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))
        if tag not in VOID:
            self.open.append((tag, self.elements[-1][2]))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _tag, texts in self.open:
            texts.append(data)

    def all(self, tag, name=None):
        return [
            (attributes, "".join(texts))
            for kind, attributes, texts in self.elements
            if kind == tag and (name is None or name in attributes.get("class", "").split())
        ]


def numbers(html):
    ((_, text),) = Reader(html).all("script", "numbers")
    return json.loads(text)


@pytest.mark.filterwarnings("error")
def test_padding_may_hold_what_is_no_number():
    entry = made(layout=padded())
    nothing = entry.scores.masked_fill(~entry.layout.valid, float("nan"))
    views = numbers(draw_page(None, dataclasses.replace(entry, scores=nothing)))[0]
    for view, valid in zip(views[1:], entry.layout.valid.tolist(), strict=True):
        assert [score is not None for score in view["scores"]] == valid


def test_numbers_are_those_of_the_report():
    entry = made((2, 3), (4, 5))
    (views,) = numbers(draw_page(picture(120, 80), entry))
    assert len(views) == 7
    assert views[0]["state"] == "".join("k" if keep else "d" for keep in entry.keep.thumbnail.tolist())
    assert views[0]["scores"] == pytest.approx(entry.thumbnail_scores.tolist(), rel=1e-3)
    for crop, view in enumerate(views[1:]):
        assert (view["height"], view["width"]) == (4, 5)
        assert view["scores"] == pytest.approx(entry.scores[crop].tolist(), rel=1e-3)
        assert view["state"].count("k") == view["kept"] == int(entry.keep.crops[crop].sum())
        assert view["count"] == 20
    assert sum(view["kept"] for view in views) == entry.tokens_after
    assert views[4]["name"] == "crop in row 2, column 1"


def test_numbers_of_several_entries_are_found_by_their_places():
    entries = [made(ratio=0.1), made((1, 3), ratio=0.5), made((0, 0))]
    html = draw_page(None, entries)
    every = numbers(html)
    for attributes, _ in Reader(html).all("div", "view"):
        view = every[int(attributes["data-panel"])][int(attributes["data-view"])]
        assert attributes["aria-label"].startswith(f"{view['name']}: {view['kept']} of {view['count']} ")
    assert [sum(view["kept"] for view in own) for own in every] == [entry.tokens_after for entry in entries]


def test_budgets_are_written_above_crops_and_told_to_screen_readers():
    entry = made((2, 2), (4, 4), layout=padded())
    read = Reader(draw_page(picture(120, 80), entry))
    kept, valid = entry.keep.crops.sum(1).tolist(), entry.layout.valid.sum(1).tolist()
    assert [text for _, text in read.all("div", "budget")] == [
        f"{k / v:.0%} {k}/{v}" for k, v in zip(kept, valid, strict=True)
    ]
    labels = [attributes["aria-label"] for attributes, _ in read.all("div", "view")]
    assert labels[4] == f"crop in row 2, column 2: {kept[3]} of {valid[3]} tokens kept, {kept[3] / valid[3]:.0%}"
    assert "padding" in read.all("p", "legend")[0][1]


def test_the_outline_and_the_shade_cover_the_right_tokens():
    entry = made((1, 1), (3, 4))
    html = draw_page(picture(90, 60), entry)
    area = re.findall(r'class="d" d="([^"]+)"', html)[1]
    shaded = np.zeros((3, 4), bool)
    for a, y, b in re.findall(r"M(\d+) (\d+)H(\d+)", area):
        shaded[int(y), int(a) : int(b)] = True
    assert (shaded == ~entry.keep.crops.view(3, 4).numpy()).all()


def test_nothing_in_it_runs_but_our_script():
    table = [{EVIL: EVIL, "n": 3}]
    html = draw_page(None, [made(), made(seed=1)], title=EVIL, names=[EVIL, "b"], answers=[EVIL, None], table=table)
    read = Reader(html)
    assert len(read.all("script")) == 2
    assert [attributes["class"] for attributes, _ in read.all("img")] == ["heat"] * 10
    assert not any(name.startswith("on") for _, attributes, _ in read.elements for name in attributes)
    assert read.all("h1")[0][1] == read.all("h2")[0][1] == EVIL
    assert read.all("p", "answer")[0][1] == f"Answer: {EVIL}"
    assert [text for _, text in read.all("td")] == ["3"]
    assert read.all("th")[0][1] == EVIL


def test_columns_of_numbers_are_set_flush_right():
    rows = [
        {"setting": "1", "tokens": 1200, "seconds": "0.50", "share": "-", "answer": "7"},
        {"setting": "b", "answer": "x"},
    ]
    read = Reader(draw_page(None, made(), table=rows))
    assert [text for _, text in read.all("th", "number")] == ["tokens", "seconds", "share"]
    assert [text for _, text in read.all("td")][:4] == ["1,200", "0.50", "-", "7"]
    assert [attributes["scope"] for attributes, _ in read.all("th")] == ["col"] * 5 + ["row"] * 2


def test_it_needs_no_network_and_forbids_it():
    html = draw_page(picture(120, 80), made(), title="a")
    read = Reader(html)
    for _, attributes, _ in read.elements:
        assert all(attributes.get(name, "data:").startswith("data:") for name in ("src", "href"))
    assert not re.search(r"url\((?!data:)|@import|https?://(?!www\.w3\.org)", html)
    policy = next(a["content"] for _, a, _ in read.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy


def test_every_layer_has_a_labelled_box():
    read = Reader(draw_page(picture(120, 80), made()))
    boxes = [attributes for attributes, _ in read.all("input")]
    assert len(read.all("label")) == len(boxes) == 6
    assert all(text.strip() for _, text in read.all("label"))
    style = read.all("style")[0][1]
    for box in boxes:
        assert box["type"] == "checkbox"
        assert f".{box['class']}:not(:checked)" in style


def test_boxes_for_what_is_not_there_are_left_out():
    def boxes(html):
        return {attributes["class"].removeprefix("show-") for attributes, _ in Reader(html).all("input")}

    assert "picture" not in boxes(draw_page(None, made()))
    assert boxes(draw_page(picture(60, 60), ratio_one(made()))) == {"picture", "kept", "dropped", "budgets"}
    assert "thumbnail-heat" not in boxes(draw_page(None, made(layout=frames_layout(3, (2, 2), newline=True))))


def test_several_pages_share_no_id():
    pages = [Reader(draw_page(picture(60, 60), made())) for _ in range(2)]
    ids = [{a["id"] for _, a, _ in page.elements if "id" in a} for page in pages]
    assert ids[0]
    assert ids[0].isdisjoint(ids[1])


def test_one_picture_in_several_settings_is_stored_once():
    image = picture(400, 400)
    one, four = (draw_page(image, [made(ratio=0.1)] * n) for n in (1, 4))
    assert len(four) < 1.5 * len(one) + 30_000
    layouts = made((2, 2)).layout
    several = draw_page(image, [made(layout=layouts, ratio=ratio) for ratio in (0.1, 0.2, 0.5)])
    assert len(re.findall("url\\(data:image/jpeg", several)) == 2
    apart = draw_page([image, picture(400, 400, 5)], [made(), made()])
    assert len(re.findall("url\\(data:image/jpeg", apart)) == 4


def test_a_page_of_usual_size_is_small():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8))
    smooth = picture(700, 700)
    assert len(draw_page(smooth, made((2, 2), (24, 24), 0.25))) < 1_500_000
    assert len(draw_page(noise, made((2, 2), (24, 24), 0.25))) < 3_000_000  # noise is the worst there is


def test_a_video_shows_its_frames():
    entry = made(layout=frames_layout(11, (2, 3), newline=True))
    html = draw_page(None, entry)
    (views,) = numbers(html)
    assert [view["name"] for view in views] == [f"frame {n}" for n in range(1, 12)]
    assert views[0]["kind"] == "frame"
    assert "11 frames" in html
    assert 'data-cols="8"' in html


@pytest.mark.parametrize(
    "entry", [made((0, 0)), ratio_one(made((2, 2))), ratio_one(made((0, 0))), made((1, 3), known_grid=False)]
)
def test_odd_entries_have_a_page(entry):
    read = Reader(draw_page(picture(60, 60), entry))
    assert str(entry.tokens_after) in read.all("p", "counts")[0][1]
    assert len(read.all("div", "view")) == 1 + entry.grid[0] * entry.grid[1]


def test_a_page_without_entries():
    assert Reader(kept_page([], note="Nothing <here>")).all("p", "note")[0][1] == "Nothing <here>"


def test_a_frame_holds_the_whole_page_and_locks_it_up():
    html = draw_page(picture(60, 60), made(), title=EVIL)
    ((attributes, _),) = Reader(in_frame(html, 300)).all("iframe")
    assert attributes["srcdoc"] == html
    assert unescape(attributes["title"])
    assert attributes["sandbox"] == "allow-scripts"
    assert "height:300px" in attributes["style"]


def test_it_is_written_where_asked(tmp_path):
    path = tmp_path / "kept.html"
    html = draw_page(picture(60, 60), made(), path, title="é 请 😀")
    assert path.read_text(encoding="utf-8") == html
    assert "é 请 😀" in html


def test_lists_of_wrong_length_are_told():
    for wrong in ({"names": ["a"]}, {"answers": ["a", "b", "c"]}):
        with pytest.raises(InputError, match="one item for each of 2 entries"):
            draw_page(None, [made(), made()], **wrong)
    with pytest.raises(InputError, match=r"image must have one item.*got 3"):
        draw_page([None] * 3, [made(), made()])


def test_a_notebook_shows_the_report(tiny):
    inputs = tiny.inputs(["<image> <image>"], [picture(168, 168), picture(84, 168)])
    with compress(tiny.model, 0.2) as compression:
        tiny.model.generate(**inputs, max_new_tokens=1)
    report = compression.report
    for shown, cards in ((report, 2), (report[1], 1)):
        ((attributes, _),) = Reader(shown._repr_html_()).all("iframe")
        page = Reader(attributes["srcdoc"])
        assert len(page.all("section", "card")) == cards
        assert "url(data:image/jpeg" in attributes["srcdoc"]
    del inputs  # nothing else holds the pixels
    ((attributes, _),) = Reader(report._repr_html_()).all("iframe")
    assert "url(data:image/jpeg" not in attributes["srcdoc"]
    assert len(Reader(attributes["srcdoc"]).all("div", "view")) == sum(1 + e.grid[0] * e.grid[1] for e in report)


def test_an_empty_report_says_so_in_a_notebook(tiny):
    with compress(tiny.model, 0.2) as compression:
        tiny.model.generate(**tiny.inputs(["text"], None), max_new_tokens=1)
    assert "Nothing was compressed" in compression.report._repr_html_()


def test_panels_without_pictures_and_with_them_may_stand_together():
    entry = made()
    html = kept_page([Panel(entry), Panel(entry, Pictures.of_image(picture(60, 60), entry.layout))])
    assert re.findall(r"\.picture-(\d)-\d \{", html) == ["1", "1"]
    assert 'class="pic picture-0' not in html
