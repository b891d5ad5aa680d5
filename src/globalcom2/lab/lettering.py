"""Text in drawings of matplotlib: any script for which a font is installed, no mathematics, and lines that fit."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Any

from matplotlib import font_manager
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font

BASE = "DejaVu Sans"
"""Comes with matplotlib."""
MISSING = "\u25a1"
"""Stands where no installed font has the character."""
PLACEHOLDER_FONTS = ("Last Resort",)
"""They have a box for every character there is."""
MOST_LINES = 6
NORMAL, BOLD = 400, 700


def lettering(text: str, columns: int, *, bold: bool = False) -> tuple[str, dict[str, Any]]:
    """Text that can be drawn without a warning, with the arguments that matplotlib's text functions draw it with.

    Args:
        text: Any text. Its line breaks stay.
        columns: Longest line, in narrow characters; Chinese, Japanese, Korean and emoji count as two.
        bold: Whether it is set in bold.

    Returns:
        The text, broken into lines of at most `columns` and at most `MOST_LINES` of them, and keyword arguments. Dollar
        signs mean dollars. Characters that no installed font has are replaced by squares.
    """
    text = "".join(_plain(character) for character in text)
    fonts = _fonts(frozenset(text))
    known = set().union(*(_characters(_paths(NORMAL)[font]) for font in fonts))
    text = "".join(c if ord(c) in known or c == "\n" else MISSING for c in text)
    lines = [line for paragraph in text.split("\n") for line in wrapped(paragraph, columns)]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES - 1], lines[MOST_LINES - 1][: columns - 1] + "…"]
    # A font without a bold cut would be searched for with a warning.
    weight = BOLD if bold and all(font in _paths(BOLD) for font in fonts) else NORMAL
    return "\n".join(lines), {
        "fontproperties": FontProperties(family=list(fonts), weight=weight),
        "parse_math": False,
    }


def wrapped(text: str, columns: int) -> list[str]:
    """Break a line at spaces, and within words that are longer than a line; wide characters count as two."""
    lines, used = [""], 0
    for piece in re.findall(r"\s*[^\s]+|\s+$", text):
        length = width(piece)
        if used and used + length > columns:
            lines.append("")
            piece, used = piece.lstrip(), 0
            length = width(piece)
        for character in piece if length > columns or used + length > columns else [piece]:
            if used and used + width(character) > columns:
                lines.append("")
                used = 0
            lines[-1] += character
            used += width(character)
    return [line.rstrip() for line in lines]


def width(text: str) -> int:
    """Columns that a text takes."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)


def _plain(character: str) -> str:
    """Nothing for what only joins or varies others, a space for what steers terminals."""
    if character == "\n":
        return character
    category = unicodedata.category(character)
    if category == "Cf" or 0xFE00 <= ord(character) <= 0xFE0F:
        return ""
    return " " if category in ("Cc", "Zl", "Zp", "Cs") else character


@lru_cache(maxsize=64)
def _fonts(characters: frozenset[str]) -> tuple[str, ...]:
    """The base font, and one more for as long as one has a character that those before lack."""
    chosen, paths = [BASE], _paths(NORMAL)
    missing = {ord(c) for c in characters if c != "\n"} - _characters(paths[BASE])
    for name in sorted(paths, key=lambda name: ("Sans" not in name, "Mono" in name, name)):
        if not missing:
            break
        if found := missing & _characters(paths[name]):
            chosen.append(name)
            missing -= found
    return tuple(chosen)


@lru_cache(maxsize=2)
def _paths(weight: int) -> dict[str, str]:
    """Files of the upright fonts of one weight that matplotlib knows, by name."""
    return {
        font.name: font.fname
        for font in font_manager.fontManager.ttflist
        if font.weight == weight and font.style == "normal" and not font.name.startswith(PLACEHOLDER_FONTS)
    }


@lru_cache(maxsize=1024)
def _characters(path: str) -> frozenset[int]:
    """What a font can draw: nothing if it consists of pictures, as fonts with coloured emoji do."""
    try:
        font = FT2Font(path)
    except (RuntimeError, OSError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()
