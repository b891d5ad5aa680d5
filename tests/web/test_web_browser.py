"""The page as visitors meet it, in headless Chromium. Screenshots lie in pytest's folder `screens`."""

import re
import threading

import httpx
import numpy as np
import pytest
from PIL import Image
from visitors import PIXELS, QUEUE, UPLOAD_MB, visitor

from globalcom2 import InputError
from globalcom2.web.examples import EXAMPLES

TOAST = "[data-testid='toast-body']"


@pytest.fixture(scope="session")
def screens(tmp_path_factory):
    return tmp_path_factory.mktemp("screens", numbered=False)


@pytest.fixture
def page(chromium, server):
    with visitor(chromium, server[0]) as page:
        yield page


def choose(page, number):
    page.click(f"button[data-example='{number}']")
    page.wait_for_function(
        "text => document.querySelector('#gc-question textarea').value === text", arg=EXAMPLES[number].question
    )
    page.wait_for_selector("#gc-picture img")


def upload(page, path):
    page.set_input_files("#gc-picture input[type=file]", str(path))


def pick(page, chooser, label):
    page.click(f"{chooser} input")
    page.locator(f"{chooser} [role=option][aria-label='{label}']").click()


def ask(page):
    page.click("#gc-ask")
    page.wait_for_selector(".gc-summary table")
    page.wait_for_selector("#gc-views iframe")
    return page.frame_locator("#gc-views iframe")


def answers(page):
    return page.locator(".gc-answer").all_inner_texts()


def rows(page):
    return [re.sub(r"\s*ratio.*", "", text) for text in page.locator(".gc-summary tbody th").all_inner_texts()]


def test_upload_ratio_two_methods_answers_and_masks(page, tmp_path, screens):
    picture = EXAMPLES[0].picture()
    picture.save(tmp_path / "mine.png")
    upload(page, tmp_path / "mine.png")
    page.wait_for_selector("#gc-picture img")
    page.fill("#gc-question textarea", EXAMPLES[0].question)
    slider = page.locator("#gc-ratio input[type=range]")
    slider.focus()
    for _ in range(15):
        slider.press("ArrowRight")
    assert page.input_value("#gc-ratio input[type=number]") == "0.25"
    pick(page, "#gc-first", "globalcom2, paper")
    pick(page, "#gc-second", "random")
    frame = ask(page)
    assert rows(page) == ["all tokens", "globalcom2, paper", "random"]
    shown = answers(page)
    assert len(shown) == 3
    assert all(shown)
    tokens = page.locator("td[data-label='Visual tokens']").all_inner_texts()
    assert tokens[0] == "664"
    assert [text.split()[0] for text in tokens[1:]] == ["166", "166"]
    assert frame.locator(".card").count() == 2
    frame.locator(".card .marks .k").first.wait_for()
    page.wait_for_timeout(300)
    page.screenshot(path=screens / "desktop.png", full_page=True)


def test_hover_shows_a_score_and_boxes_show_layers(page):
    choose(page, 0)
    frame = ask(page)
    view = frame.locator(".crops .view").nth(4)
    view.scroll_into_view_if_needed()
    view.hover(position={"x": 20, "y": 20})
    tip = frame.locator(".tip")
    tip.wait_for(state="visible")
    assert re.search(r"score -?\d", tip.inner_text())
    assert re.search(r"budget of the crop: \d+ of 64 tokens", tip.inner_text())
    with_outlines = view.screenshot()
    frame.get_by_label("Outline of kept tokens").uncheck()
    without = view.screenshot()
    frame.get_by_label("Shade over dropped tokens").uncheck()
    assert len({with_outlines, without, view.screenshot()}) == 3


def test_an_example_says_what_is_right(page):
    choose(page, 1)
    ask(page)
    assert f"The right answer is {EXAMPLES[1].answer}" in page.inner_text(".gc-summary")


def test_one_method_alone(page):
    choose(page, 2)
    pick(page, "#gc-second", "none")
    frame = ask(page)
    assert rows(page) == ["all tokens", "globalcom2"]
    assert frame.locator(".card").count() == 1


def test_two_visitors_at_once(chromium, server):
    with visitor(chromium, server[0]) as one, visitor(chromium, server[0]) as other:
        choose(one, 1)
        choose(other, 2)
        one.click("#gc-ask")
        other.click("#gc-ask")
        for page, number, foreign in ((one, 1, 2), (other, 2, 1)):
            page.wait_for_selector(".gc-summary table")
            page.wait_for_selector("#gc-views iframe")
            text = page.inner_text("#gc-results")
            assert EXAMPLES[number].question in text
            assert f"The right answer is {EXAMPLES[number].answer}" in text
            assert EXAMPLES[foreign].question not in text
        pictures = [page.get_attribute("#gc-picture img", "src") for page in (one, other)]
        assert len(set(pictures)) == 2
        assert one.inner_html("#gc-views") != other.inner_html("#gc-views")


def wrong(kind, folder):
    path = folder / f"{kind}.png"
    if kind == "large":
        path.write_bytes(bytes(UPLOAD_MB * 1024 * 1024 + 1))
    elif kind == "pixels":
        Image.new("L", (2001, PIXELS // 2000)).save(path)
    elif kind == "corrupt":
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-3000])
    elif kind == "text":
        path.write_text("no picture")
    elif kind == "svg":
        path = folder / "x.svg"
        path.write_text("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>")
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("large", "exceed"),
        ("pixels", "at most 4,000,000 pixels, got 2001 x 2000"),
        ("corrupt", "which cannot be decoded"),
        ("text", "which is none. Save it as PNG or JPEG"),
        ("svg", "which is none. Save it as PNG or JPEG"),
    ],
)
def test_wrong_uploads_show_a_message(page, tmp_path, screens, kind, message):
    upload(page, wrong(kind, tmp_path))
    toast = page.locator(TOAST)
    toast.wait_for()
    assert message in toast.inner_text()
    assert "Traceback" not in page.content()
    page.wait_for_timeout(600)
    page.screenshot(path=screens / f"{kind}.png")
    page.wait_for_selector("#gc-picture img", state="detached")


def test_empty_questions_show_a_message(page, screens):
    choose(page, 0)
    page.fill("#gc-question textarea", "")
    page.click("#gc-ask")
    page.locator(TOAST).wait_for()
    assert "A question must be given" in page.locator(TOAST).inner_text()
    page.wait_for_timeout(600)
    page.screenshot(path=screens / "empty.png")


def test_a_full_queue_shows_a_message(page, server, answering, monkeypatch):
    begun, free = threading.Event(), threading.Event()

    def busy(*args):
        begun.set()
        free.wait(60)
        raise InputError("done")

    monkeypatch.setattr(answering, "ask", busy)
    config = httpx.get(f"{server[0]}config").json()
    number = next(one["id"] for one in config["dependencies"] if len(one["inputs"]) == 6)
    try:
        for name in range(QUEUE + 1):
            call = {
                "data": [None, "what?", 0.1, "uniform", "", "mini"],
                "fn_index": number,
                "session_hash": f"waits{name}",
            }
            assert httpx.post(f"{server[0]}gradio_api/queue/join", json=call).status_code == 200
            assert begun.wait(60)
        page.click("#gc-ask")
        page.locator(TOAST).wait_for()
        assert "busy" in page.locator(TOAST).inner_text() or "full" in page.locator(TOAST).inner_text()
    finally:
        free.set()


def test_no_picture_shows_a_message(page):
    page.click("#gc-ask")
    page.locator(TOAST).wait_for()
    assert "must be given, got none" in page.locator(TOAST).inner_text()


def test_questions_do_not_run(page):
    page.on("dialog", lambda dialog: pytest.fail("a script ran"))
    choose(page, 0)
    page.fill("#gc-question textarea", "<img src=x onerror=alert(1)> ${alert(2)} {{x}}")
    ask(page)
    assert page.locator(".gc-summary h2").inner_text() == "<img src=x onerror=alert(1)> ${alert(2)} {{x}}"


def test_a_picture_that_no_browser_shows(page, tmp_path):
    Image.fromarray(np.full((300, 300), 65535, np.uint16)).save(tmp_path / "deep.tif")
    upload(page, tmp_path / "deep.tif")
    page.wait_for_function("document.querySelector('#gc-picture img')?.naturalWidth === 300")
    page.fill("#gc-question textarea", "how many tags are there?")
    ask(page)
    assert len(answers(page)) == 3


def test_a_phone(chromium, server, screens):
    with visitor(chromium, server[0], viewport={"width": 390, "height": 844}, has_touch=True) as page:
        choose(page, 5)
        ask(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.wait_for_function(
            "document.querySelector('#gc-views iframe').clientHeight > 720"
        )  # as tall as its content
        content = page.frames[-1].evaluate("document.documentElement.scrollHeight")
        assert content == page.evaluate("document.querySelector('#gc-views iframe').clientHeight")
        page.wait_for_timeout(500)
        page.screenshot(path=screens / "phone.png")


def test_dark(chromium, server, screens):
    with visitor(chromium, server[0], color_scheme="dark") as page:
        choose(page, 4)
        ask(page)
        page.wait_for_timeout(500)
        page.screenshot(path=screens / "dark.png", full_page=True)


def test_nothing_from_outside_is_asked_for(chromium, server):
    asked, complaints = [], []
    context = chromium.new_context()
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.goto(server[0])
    page.wait_for_selector("button[data-example]")
    choose(page, 0)
    ask(page)
    context.close()
    outside = [url for url in asked if not url.startswith((server[0], "data:", "blob:", "about:"))]
    assert not outside
    assert not [text for text in complaints if "queue/data" not in text and "heartbeat" not in text]


def test_labels(page):
    for label in ("Question", "Retention ratio", "Method", "Compare with"):
        assert page.get_by_label(label, exact=False).count() >= 1, label
    page.get_by_role("button", name="Ask", exact=True).focus()
    choose(page, 0)
    assert page.get_attribute("#gc-picture img", "alt")
    ask(page)
    assert page.get_by_role("table").count() == 1
