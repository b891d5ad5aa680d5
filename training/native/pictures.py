"""Pictures of any number of tokens, from the first mini's parts: tags over backgrounds, and documents."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from pathlib import Path

from PIL import Image

import scenes
from native.build import MOST, TOKEN, WINDOW
from scenes import (
    GRID_WEIGHTS,
    GRIDS,
    MOST_LINES,
    MOST_TAGS,
    TRAINING_PHOTOS,
    TUNING_PHOTOS,
    VIEW,
    Line,
    Scene,
    Tag,
    background,
    draw_clutter,
    draw_document,
    draw_tags,
    place_lines,
    place_tags,
    recompressed,
)

# scikit-learn is not needed: what a picture shows must not depend on what is installed.
PHOTOS = tuple(name for name in TRAINING_PHOTOS if not name.startswith("sklearn"))
MOST_THINGS = 24  # tags in a dense picture
Size = tuple[int, int]  # height and width in tokens


def file_of(folder: Path, name: str) -> Path:
    return folder / f"{name.replace(':', '-')}.png"


def save_photos(folder: Path) -> None:
    """All photographs, for a machine that may have others installed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*PHOTOS, *TUNING_PHOTOS):
        scenes.photo(name).save(file_of(folder, name))


def prepare_photos(folder: Path | None = None) -> None:
    """Reads all photographs, from a folder that `save_photos` wrote or else from installed packages.

    Raises:
        FileNotFoundError: One is missing.
    """
    if folder is not None:
        scenes.photo = cache(lambda name: Image.open(file_of(folder, name)).convert("RGB"))
    for name in (*PHOTOS, *TUNING_PHOTOS):
        scenes.photo(name)


def tower_size(rng: random.Random) -> Size:
    """Of a picture for the tower alone: mostly small, because steps then hold more of them."""
    least, most = rng.choices(((6, 14), (7, 21), (14, MOST)), (0.75, 0.2, 0.05))[0]
    return rng.randint(least, most), rng.randint(least, most)


def decoder_size(rng: random.Random) -> Size:
    """Of a picture that is asked about: as often one of the evaluation set's sizes as any other."""
    if rng.random() < 0.5:
        rows, cols = rng.choices(GRIDS, GRID_WEIGHTS)[0]
        return WINDOW * rows, WINDOW * cols
    least, most = rng.choices(((7, 15), (7, 21), (12, MOST)), (0.75, 0.2, 0.05))[0]
    return rng.randint(least, most), rng.randint(least, most)


def crowded(seed: str, size: Size, documents: float = 0.3) -> Scene:
    """As many things as fit, some of them cut by the border: for the tower."""
    rng = random.Random(seed)
    height, width = (side * TOKEN for side in size)
    if rng.random() < documents:
        return cut_page(rng, width, height)
    most = max(2, min(MOST_THINGS, round(8 * width * height / VIEW**2)))
    tags = place_tags(rng, width, height, rng.randint(1, most), clustered=False, clear_of_cuts=False)
    if rng.random() < 0.3:
        dx, dy = rng.uniform(-20, 20), rng.uniform(-20, 20)
        tags = [replace(tag, x=tag.x + dx, y=tag.y + dy) for tag in tags]
    return tagged(rng, width, height, tags, PHOTOS)


def usual(seed: str, size: Size, documents: float = 0.25, photos: tuple[str, ...] = PHOTOS) -> Scene:
    """What questions are asked about: up to seven tags, or a document, whole."""
    rng = random.Random(seed)
    height, width = (side * TOKEN for side in size)
    if min(width, height) >= VIEW and rng.random() < documents:
        return whole_page(rng, width, height)
    tags: list[Tag] = []
    while not tags:
        many = rng.randint(1, MOST_TAGS)
        tags = place_tags(rng, width, height, many, clustered=rng.random() < 0.5, clear_of_cuts=False)
    return tagged(rng, width, height, tags, photos)


def tagged(rng: random.Random, width: int, height: int, tags: list[Tag], photos: tuple[str, ...]) -> Scene:
    image = background(rng, width, height, photos)
    draw_clutter(rng, image, tags)
    return Scene(recompressed(rng, draw_tags(image, tags)), tags=tags)


def lines_on(rng: random.Random, width: int, height: int) -> list[Line]:
    return place_lines(rng, width, height, rng.randint(3, MOST_LINES))


def cut_page(rng: random.Random, width: int, height: int) -> Scene:
    """A section of a larger page."""
    full_width, full_height = (-(-side // VIEW) * VIEW for side in (width, height))
    lines = lines_on(rng, full_width, full_height)
    image = draw_document(rng, full_width, full_height, lines)
    left, top = rng.randint(0, full_width - width), rng.randint(0, full_height - height)
    image = image.crop((left, top, left + width, top + height))
    return Scene(recompressed(rng, image), lines=moved(lines, -left, -top))


def whole_page(rng: random.Random, width: int, height: int) -> Scene:
    """A page with a margin where the picture is larger than whole views."""
    page_width, page_height = (side // VIEW * VIEW for side in (width, height))
    lines = lines_on(rng, page_width, page_height)
    page = draw_document(rng, page_width, page_height, lines)
    left, top = rng.randint(0, width - page_width), rng.randint(0, height - page_height)
    image = Image.new("RGB", (width, height), page.getpixel((0, 0)))
    image.paste(page, (left, top))
    return Scene(recompressed(rng, image), lines=moved(lines, left, top))


def moved(lines: list[Line], dx: int, dy: int) -> list[Line]:
    return [replace(line, left=line.left + dx, right=line.right + dx, y=line.y + dy) for line in lines]
