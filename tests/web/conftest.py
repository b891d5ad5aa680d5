"""Tests of the page. Those that take long run where gradio and Playwright are installed: `make test-web`."""

import importlib.util
import shutil

import pytest
from visitors import PIXELS, QUEUE, UPLOAD_MB

_HERE = all(importlib.util.find_spec(name) for name in ("gradio", "playwright"))
collect_ignore = [] if _HERE else ["test_web_answering.py", "test_web_server.py", "test_web_browser.py"]


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
    """The page's address, its folder of uploads, and gradio's Blocks."""
    from globalcom2.web.addresses import free_port
    from globalcom2.web.serving import launch, private_folder

    with private_folder() as folder:
        from globalcom2.web.app import build, look

        page = build(answering, QUEUE)
        yield launch(page, look(), folder, answering.limits, "127.0.0.1", free_port("127.0.0.1", 18860)), folder, page
        page.close(verbose=False)


@pytest.fixture(scope="module")  # its event loop must not outlast the tests of one file
def chromium(server):
    """A headless browser, started after the server."""
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
