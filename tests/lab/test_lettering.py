"""Text that matplotlib draws: broken into lines, in a font that has its characters."""

import pytest
from matplotlib.ft2font import FT2Font

from globalcom2.lab import lettering as module
from globalcom2.lab.lettering import MISSING, lettering, wrapped


def test_lines_break_at_spaces():
    assert wrapped("one two three four", 9) == ["one two", "three", "four"]
    assert wrapped("", 9) == [""]
    assert wrapped("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert wrapped("a bcdefghij", 4) == ["a", "bcde", "fghi", "j"]


def test_wide_characters_count_as_two():
    assert wrapped("请问发票号码", 6) == ["请问发", "票号码"]
    assert wrapped("请问发票号码", 7) == ["请问发", "票号码"]


def test_own_line_breaks_stay_and_many_lines_end_in_dots():
    assert lettering("a\nb", 20)[0] == "a\nb"
    lines = lettering("word " * 200, 20)[0].split("\n")
    assert len(lines) == module.MOST_LINES
    assert lines[-1].endswith("…")
    assert max(map(len, lines)) <= 20


def test_a_font_that_has_the_character_is_used():
    """Characters that STIX has and the base font lacks, by their own tables."""
    paths = module._paths(module.NORMAL)
    only = set(FT2Font(paths["STIXGeneral"]).get_charmap()) - set(FT2Font(paths[module.BASE]).get_charmap())
    character = next(chr(c) for c in sorted(only) if chr(c).isprintable())
    text, how = lettering(f"a {character}", 20, bold=True)
    assert text == f"a {character}"
    families = how["fontproperties"].get_family()
    assert families[0] == module.BASE
    assert any(ord(character) in FT2Font(paths[name]).get_charmap() for name in families[1:])


def test_characters_without_a_font_become_squares(monkeypatch):
    every = module._paths(module.NORMAL)
    monkeypatch.setattr(module, "_paths", lambda weight: {module.BASE: every[module.BASE]})
    module._fonts.cache_clear()
    try:
        assert lettering("a请b", 20)[0] == f"a{MISSING}b"
    finally:
        module._fonts.cache_clear()


@pytest.mark.parametrize("text", ["a\u200db", "a\ufe0fb", "a\u202eb"])
def test_what_only_steers_others_is_left_out(text):
    assert lettering(text, 20)[0] == "ab"
