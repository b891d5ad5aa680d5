"""Draws what a call kept of an image: the thumbnail's heat map, and the crops with dropped tokens greyed out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from globalcom2.errors import InputError
from globalcom2.hf.report import ImageReport
from globalcom2.lab.images import to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREY = 0.22  # what is left of a dropped token's contrast


def draw_picture(
    image: Image.Image, entry: ImageReport, path: str | Path | None = None, title: str | None = None
) -> Figure:
    """Draw one entry of a report over its image.

    Left, the thumbnail: its scores as a heat map, dropped tokens greyed. Right, the crops as the model saw them, each
    with the ratio it kept in its corner, dropped tokens greyed.

    Args:
        image: The image that was given to the processor, in any of Pillow's modes.
        entry: The image's entry in the report, `compression.report[i]`.
        path: Where to save the drawing; the ending decides the format. None saves nothing.
        title: A line above the drawing. Default: tokens before and after.

    Returns:
        The matplotlib figure.

    Raises:
        InputError: The entry is that of a video.
        DataError: The image's values have no range of their own, see `open_image`.
    """
    if entry.thumbnail_ratio is None:
        raise InputError(
            "entry must be of an image, got one of a video, which has no thumbnail to draw. Its frames are rows of "
            "entry.keep.crops."
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - heavy, and only needed here
    from matplotlib.figure import Figure  # noqa: PLC0415

    image = to_rgb(image)
    (rows, cols), (height, width) = entry.grid, entry.layout.token_grid
    wide = (cols * width) / max(rows * height, 1) if rows else 1.0
    height, width = entry.layout.thumbnail_grid
    figure = Figure(figsize=(4.6 + 4.6 * min(max(wide, 0.5), 2.0), 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        1, 2 if rows else 1, width_ratios=[1, min(max(wide, 0.5), 2.0)] if rows else [1], squeeze=False
    )[0]
    kept = (
        f"{entry.tokens_before} → {entry.tokens_after} visual tokens ({entry.tokens_after / entry.tokens_before:.1%})"
    )
    figure.suptitle(title or kept, fontsize=12, fontweight="bold")

    thumbnail = entry.keep.thumbnail.cpu().view(height, width).numpy()
    scale = max(1, 448 // max(height, width))
    square = np.asarray(image.resize((width * scale, height * scale), Image.Resampling.BICUBIC))
    panels[0].imshow(_greyed(square, np.kron(thumbnail, np.ones((scale, scale), bool))))
    heat = panels[0].imshow(
        entry.thumbnail_map.numpy(),
        cmap="inferno",
        alpha=0.45,
        extent=(0, width * scale, height * scale, 0),
        interpolation="bilinear",
    )
    figure.colorbar(heat, ax=panels[0], orientation="horizontal", fraction=0.05, pad=0.02, label="score")
    panels[0].set_title(f"thumbnail: keeps {entry.thumbnail_ratio:.0%}", fontsize=10)
    if rows:
        _draw_crops(panels[1], image, entry, scale)
    for panel in panels:
        panel.set_xticks([])
        panel.set_yticks([])
    if path is not None:
        figure.savefig(path, dpi=110)
    return figure


def _draw_crops(panel: object, image: Image.Image, entry: ImageReport, scale: int) -> None:
    """Draw the image as the crops' grid covers it, `scale` px per token, each crop with the ratio that it kept."""
    (rows, cols), (height, width) = entry.grid, entry.layout.token_grid

    def stitch(mask: object) -> np.ndarray:
        tiles = np.asarray(mask).reshape(rows, cols, height, width)
        return tiles.transpose(0, 2, 1, 3).reshape(rows * height, cols * width)  # type: ignore[no-any-return]

    valid, keep = stitch(entry.layout.valid.numpy()), stitch(entry.keep.crops.cpu().numpy())
    ys, xs = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
    top, bottom, left, right = ys[0], ys[-1] + 1, xs[0], xs[-1] + 1
    canvas = np.full((rows * height * scale, cols * width * scale, 3), 255, np.uint8)
    inside = image.resize(((right - left) * scale, (bottom - top) * scale), Image.Resampling.BICUBIC)
    canvas[top * scale : bottom * scale, left * scale : right * scale] = np.asarray(inside)
    panel.imshow(_greyed(canvas, np.kron(keep, np.ones((scale, scale), bool))))  # type: ignore[attr-defined]
    for crop, ratio in enumerate(entry.crop_ratios):
        row, col = divmod(crop, cols)
        x, y = col * width * scale, row * height * scale
        panel.text(  # type: ignore[attr-defined]
            x + 0.04 * width * scale, y + 0.04 * height * scale, f"{ratio:.0%}", va="top", fontsize=11, fontweight="bold",
            color="white", bbox={"facecolor": "black", "alpha": 0.75, "pad": 2.5, "edgecolor": "none"},
        )  # fmt: skip
    for row in range(1, rows):
        panel.axhline(row * height * scale, color="cyan", linewidth=1.2)  # type: ignore[attr-defined]
    for col in range(1, cols):
        panel.axvline(col * width * scale, color="cyan", linewidth=1.2)  # type: ignore[attr-defined]
    panel.set_title(f"crops ({rows} x {cols}): what each of them keeps", fontsize=10)  # type: ignore[attr-defined]


def _greyed(pixels: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """`pixels` (height, width, 3), pale and colourless where `keep` is False."""
    grey = pixels.mean(-1, keepdims=True).repeat(3, -1) * GREY + 255 * (1 - GREY) * 0.8
    return np.where(keep[..., None], pixels, grey).astype(np.uint8)
