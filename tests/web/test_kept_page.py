"""The page of what was kept in a browser: boxes hide layers, pointer and keyboard read tokens, nothing foreign runs."""

import pytest

from drawing.made import made
from globalcom2 import draw_page
from globalcom2.drawing.page import in_frame
from tiny import picture

pytest.importorskip("playwright")
pytest.importorskip("gradio", reason="the browser is started beside the page's server")

LAYERS = {
    "Picture": ".pic",
    "Heat map of the thumbnail's scores": ".thumbnail .heat",
    "Heat map of the crops' scores": ".crops .heat",
    "Outline of kept tokens": ".marks .k",
    "Shade over dropped tokens": ".marks .d",
    "Borders and budgets of crops": ".budget",
}


@pytest.fixture
def entry():
    return made((2, 2), (4, 4))


@pytest.fixture
def sheet(chromium, entry, tmp_path):
    """The page of one entry, opened from a file, with what the browser asked for and complained about."""
    path = tmp_path / "kept.html"
    draw_page(picture(200, 160), entry, path, title="<img src=x onerror=alert(1)>")
    context = chromium.new_context(viewport={"width": 1100, "height": 900})
    page = context.new_page()
    page.asked, page.complaints = [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("dialog", lambda dialog: page.complaints.append("dialog") or dialog.dismiss())
    page.goto(path.as_uri())
    yield page
    context.close()


def token(page, view, x, y):
    """Middle of a token of a view, in px of the page."""
    box = page.locator(".view").nth(view).bounding_box()
    return box["x"] + box["width"] * (x + 0.5) / 4, box["y"] + box["height"] * (y + 0.5) / 4


def test_it_asks_for_nothing_and_has_nothing_to_complain(sheet):
    assert [url for url in sheet.asked if not url.startswith(("file:", "data:"))] == []
    assert sheet.complaints == []
    assert sheet.locator("h1").inner_text() == "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("words", LAYERS)
def test_a_box_shows_and_hides_its_layer_alone(sheet, words):
    def shown():
        return {name: sheet.locator(layer).first.is_visible() for name, layer in LAYERS.items()}

    before = shown()
    sheet.get_by_label(words, exact=True).click()
    assert shown() == {**before, words: not before[words]}
    assert all(before[name] for name in LAYERS if name != "Heat map of the crops' scores")


def test_the_pointer_reads_a_token(sheet, entry):
    tip = sheet.locator(".tip")
    assert tip.is_hidden()
    keep, scores = entry.keep.crops.view(4, 4, 4), entry.scores.view(4, 4, 4)
    for view, x, y in ((1, 0, 0), (4, 3, 2), (2, 1, 3)):
        sheet.mouse.move(*token(sheet, view, x, y))
        text = tip.inner_text()
        crop = view - 1
        assert f"row {crop // 2 + 1}, column {crop % 2 + 1}, token in row {y + 1}, column {x + 1}: " in text
        assert ("kept" if keep[crop, y, x] else "dropped") in text.split(": ")[1].split("\n")[0]
        rank = int((scores[crop] > scores[crop, y, x]).sum()) + 1
        assert f"rank {rank} of 16" in text
        assert float(text.split("score ")[1].split(",")[0]) == pytest.approx(float(scores[crop, y, x]), rel=1e-3)
        assert f"{int(keep[crop].sum())} of 16 tokens" in text
    sheet.mouse.move(2, 2)
    assert tip.is_hidden()


def test_the_keyboard_walks_over_the_crops(sheet):
    stage, tip = sheet.locator(".crops .stage"), sheet.locator(".tip")
    stage.focus()
    sheet.keyboard.press("ArrowRight")
    assert "row 1, column 1, token in row 1, column 1" in tip.inner_text()
    for _ in range(4):
        sheet.keyboard.press("ArrowRight")
    assert "crop in row 1, column 2, token in row 1, column 1" in tip.inner_text()
    for _ in range(9):
        sheet.keyboard.press("ArrowDown")
    assert "crop in row 2, column 2, token in row 4, column 1" in tip.inner_text()
    sheet.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_frame_works_and_cannot_reach_out(chromium, entry):
    context = chromium.new_context(viewport={"width": 900, "height": 700})
    page = context.new_page()
    html = draw_page(picture(200, 160), entry).replace(
        "</body>",
        "<script>try { parent.document.title = 'reached' } catch { document.title = 'locked up' }</script></body>",
    )
    page.set_content(in_frame(html))
    frame = page.frames[1]
    frame.locator(".tip").wait_for(state="attached")
    assert frame.evaluate("document.title") == "locked up"
    assert page.title() != "reached"
    box = page.locator("iframe").bounding_box()
    inner = frame.locator(".view").first.bounding_box()
    page.mouse.move(inner["x"] + 5, inner["y"] + 5)
    assert "thumbnail, token in row 1, column 1" in frame.locator(".tip").inner_text()
    assert box["width"] > 800
    context.close()
