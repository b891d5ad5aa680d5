"""The site, built as `make docs` builds it, into another folder."""

import html.parser
import re
import subprocess
import sys

import pytest
from docpages import ROOT

LOADS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "video": "src"}
"""Tags that make a browser ask for something, and where they say for what."""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


class Loads(html.parser.HTMLParser):
    """Collects what a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag in LOADS and values.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(values.get(LOADS[tag]) or "")


def test_pages_load_nothing_from_elsewhere_and_nothing_that_is_not_there(site):
    pages = list(site.glob("*.html"))
    assert len(pages) >= 20
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text())
        for address in loads.found:
            assert not re.match(r"(?:[a-z]+:)?//", address), (page.name, address)
            if page.name != "404.html" and not address.startswith("data:"):  # its addresses begin at a server's root
                assert (page.parent / re.split(r"[?#]", address)[0]).exists(), (page.name, address)


def test_pages_that_are_made_have_their_content(site):
    commands = (site / "cli.html").read_text()
    assert all(
        f'id="{name}"' in commands for name in ("ask", "eval", "bench", "estimate", "serve", "models", "methods")
    )
    assert "--retention-ratio" in commands
    api = (site / "api.html").read_text()
    assert 'id="globalcom2.compress"' in api or 'id="globalcom2.hf.compression.compress"' in api
    assert "Fraction of the visual tokens that the language model reads" in api
    kept = (site / "kept.html").read_text()
    assert kept.lower().startswith("<!doctype html>")
    assert kept.count("data:image/png;base64") >= 2
    assert (site / "repository/benchmarks/results/mini-eval.json").read_bytes() == (
        ROOT / "benchmarks/results/mini-eval.json"
    ).read_bytes()


def test_words_can_be_searched(site):
    index = (site / "search" / "search_index.json").read_text()
    assert "retention_ratio" in index
    assert '"location":"errors.html' in index
