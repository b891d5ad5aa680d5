"""`draw_page`: what was kept of images, as one file of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from globalcom2.drawing.page import kept_page
from globalcom2.drawing.panel import Panel
from globalcom2.drawing.pictures import Pictures
from globalcom2.errors import InputError
from globalcom2.hf.report import ImageReport, check_entry
from globalcom2.lab.images import to_rgb


def draw_page(
    image: Image.Image | Sequence[Image.Image | None] | None,
    entry: ImageReport | Sequence[ImageReport],
    path: str | Path | None = None,
    title: str | None = None,
    *,
    names: Sequence[str] | None = None,
    answers: Sequence[str | None] | None = None,
    table: Sequence[Mapping[str, object]] = (),
) -> str:
    """Draw what was kept as a page of HTML: pictures, heat maps, kept tokens and budgets, each to be shown or hidden.

    Args:
        image: The image that was given to the processor, in any of Pillow's modes; for several entries one for all of
            them, or one each. None: what the vision tower saw, if the call's pixels are still there, else maps alone.
        entry: Entries of a report, `compression.report[i]`: one, or several to lie side by side.
        path: Where to save the page; None saves nothing.
        title: Heading. Default: "What was kept".
        names: A heading for each entry.
        answers: What the model said, for each entry.
        table: Rows above the pictures, column by name, such as `{"setting": "all tokens", "answer": "7"}`.

    Returns:
        The page: one whole document that needs no other file and no network.

    Raises:
        InputError: Images, names or answers do not fit the entries in number, or what is no image or no entry.
        DataError: An image's values have no range of their own, see `open_image`.
    """
    several = isinstance(entry, Sequence)
    entries = [check_entry(own) for own in (entry if several else [entry])]  # type: ignore[union-attr]
    one = isinstance(image, str) or not isinstance(image, Sequence)
    images: list[Image.Image | None] = [image] * len(entries) if one else list(image)  # type: ignore[arg-type,list-item]
    for name, given in (("image", images), ("names", names), ("answers", answers)):
        if given is not None and len(given) != len(entries):
            raise InputError(f"{name} must have one item for each of {len(entries)} entries, got {len(given)}.")
    made: dict[tuple[int, int], Pictures | None] = {}
    panels = []
    for number, own in enumerate(entries):
        key = (id(images[number]), id(own.layout)) if images[number] is not None else (-1, number)
        if key not in made:
            made[key] = pictures_of(images[number], own)
        name = "" if names is None else names[number]
        answer = None if answers is None else answers[number]
        panels.append(Panel(own, made[key], name, None if answer is None else f"Answer: {answer}"))
    html = kept_page(panels, title="What was kept" if title is None else title, table=table)
    if path is not None:
        Path(path).write_text(html, encoding="utf-8")
    return html


def pictures_of(image: Image.Image | None, entry: ImageReport) -> Pictures | None:
    """What the views of an entry show: cut out of the image, else as the vision tower saw them, else None."""
    cut = None if image is None else Pictures.of_image(to_rgb(image), entry.layout)
    if entry.layout.grid == (0, 0):  # some processors pad an image without crops to a square, others stretch it
        return entry.pictures or cut
    return cut or entry.pictures
