"""What pages say, without running it: links, how to install, which blocks are not run."""

import re
from pathlib import Path

import pytest
from docpages import LINKED, PAGES, ROOT, RUN, SHOWN, blocks_of, commands_of, name_of, prose_of

NOT_RUN = 6
"""At most so many blocks may be left out. Rather make a block that runs than raise this."""
NAME = r"globalcom2(?:\[[^\]]*\](?!\s*@)|(?![\[\w/.\-]|\s*@))"
INDEX = re.compile(rf"""\b(?:pip|pipx|uv)\s(?:[^`\n#]*\s)?install\b[^`\n#'"]*?['"\s]{NAME}""")
"""An installation of the package by its bare name, which no index has."""


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    """Relative links and pictures, with their anchors."""
    text = prose_of(page.read_text())
    wrong = []
    for link in re.findall(r"\]\(([^)\s]+)(?:\s\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"", text):
        link = "".join(link)
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        file = page.parent / target if target else page
        if not file.exists() or not file.resolve().is_relative_to(ROOT):
            wrong.append(f"{link}: no such file")
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            wrong.append(f"{link}: no such heading")
    assert not wrong, wrong


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs both make them where they agree."""
    found = set()
    for heading in re.findall(r"^#+ (.+?)\s*$", page.read_text(), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
        found.add(re.sub(r"[^\w\- ]", "", words).replace(" ", "-"))
    return found | set(re.findall(r"id=\"([^\"]+)\"", page.read_text()))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_they_are(page):
    """A block in no language, or in an unknown one, would be neither run nor counted."""
    wrong = [str(block) for block in blocks_of(page) if block.language not in (*RUN, *SHOWN)]
    assert not wrong, f"give these blocks one of the languages {RUN + SHOWN}: {wrong}"
    for block in blocks_of(page):
        if block.language == "console" and block.reason is None:
            assert commands_of(block), f"{block}: a console block's commands begin with `$ `"


def test_few_blocks_are_not_run():
    left_out = [(str(block), block.reason) for page in PAGES for block in blocks_of(page) if block.reason is not None]
    assert all(reason for _, reason in left_out)
    marks = sum(page.read_text().count("<!-- not run") for page in PAGES)
    assert marks == len(left_out), "a mark stands directly above its block"
    print(*left_out, sep="\n")
    assert len(left_out) <= NOT_RUN, left_out


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_no_page_installs_from_an_index(page):
    """The package is in no index."""
    assert not INDEX.findall(page.read_text())


def test_no_message_installs_from_an_index():
    wrong = [file.name for file in sorted((ROOT / "src").rglob("*.py")) if INDEX.search(file.read_text())]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install globalcom2", True),
        ("$ pip install 'globalcom2[vllm]'", True),
        ("uv pip install -U globalcom2", True),
        ("`pip install .`", False),
        ("pip install '.[web]' in a clone of globalcom2", False),
        ('pip install "globalcom2[vllm] @ git+<address>"', False),
        ("pip install -e examples/globalcom2-spread  # where globalcom2 is", False),
    ],
)
def test_what_counts_as_an_index(text, wrong):
    assert bool(INDEX.search(text)) == wrong
