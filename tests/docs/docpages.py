"""The pages that people read, and the blocks of code in them."""

import re
import shlex
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""Pages whose blocks are run."""
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "examples").rglob("*.md"))]
"""Pages whose links are followed."""
RUN = ("python", "console", "bash")
SHOWN = ("text", "json", "jsonl", "toml", "yaml", "nginx", "html")
"""Languages of blocks that are run, and of those that are only shown."""

BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n\n?)?"
    r"(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```[ ]*$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run; None for one that is."""

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}"


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """All fenced blocks of a page, in order."""
    text = page.read_text() if text is None else text
    return [
        Block(
            name_of(page),
            text.count("\n", 0, found.start("language")) + 1,
            found["language"],
            textwrap.dedent(found["text"]),
            found["reason"],
        )
        for found in BLOCK.finditer(text)
    ]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix() if page.is_relative_to(ROOT) else page.name


def prose_of(text: str) -> str:
    """A page without its fenced blocks and inline code, lines kept."""
    text = re.sub(r"^([ ]*)```.*?^\1```", lambda found: "\n" * found[0].count("\n"), text, flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`", "", text)


def commands_of(block: Block) -> list[list[str]]:
    """The commands of a console block, as words; what they print is left out.

    Comments, `> file` and variables before a command are taken off, and `a && b` is two commands.
    """
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    commands: list[list[str]] = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while "&&" in words:
            at = words.index("&&")
            commands.append(words[:at])
            words = words[at + 1 :]
        commands.append(words)
    return [trimmed(words) for words in commands if words]


def trimmed(words: list[str]) -> list[str]:
    while words and re.fullmatch(r"[A-Z_0-9]+=.*", words[0], re.DOTALL):
        words = words[1:]
    return words[: words.index(">")] if ">" in words else words
