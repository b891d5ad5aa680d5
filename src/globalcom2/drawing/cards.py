"""The card of one entry on the page: its heading, its thumbnail or guide, and its crops."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from globalcom2.drawing import marks
from globalcom2.drawing.panel import Panel, View, score_range, share

QUALITY = 88
"""Of JPEG, for pictures."""


def picture_rules(panels: Sequence[Panel], uid: str) -> str:
    """CSS rules with the pictures, each once however many cards show it."""
    rules = []
    for number, panel in enumerate(panels):
        pictures = panel.pictures
        if pictures is None or _first(panels, panel) != number:
            continue
        if pictures.thumbnail is not None:
            url = _url(pictures.thumbnail, "JPEG")
            rules.append(f"#{uid} .picture-{number}-0 {{ background: 0 0 / 100% 100% url({url}); }}")
        if pictures.crops:
            rows, cols = panel.grid
            url = _url(pictures.sheet(panel.grid), "JPEG")
            rules.append(f"#{uid} .picture-{number}-1 {{ background: 0 0 / {cols * 100}% {rows * 100}% url({url}); }}")
    return "\n" + "\n".join(rules)


@dataclass(frozen=True)
class Frame:
    """What lies below a view's marks, and its size."""

    number: int
    """The panel's number on the page."""
    first: int
    """The number of the panel whose rules have the pictures."""
    pictured: bool
    size: tuple[int, int]
    """(height, width) of a view, in px or in tokens."""
    limits: tuple[float, float] | None
    """Scores that are drawn darkest and lightest."""

    def picture(self, kind: int, position: str = "") -> str:
        """The layer with the picture of a thumbnail or guide (0) or a crop (1)."""
        style = f' style="background-position:{position}"' if position else ""
        return f'<div class="pic picture-{self.first}-{kind}"{style}></div>' if self.pictured else ""


def card(panel: Panel, number: int, panels: Sequence[Panel]) -> str:
    """The card of one of the page's panels."""
    entry, first = panel.entry, _first(panels, panel)
    counts = (
        f"{entry.tokens_before:,} → {entry.tokens_after:,} visual tokens "
        f"({entry.tokens_after / max(entry.tokens_before, 1):.1%})"
    ) + (", newlines included" if entry.layout.lines is not None else "")
    head = f"<h2>{escape(panel.name)}</h2>" if panel.name else ""
    head += f'<p class="counts">{counts}</p>'
    if panel.answer is not None:
        head += f'<p class="answer">{escape(panel.answer)}</p>'
    stages = _commander(panel, number, first) + _crops(panel, number, first)
    return f'<section class="card">{head}<div class="stages">{stages}</div></section>'


def _commander(panel: Panel, number: int, first: int) -> str:
    """The stage of the thumbnail, or of the guide, if there is one."""
    view, picture = panel.commander, None if panel.pictures is None else panel.pictures.thumbnail
    if view is None:
        return ""
    size = view.size if picture is None else (picture.height, picture.width)
    frame = Frame(number, first, picture is not None, size, score_range([view]))
    caption = f"<b>{view.name.capitalize()}</b> keeps {view.kept:,} of {view.count:,} tokens ({view.ratio:.0%})"
    if view.commands_only:
        caption = f"<b>{view.name.capitalize()}</b> commands, is not read"
    return _stage("thumbnail", view.name, caption, [_view(view, 0, frame, frame.picture(0))], (1, 1), size)


def _crops(panel: Panel, number: int, first: int) -> str:
    """The stage of all crops, or of all frames, if there are any."""
    crops, grid = panel.crops, panel.grid
    if not crops:
        return ""
    picture = None if panel.pictures is None else panel.pictures.crops[0]
    size = crops[0].size if picture is None else (picture.height, picture.width)
    frame = Frame(number, first, picture is not None, size, score_range(crops))
    before = int(panel.commander is not None)
    bodies = [
        _budget(view) + _view(view, before + place, frame, frame.picture(1, _position(grid, place)))
        for place, view in enumerate(crops)
    ]
    kept, count = sum(view.kept for view in crops), sum(view.count for view in crops)
    keeps = "keeps" if len(crops) == 1 and panel.crop_kind == "window" else "keep"
    caption = f"<b>{panel.crops_name}</b> {keeps} {kept:,} of {count:,} tokens ({share(kept, count)})"
    name = "windows" if panel.crop_kind == "window" else "crops"
    return _stage("crops", name, caption, bodies, grid, size)


def _stage(kind: str, name: str, caption: str, bodies: list[str], grid: tuple[int, int], size: tuple[int, int]) -> str:
    (rows, cols), (height, width) = grid, size
    aspect = cols * width / max(rows * height, 1)
    places = "".join(f'<div class="place">{body}</div>' for body in bodies)
    return (
        f'<figure class="{kind}"><figcaption>{caption}</figcaption>'
        f'<div class="stage" tabindex="0" role="application" data-cols="{cols}" '
        f'aria-label="{name}; arrow keys move from token to token" '
        f'style="--aspect:{aspect:.4f};grid-template-columns:repeat({cols},minmax(0,1fr))">{places}</div></figure>'
    )


def _budget(view: View) -> str:
    return f'<div class="budget">{view.ratio:.0%} <i>{view.kept}/{view.count}</i></div>'


def _view(view: View, place: int, frame: Frame, picture: str) -> str:
    """One view with all its layers."""
    height, width = view.size
    heat = ""
    if view.scores is not None and frame.limits is not None:
        colors = Image.fromarray(marks.heat(view.scores, *frame.limits))
        heat = f'<img class="heat" alt="" src="{_url(colors, "PNG")}">'
    words = f"{view.name}: {view.kept} of {view.count} tokens kept, {view.ratio:.0%}"
    words = f"{view.name}: commands, is not read" if view.commands_only else words
    return (
        f'<div class="view" role="img" aria-label="{escape(words)}" data-panel="{frame.number}" data-view="{place}" '
        f'style="aspect-ratio:{frame.size[1]}/{frame.size[0]};--tokens:{width}">{picture}{heat}'
        f'<svg class="marks" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f"{_paths(view)}</svg></div>"
    )


def _paths(view: View) -> str:
    """Padding, the shade over dropped tokens, and lines around kept ones; no line where nothing was dropped."""
    paths = [] if view.valid.all() else [f'<path class="p" d="{_area(~view.valid)}"/>']
    if view.dropped.any():
        lines = "".join(f"M{a} {b}L{c} {d}" for a, b, c, d in marks.outline(view.keep))
        paths += [f'<path class="d" d="{_area(view.dropped)}"/>', f'<path class="d h" d="{_hatch(view.dropped)}"/>']
        paths += [f'<path class="k halo" d="{lines}"/>', f'<path class="k" d="{lines}"/>']
    return "".join(paths)


def _position(grid: tuple[int, int], place: int) -> str:
    """Where a crop lies on the sheet of all crops, for CSS."""
    rows, cols = grid
    row, col = divmod(place, cols)
    across, down = (100 * n / max(of - 1, 1) for n, of in ((col, cols), (row, rows)))
    return f"{across:.4f}% {down:.4f}%"


def _area(mask: NDArray) -> str:
    return "".join(f"M{a} {y}H{b}V{y + 1}H{a}z" for y, a, b in marks.runs(np.asarray(mask)))


def _hatch(mask: NDArray) -> str:
    """A line across each token, from its lower left corner to its upper right one."""
    return "".join(f"M{a} {y + 1}" + "l1-1m0 1" * (b - a) for y, a, b in marks.runs(np.asarray(mask)))


def _first(panels: Sequence[Panel], panel: Panel) -> int:
    """The number of the first panel that shows the same pictures."""
    return next(i for i, other in enumerate(panels) if other.pictures is panel.pictures)


def _url(image: Image.Image, form: str) -> str:
    """An image inside a text."""
    stream = io.BytesIO()
    image.save(stream, form, **({"quality": QUALITY} if form == "JPEG" else {"optimize": True}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
