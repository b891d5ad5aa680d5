"""Pages that repeat what is written elsewhere say the same."""

import ast
import functools
import re

import pytest
from docpages import ROOT, blocks_of

import globalcom2
from globalcom2.cli.methods_page import methods_page

DOCS = ROOT / "docs"
COPIED = {"selector": "pyproject.toml *.py tests/*.py", "family": "pyproject.toml *.py tests/*.py"}


def test_the_methods_page_is_what_the_command_prints():
    assert (DOCS / "methods.md").read_text() == methods_page() + "\n", "globalcom2 methods --markdown > docs/methods.md"


@pytest.mark.parametrize("example", COPIED)
def test_the_packages_to_copy_are_those_in_examples(example):
    folder = ROOT / "examples" / example
    files = [file for pattern in COPIED[example].split() for file in folder.glob(pattern)]
    assert len(files) >= 4
    shown = {block.text.rstrip() for block in blocks_of(DOCS / "extending.md")}
    missing = [str(file) for file in files if file.read_text().rstrip() not in shown]
    assert not missing, f"docs/extending.md shows other text than {missing}"


def quoted_messages():
    """Messages that docs/errors.md begins an entry with."""
    lines = re.findall(r"^- (`.+`)$", (DOCS / "errors.md").read_text(), re.MULTILINE)
    return [message for line in lines for message in re.findall(r"`([^`]+)`", line)]


@functools.cache
def messages_in_the_source():
    """Every text in the source; what is filled in stands as `...`."""
    found = []
    for file in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "..." for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


@pytest.mark.parametrize("message", quoted_messages())
def test_messages_that_the_page_of_errors_quotes_exist(message):
    pattern = re.escape(message).replace(re.escape("..."), ".+?")
    assert any(re.search(pattern, text) for text in messages_in_the_source()), message


def test_the_page_of_errors_has_enough():
    assert len(quoted_messages()) >= 40


def test_the_reference_has_every_public_name():
    shown = set(re.findall(r"^::: globalcom2\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert shown == {name for name in globalcom2.__all__ if name != "__version__"}


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"([\w-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert listed == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


def test_the_site_asks_no_other_server_for_anything():
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    for style in DOCS.glob("*.css"):
        assert not re.search(r"url\(|@import", style.read_text()), style
