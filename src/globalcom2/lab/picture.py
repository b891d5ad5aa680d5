"""Draws what a call kept of an image with matplotlib: a heat map of what commands, and crops with dropped tokens shaded.

The figure is laid out in inches: what stands beside the views gets a strip of its own, so that no label hides a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from globalcom2.drawing import marks
from globalcom2.drawing.panel import Panel, View, score_range
from globalcom2.errors import InputError
from globalcom2.hf.report import ImageReport, check_entry
from globalcom2.lab.sheets import pictures_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 130
MARGIN, LINE, SMALL = 0.15, 0.24, 0.2
"""Inches: around everything, per line of the title, per line of what is set small."""
NARROWEST = 2.1
"""Inches: width of a column, for the words above a narrow view."""
BLANK = 0.9
"""Grey of padding."""
CAPTION = (
    "Left: the thumbnail, coloured by its scores. Right: the crops as the model sees them. Above each crop: what it "
    "keeps of its tokens."
)
CAPTION_ALONE = "The thumbnail, coloured by its scores. The image has no crops."
CAPTION_GUIDED = (
    "Left: the guide, coloured by its scores. It commands and is not read. Right: the image in windows, as the model sees "
    "it. Above each window: what it keeps of its tokens."
)
CAPTION_WINDOWS = "The image in windows, as the model sees it. Above each window: what it keeps of its tokens."


def draw_picture(
    image: Image.Image | None, entry: ImageReport, path: str | Path | None = None, title: str | None = None
) -> Figure:
    """Draw one entry of a report over its image.

    Left, the thumbnail with its scores as a heat map. Right, the crops as the model saw them, each below the ratio that it
    kept. Kept tokens are outlined, dropped ones shaded and hatched. Of an image that keeps its resolution, the guide is on
    the left, which is not read, and windows play the crops.

    Args:
        image: The image that was given to the processor, in any of Pillow's modes. None: what the vision tower saw, see
            `draw_page`.
        entry: The image's entry in the report, `compression.report[i]`.
        path: Where to save the drawing; the ending decides the format. None saves nothing.
        title: Lines above the drawing, in any script; long ones are broken. Default: tokens before and after.

    Returns:
        The matplotlib figure.

    Raises:
        InputError: The entry is that of a video, or none, or the image is none.
        DataError: The image's values have no range of their own, see `open_image`.
    """
    if check_entry(entry).modality == "video":
        raise InputError(
            "entry must be of an image, got one of a video, which has no thumbnail to draw. draw_page draws its frames."
        )
    from globalcom2.lab.lettering import lettering  # noqa: PLC0415 - matplotlib is heavy, and only needed here

    panel = Panel(entry, pictures_of(image, entry))
    size = Sizes.of(panel)
    columns = int(size.width * 8.6)
    if title is None:
        share = entry.tokens_after / max(entry.tokens_before, 1)
        title = f"{entry.tokens_before:,} → {entry.tokens_after:,} visual tokens ({share:.1%})"
    heading, font = lettering(title, columns, bold=True)
    caption, small = lettering(_caption(panel), int(size.width * 14.5))
    top = MARGIN + LINE * (heading.count("\n") + 1) + 0.1
    bottom = MARGIN + SMALL * (caption.count("\n") + 1) + 0.36
    figure = _figure(size.width, top + size.height + bottom)
    height = figure.get_size_inches()[1]
    figure.suptitle(heading, x=MARGIN / size.width, y=1 - MARGIN / height, ha="left", va="top", size=12, **font)
    figure.text(MARGIN / size.width, MARGIN / height, caption, va="bottom", size=8.5, color="#444444", **small)
    _legend(figure, panel, MARGIN + SMALL * (caption.count("\n") + 1) + 0.03)
    _draw_commander(figure, panel, size, top)
    if size.crops:
        _draw_crops(figure, panel, size, top)
    if path is not None:
        figure.savefig(path, dpi=DPI)
    return figure


def _caption(panel: Panel) -> str:
    if panel.crop_kind == "window":
        return CAPTION_WINDOWS if panel.guide is None else CAPTION_GUIDED
    words = CAPTION if panel.grid[0] else CAPTION_ALONE
    return words.replace(", coloured by its scores", "") if panel.entry.thumbnail_scores is None else words


@dataclass(frozen=True)
class Sizes:
    """Where things lie, in inches. Heights leave out the title, the caption and the legend."""

    commander: tuple[float, float]
    """(height, width) of the thumbnail or the guide; zeros without either."""
    crops: tuple[float, float]
    """(height, width), strips for the budgets included; () for an image without crops."""
    token: float
    """Side of a crop's token."""
    strip: float
    """Height of the strip above a row of crops."""
    width: float
    height: float

    @classmethod
    def of(cls, panel: Panel) -> Sizes:
        """The sizes for one image: views keep their proportions, within bounds."""
        (rows, cols), commander = panel.grid, panel.commander
        height, width = (0, 0) if commander is None else commander.size
        side = 3.1 if rows else 4.6
        token = side / max(height, width, 1)
        small = (height * token, width * token)
        below = 0.75  # the heat map's scale
        if not rows:
            return cls(small, (), 0.0, 0.0, max(6.0, small[1] + 2 * MARGIN), SMALL + small[0] + below)  # type: ignore[arg-type]
        height, width = panel.entry.layout.token_grid
        token = min(7.2 / (cols * width), 5.4 / (rows * height))
        strip = 0.2 if width * token > 0.45 else 0.13
        crops = (rows * (height * token + strip), cols * width * token)
        both = _left_of_crops(small[1]) + max(crops[1], 2.3) + MARGIN
        return cls(small, crops, token, strip, max(6.4, both), SMALL + max(small[0] + below, crops[0]))


def _left_of_crops(commander: float) -> float:
    """Where the crops begin beside a thumbnail or guide of that width."""
    return MARGIN + (max(commander, NARROWEST) + 0.35 if commander else 0.0)


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, left: float, top: float, height: float, width: float) -> Axes:
    """Axes without ticks and frame at a place in inches, counted from the upper left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_axis_off()
    return axes


def _draw_commander(figure: Figure, panel: Panel, size: Sizes, top: float) -> None:
    """The thumbnail, or the guide in its place."""
    view = panel.commander
    if view is None:
        return None
    height, width = view.size
    axes = _axes(figure, MARGIN, top + SMALL, *size.commander)
    kept = "commands, is not read" if view.commands_only else f"keeps {view.kept} of {view.count} ({view.ratio:.0%})"
    axes.set_title(f"{view.name}: {kept}", fontsize=9.5, loc="left", pad=4)
    picture = None if panel.pictures is None else panel.pictures.thumbnail
    limits = score_range([view])
    veil = marks.VEIL if limits is None else 0.25
    _draw_view(axes, view, picture, (0, 0), veil, size.commander[1] / width)
    if limits is None or view.scores is None:
        return _frame(axes, width, height)
    colors = marks.heat(view.scores, *limits)
    axes.imshow(colors, extent=(0, width, height, 0), alpha=0.6, interpolation="bilinear", zorder=1.5)
    if view.commands_only:
        _draw_windows(axes, panel, view.size)
    _frame(axes, width, height)
    scale = _axes(figure, MARGIN, top + SMALL + size.commander[0] + 0.1, 0.11, max(size.commander[1], NARROWEST))
    scale.imshow(marks.heat(np.linspace(0, 1, 256)[None], 0, 1), aspect="auto", extent=(0, 1, 0, 1))
    for x, where, text in ((0, "left", f"{limits[0]:.3g}"), (0.5, "center", "score"), (1, "right", f"{limits[1]:.3g}")):
        scale.text(x, -0.35, text, ha=where, va="top", fontsize=8.5)
    return None


def _draw_windows(axes: Axes, panel: Panel, guide: tuple[int, int]) -> None:
    """Lines on a guide of that (height, width) where one window ends and the next begins."""
    layout = panel.entry.layout
    for n, (draw, limit) in enumerate(((axes.axhline, guide[0]), (axes.axvline, guide[1]))):
        for place in range(1, layout.grid[n]):
            draw(place * layout.token_grid[n] / layout.size[n] * limit, color="white", linewidth=1.2, zorder=4)


def _draw_crops(figure: Figure, panel: Panel, size: Sizes, top: float) -> None:
    """The crops in their grid, each below a strip with its budget."""
    views, (rows, cols) = panel.crops, panel.grid
    height, width = views[0].size
    strip, gap = size.strip / size.token, 0.03 / size.token
    axes = _axes(figure, _left_of_crops(size.commander[1]), top + SMALL, *size.crops)
    kept, count = sum(view.kept for view in views), sum(view.count for view in views)
    keeps = "keeps" if len(views) == 1 and panel.crop_kind == "window" else "keep"
    title = f"{panel.crops_name}: {keeps} {kept} of {count} ({kept / max(count, 1):.0%})"
    axes.set_title(title, fontsize=9.5, loc="left", pad=4)
    inch = width * size.token
    font = min(9.0, max(5.0, inch * 14))
    for number, view in enumerate(views):
        row, col = divmod(number, cols)
        x, y = col * width, row * (height + strip) + strip
        picture = None if panel.pictures is None else panel.pictures.crops[number]
        _draw_view(axes, view, picture, (x, y), marks.VEIL, size.token)
        text = f"{view.ratio:.0%}" + (f"  {view.kept}/{view.count}" if inch > 1.0 else "")
        axes.text(x + gap, y - 0.2 * strip, text, fontsize=font, va="baseline", ha="left")
    line: dict[str, Any] = {"color": "white", "linewidth": 2.2, "zorder": 4}
    for col in range(1, cols):
        axes.axvline(col * width, **line)
    _frame(axes, cols * width, rows * (height + strip))


def _frame(axes: Axes, width: float, height: float) -> None:
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)


def _draw_view(
    axes: Axes, view: View, picture: Image.Image | None, at: tuple[float, float], veil: float, inch: float
) -> None:
    """One view with its upper left corner `at` a place in tokens: picture, shade, hatching, outlines.

    A token is `inch` wide. Lines are thinner where tokens are small, so that they hide no picture.
    """
    from matplotlib.collections import LineCollection  # noqa: PLC0415

    (height, width), (x, y) = view.size, at
    side = 1 if picture is None else max(1, picture.width // width)
    blank = np.full((height, width, 3), 255, np.uint8)
    pixels = blank if picture is None else np.asarray(picture.resize((width * side, height * side)))
    axes.imshow(shaded(pixels, view, veil), extent=(x, x + width, y + height, y), interpolation="antialiased", zorder=1)
    if not view.dropped.any():
        return
    hatching = [((x + b, y + a + 1), (x + b + 1, y + a)) for a, b in zip(*np.nonzero(view.dropped), strict=True)]
    axes.add_collection(LineCollection(hatching, colors=marks.HATCH, linewidths=min(0.5, 3 * inch), zorder=2))
    lines = [((x + a, y + b), (x + c, y + d)) for a, b, c, d in marks.outline(view.keep)]
    thin = min(1.4, max(0.3, 7 * inch))
    for color, thickness in ((marks.HALO, 1.9 * thin), (marks.KEPT, thin)):
        axes.add_collection(
            LineCollection(lines, colors=color, linewidths=thickness, capstyle="projecting", zorder=3, clip_on=False)
        )


def shaded(pixels: NDArray, view: View, veil: float = marks.VEIL) -> NDArray:
    """A view's picture with a veil over dropped tokens and padding blank, uint8 (height, width, 3).

    Args:
        pixels: uint8 (height, width, 3), a whole number of pixels per token.
        view: Which tokens were kept, dropped, or are padding.
        veil: How much of the veil's colour a dropped token has, 0 to 1.
    """
    side = len(pixels) // view.size[0]
    block = np.ones((side, side), bool)
    dropped, padding = np.kron(view.dropped, block)[..., None], np.kron(~view.valid, block)[..., None]
    color = np.array(ImageColor.getrgb(marks.DROPPED), float)
    grey = pixels.mean(-1, keepdims=True)
    veiled = (1 - veil) * (0.5 * grey + 0.5 * pixels) + veil * color
    shown = np.where(padding, 255 * BLANK, np.where(dropped, veiled, pixels))
    return np.rint(shown).astype(np.uint8)


def _legend(figure: Figure, panel: Panel, bottom: float) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415

    entries = [
        Patch(facecolor="white", edgecolor=marks.KEPT, linewidth=1.8, label="kept: the language model reads it"),
        Patch(facecolor=marks.DROPPED, edgecolor=marks.HATCH, hatch="////", linewidth=0, label="dropped"),
    ]
    if any(not view.valid.all() for view in panel.crops):
        entries.append(Patch(facecolor=str(BLANK), edgecolor="none", label="padding, never a token"))
    width, height = figure.get_size_inches()
    figure.legend(
        handles=entries, loc="lower left", bbox_to_anchor=(MARGIN / width, bottom / height), ncols=3, fontsize=8.5,
        frameon=False, borderpad=0, borderaxespad=0, handlelength=1.6, columnspacing=1.6,
    )  # fmt: skip
