"""Tests of the page. Those that take long run where gradio and Playwright are installed: `make test-web`."""

import importlib.util
import shutil
from contextlib import contextmanager

import pytest

_HERE = all(importlib.util.find_spec(name) for name in ("gradio", "playwright"))
collect_ignore = [] if _HERE else ["test_web_answering.py", "test_web_server.py", "test_web_browser.py"]
UPLOAD_MB = 1
PIXELS = 4_000_000
QUEUE = 2


@pytest.fixture(scope="session")
def mini():
    """(model, processor) of the mini model."""
    from globalcom2 import load_mini

    return load_mini()


@pytest.fixture(scope="session")
def answering(mini):
    """What answers on the page under test."""
    from globalcom2.web.answering import Answering, Models
    from globalcom2.web.uploads import Limits

    return Answering(Models("mini", *mini), Limits(upload_mb=UPLOAD_MB, pixels=PIXELS))


@pytest.fixture(scope="session")
def server(answering):
    """The page's address and folder of uploads."""
    from globalcom2.web.addresses import free_port
    from globalcom2.web.serving import launch, private_folder

    with private_folder() as folder:
        from globalcom2.web.app import build, look

        page = build(answering, QUEUE)
        yield launch(page, look(), folder, answering.limits, "127.0.0.1", free_port("127.0.0.1", 18860)), folder
        page.close(verbose=False)


@pytest.fixture(scope="session")
def chromium(server):
    """A headless browser that sees this machine alone, started after the server."""
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("chromium must be installed for the tests of the page, got none. Run: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
                  "--disable-component-update", "--disable-sync"],
        )  # fmt: skip
        yield browser
        browser.close()


@contextmanager
def visitor(chromium, address, **look):
    """A visitor of their own: a browser context, whose page has loaded."""
    context = chromium.new_context(**{"viewport": {"width": 1240, "height": 900}, **look})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.goto(address)
    page.wait_for_selector("#gc-ask")
    page.wait_for_selector("button[data-example]")
    yield page
    context.close()
