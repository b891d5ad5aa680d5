"""The limits of the page under test, and visitors of it."""

from contextlib import contextmanager

UPLOAD_MB = 1
PIXELS = 4_000_000
QUEUE = 2


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
