"""One page of HTML that shows what was kept: pictures, heat maps, kept tokens, budgets. Needs no network and no server."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from importlib import resources
from string import Template
from typing import Any

from globalcom2._version import __version__
from globalcom2.drawing import marks
from globalcom2.drawing.cards import card, picture_rules
from globalcom2.drawing.panel import Panel, View

LAYERS = {
    "picture": ("Picture", True),
    "thumbnail-heat": ("Heat map of the $commander's scores", True),
    "crop-heat": ("Heat map of the ${crop}s' scores", False),
    "kept": ("Outline of kept tokens", True),
    "dropped": ("Shade over dropped tokens", True),
    "budgets": ("Borders and budgets of ${crop}s", True),
}
"""What can be shown and hidden: the words beside the box, and whether it is ticked at first."""
NUMBER = re.compile(r"-|-?[0-9][0-9.,]*\s?%?")
DIGITS = 4
"""Significant digits of a score."""


def kept_page(
    panels: Sequence[Panel], *, title: str = "What was kept", table: Sequence[Mapping[str, object]] = (), note: str = ""
) -> str:
    """A page that shows what was kept of one image, of several, or of one in several settings.

    Args:
        panels: What to show, each in a card of its own. May be empty.
        title: Heading; line breaks stay.
        table: Rows above the cards, column by name: answers, tokens, seconds. Numbers are set flush right.
        note: A line below the cards.

    Returns:
        A whole HTML document. All that it shows lies inside it, texts are escaped, and it forbids the browser every
        request. Several may stand side by side, since ids are drawn anew for each.
    """
    uid = f"g2-{uuid.uuid4().hex[:12]}"
    heated = [_heated(panel) for panel in panels]
    absent = {"thumbnail-heat"} if not any(thumbnail for thumbnail, _ in heated) else set()
    absent |= {"crop-heat"} if not any(crops for _, crops in heated) else set()
    heat = len(absent) < 2
    absent |= {"picture"} if all(panel.pictures is None for panel in panels) else set()
    words = _words(panels)
    page = _template("page.html").substitute(
        version=escape(__version__),
        uid=uid,
        title=escape(title),
        style=_style() + picture_rules(panels, uid),
        table=_table(table),
        layers="\n".join(_checkbox(name, words) for name in LAYERS if name not in absent),
        crop=words["crop"],
        legend=_legend(panels, heat=heat),
        cards="\n".join(card(panel, number, panels) for number, panel in enumerate(panels)),
        note=f'<p class="note">{escape(note)}</p>' if note else "",
        numbers=_numbers(panels),
        script=_text("page.js"),
    )
    return page.encode(errors="replace").decode()  # half a character, as of a command line's bytes, cannot be saved


def in_frame(html: str, height: int = 640) -> str:
    """A page of `kept_page` in a frame, to be put into another page: a notebook, a gradio block.

    Args:
        html: The page.
        height: Of the frame, in px. What does not fit is scrolled; a reader can pull the frame's corner.

    Returns:
        An `<iframe>` whose content can neither reach the page around it nor the network.
    """
    return (
        f'<iframe srcdoc="{escape(html)}" sandbox="allow-scripts" title="What was kept" loading="lazy" '
        f'style="width:100%;height:{int(height)}px;border:0;resize:vertical;overflow:auto"></iframe>'
    )


def _heated(panel: Panel) -> tuple[bool, bool]:
    """Whether there are scores of the thumbnail or guide and of the crops to draw."""
    commander = panel.commander
    return commander is not None and commander.scores is not None, any(view.scores is not None for view in panel.crops)


def _words(panels: Sequence[Panel]) -> dict[str, str]:
    """What commands on this page, and what it commands."""
    kinds = {panel.crop_kind for panel in panels}
    if "window" not in kinds:
        return {"commander": "thumbnail", "crop": "crop"}
    if "crop" not in kinds:
        return {"commander": "guide", "crop": "window"}
    return {"commander": "thumbnail's or guide", "crop": "crop"}


@cache
def _text(name: str) -> str:
    return resources.files("globalcom2.drawing").joinpath(name).read_text(encoding="utf-8")


@cache
def _template(name: str) -> Template:
    return Template(_text(name))


def _style() -> str:
    heat = ", ".join(f"rgb{color}" for color in marks.HEAT)
    return _template("page.css").substitute(
        kept=marks.KEPT,
        halo=marks.HALO,
        dropped=marks.DROPPED,
        veil=marks.VEIL,
        hatch=marks.HATCH,
        heat=heat,
    )


def _checkbox(name: str, words: Mapping[str, str]) -> str:
    text, ticked = LAYERS[name]
    shown = escape(Template(text).substitute(words))
    return f'<label><input type="checkbox" class="show-{name}"{" checked" if ticked else ""}> {shown}</label>'


def _legend(panels: Sequence[Panel], *, heat: bool) -> str:
    parts = [
        '<span><i class="swatch k"></i> kept: the language model reads it</span>',
        '<span><i class="swatch d"></i> dropped</span>',
    ]
    if any(not view.valid.all() for panel in panels for view in panel.crops):
        parts.append('<span><i class="swatch p"></i> padding, never a token</span>')
    if heat:
        parts.append('<span>score: low <i class="swatch h"></i> high</span>')
    return "\n".join(parts)


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {c for c in columns if all(NUMBER.fullmatch(_shown(row.get(c, "-"))) for row in rows)}

    def cell(row: Mapping[str, object], column: str) -> str:
        text = escape(_shown(row.get(column, "")))
        if column == columns[0]:
            return f'<th scope="row">{text}</th>'
        return f'<td class="number">{text}</td>' if column in numeric else f"<td>{text}</td>"

    head = "".join(
        f'<th scope="col"{" class=number" if c in numeric and c != columns[0] else ""}>{escape(c)}</th>'
        for c in columns
    )
    body = "\n".join(f"<tr>{''.join(cell(row, column) for column in columns)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.{DIGITS - 1}g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _numbers(panels: Sequence[Panel]) -> str:
    """What the script reads, as JSON that cannot end its script element."""
    every = []
    for panel in panels:
        commander = panel.commander
        views = [] if commander is None else [_view_numbers(commander, commander.name)]
        every.append(views + [_view_numbers(view, panel.crop_kind) for view in panel.crops])
    return json.dumps(every, separators=(",", ":")).replace("<", "\\u003c")


def _view_numbers(view: View, kind: str) -> dict[str, Any]:
    height, width = view.keep.shape
    flags = zip(view.keep.flat, view.valid.flat, strict=True)
    scores = None if view.scores is None else [_number(score) for score in view.scores.flat]
    return {
        "name": view.name,
        "kind": kind,
        "height": height,
        "width": width,
        "state": "g" * view.count if view.commands_only else _state(flags),
        "scores": scores,
        "kept": view.kept,
        "count": view.count,
    }


def _state(flags: Iterable[tuple[bool, bool]]) -> str:
    """A letter per token, from whether it was kept and whether it is valid."""
    return "".join(("k" if keep else "d") if valid else "p" for keep, valid in flags)


def _number(score: float) -> float | None:
    """Rounded; None, since JSON has no such number, for what may stand in padding: NaN and infinity."""
    return float(f"{score:.{DIGITS}g}") if math.isfinite(score) else None
