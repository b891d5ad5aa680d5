"""Draws the mini model's pictures: numbered tags over photographs, gradients, noise or text pages, and small documents.

A digit is about 9 to 13 px tall: legible in a 112 px crop, not in the thumbnail, which shows the same picture at a half
or a third of the size. That is the situation that thumbnail-plus-crops models are built for. Everything is a function of
a seed, so a training run can be repeated and a held-out picture stays held out.
"""

from __future__ import annotations

import io
import math
import random
import string
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VIEW = 112  # side of one view, px
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 225),
    "yellow": (235, 205, 40),
    "purple": (150, 60, 190),
    "orange": (240, 130, 30),
    "white": (240, 240, 240),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "star")
CLUTTER = ("cross", "diamond", "ring", "bar")  # coloured like tags, but without a number
ITEMS = ("milk", "bread", "rice", "salt", "tea", "eggs", "soup", "corn")  # what lines of a document name
WORDS = (*ITEMS, "total")
GRIDS = ((2, 2), (1, 2), (2, 1), (1, 3), (3, 1), (3, 3))  # rows, cols of crops
GRID_WEIGHTS = (5, 1.5, 1.5, 1.5, 1.5, 2)
MOST_TAGS = 7
MOST_LINES = 7
TAG_FACES = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")
TEXT_FACES = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif", "DejaVuSansMono")

# Photographs bundled in ordinary packages; the three lists share none. The held-out and tuning ones are public domain or
# CC0 (scikit-image's docstrings; the portrait is by the US Navy), so a picture drawn over them may be passed on.
TRAINING_PHOTOS = (
    "skimage:astronaut.png",
    "skimage:coffee.png",
    "skimage:rocket.jpg",
    "skimage:hubble_deep_field.jpg",
    "skimage:ihc.png",
    "skimage:retina.jpg",
    "skimage:motorcycle_left.png",
    "skimage:gravel.png",
    "skimage:grass.png",
    "skimage:coins.png",
    "skimage:page.png",
    "skimage:moon.png",
    "sklearn:china.jpg",
    "sklearn:flower.jpg",
)
HELD_OUT_PHOTOS = ("skimage:chelsea.png", "skimage:camera.png", "skimage:brick.png", "skimage:clock_motion.png")
TUNING_PHOTOS = ("matplotlib:grace_hopper.jpg", "skimage:cell.png", "skimage:text.png")


@dataclass(frozen=True)
class Tag:
    """One coloured shape with a number; positions and sizes in px of the picture."""

    color: str
    shape: str
    number: int
    x: float
    y: float
    radius: float
    font_size: int
    face: str = TAG_FACES[0]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def text_y(self) -> float:
        return self.y + (self.radius * 0.22 if self.shape == "triangle" else 0.0)

    def digit_boxes(self) -> list[tuple[float, float, float, float]]:
        """Boxes (left, top, right, bottom) of the tens and the units digit as drawn."""
        left, top, right, bottom = font(self.face, self.font_size).getbbox(str(self.number), anchor="mm")
        middle = (left + right) / 2
        x, y = self.x, self.text_y
        return [(x + left, y + top, x + middle, y + bottom), (x + middle, y + top, x + right, y + bottom)]


@dataclass(frozen=True)
class Line:
    """A line of a document: a word and a two-digit number, vertically centred on y."""

    word: str
    number: int
    left: float
    right: float
    y: float
    font_size: int
    face: str

    def boxes(self) -> list[tuple[float, float, float, float]]:
        """Boxes (left, top, right, bottom) of the word and of the number."""
        drawn, height = font(self.face, self.font_size), self.font_size / 2
        word, number = drawn.getlength(self.word), drawn.getlength(str(self.number))
        top, bottom = self.y - height, self.y + height
        return [(self.left, top, self.left + word, bottom), (self.right - number, top, self.right, bottom)]

    def digit_boxes(self) -> list[tuple[float, float, float, float]]:
        """Boxes of the tens and the units digit."""
        _, (left, top, right, bottom) = self.boxes()
        middle = (left + right) / 2
        return [(left, top, middle, bottom), (middle, top, right, bottom)]


@dataclass(frozen=True)
class Scene:
    """A picture and what it shows: tags, or the lines of a document."""

    image: Image.Image
    tags: list[Tag] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)

    @property
    def grid(self) -> tuple[int, int]:
        return self.image.height // VIEW, self.image.width // VIEW


@cache
def font(face: str, size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / f"fonts/ttf/{face}.ttf"), size)


@cache
def photo(name: str) -> Image.Image:
    """A photograph bundled in an installed package, at no more than 512 px."""
    package, file = name.split(":")
    if package == "skimage":
        import skimage

        path = Path(skimage.__file__).parent / "data" / file
    elif package == "sklearn":
        import sklearn

        path = Path(sklearn.__file__).parent / "datasets" / "images" / file
    else:
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "sample_data" / file
    image = Image.open(path).convert("RGB")
    image.thumbnail((512, 512))
    return image


def background(
    rng: random.Random, width: int, height: int, photos: tuple[str, ...], kinds: str = "mixed"
) -> Image.Image:
    """A photograph's section (half of the time, or always with kinds="photo"), a gradient, smooth noise or a text page."""
    kind = rng.random() if kinds == "mixed" else 0.0
    if kind < 0.5:
        source = photo(rng.choice(photos))
        w, h = source.size
        scale = rng.uniform(0.35, 1.0) * min(w / width, h / height)
        cw, ch = max(8, int(width * scale)), max(8, int(height * scale))
        x, y = rng.randint(0, w - cw), rng.randint(0, h - ch)
        section = source.crop((x, y, x + cw, y + ch)).resize((width, height), Image.Resampling.BILINEAR)
        return section.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else section
    if kind < 0.65:
        return text_page(rng, width, height)
    noise = np.random.default_rng(rng.randrange(1 << 30))
    if kind < 0.85:
        first, second = noise.uniform(30, 230, (2, 3))
        angle = rng.random() * math.pi
        y, x = np.mgrid[0:height, 0:width]
        ramp = x / width * math.cos(angle) + y / height * math.sin(angle)
        ramp = ((ramp - ramp.min()) / (np.ptp(ramp) + 1e-9))[..., None]
        return Image.fromarray((first * (1 - ramp) + second * ramp).astype(np.uint8))
    cells = rng.choice([4, 8, 16])
    grid = noise.integers(50, 220, (cells, cells, 3)).astype(np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


def paper(rng: random.Random, width: int, height: int) -> Image.Image:
    shade, tint = rng.randint(205, 255), [rng.randint(-12, 0) for _ in range(3)]
    return Image.new("RGB", (width, height), tuple(min(255, max(0, shade + t)) for t in tint))


def text_page(rng: random.Random, width: int, height: int) -> Image.Image:
    """Lines of meaningless lower-case words."""
    image = paper(rng, width, height)
    fill_with_text(rng, image, (0, 0, width, height))
    return image


def fill_with_text(rng: random.Random, image: Image.Image, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    pen, size = ImageDraw.Draw(image), rng.randint(8, 12)
    drawn, ink = font(rng.choice(TEXT_FACES), size), (rng.randint(0, 130),) * 3
    letters = max(4, int((right - left) / drawn.getlength("n")))
    for y in range(top + 4, bottom - size, size + rng.randint(3, 6)):
        text = "".join(rng.choice(string.ascii_lowercase + "    ") for _ in range(rng.randint(letters // 2, letters)))
        pen.text((left + 4, y), text, font=drawn, fill=ink)


def outline(tag: Tag) -> list[tuple[float, float]]:
    """Corner points of a tag's shape (a circle is drawn as a 24-gon)."""
    x, y, r = tag.x, tag.y, tag.radius
    if tag.shape == "square":
        return [
            (x - 0.88 * r, y - 0.88 * r),
            (x + 0.88 * r, y - 0.88 * r),
            (x + 0.88 * r, y + 0.88 * r),
            (x - 0.88 * r, y + 0.88 * r),
        ]
    if tag.shape == "triangle":
        return [(x, y - 1.15 * r), (x - 1.2 * r, y + 0.85 * r), (x + 1.2 * r, y + 0.85 * r)]
    corners, inner = (24, 1.0) if tag.shape == "circle" else (10, 0.66)
    outer = 1.0 if tag.shape == "circle" else 1.3
    return [
        (
            x + (outer if i % 2 == 0 else inner) * r * math.sin(2 * math.pi * i / corners),
            y - (outer if i % 2 == 0 else inner) * r * math.cos(2 * math.pi * i / corners),
        )
        for i in range(corners)
    ]


def place_tags(
    rng: random.Random, width: int, height: int, count: int, *, clustered: bool, clear_of_cuts: bool
) -> list[Tag]:
    """Up to `count` tags with distinct (colour, shape) pairs that do not overlap; in half of all calls one is far larger.

    With `clear_of_cuts` no number lies across the border of two crops, where no single view could show it.
    """
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    if clustered:
        side = rng.uniform(1.0, 1.6) * VIEW
        side_x, side_y = min(width, side), min(height, side)
        left, top = rng.uniform(0, width - side_x), rng.uniform(0, height - side_y)
        right, bottom = left + side_x, top + side_y
    large = rng.random() < 0.5
    tags: list[Tag] = []
    for color, shape in rng.sample([(c, s) for c in COLORS for s in SHAPES], count):
        for _ in range(40):
            radius = rng.uniform(25, 30) if large and not tags else rng.uniform(13, 18.5)
            tag = Tag(
                color,
                shape,
                rng.randint(10, 99),
                rng.uniform(left + radius, right - radius),
                rng.uniform(top + radius, bottom - radius),
                radius,
                rng.randint(11, 13 if radius < 15 else 16),
                rng.choice(TAG_FACES),
            )
            if any(math.hypot(tag.x - o.x, tag.y - o.y) < 1.12 * (tag.radius + o.radius) for o in tags):
                continue
            if clear_of_cuts and crosses_a_cut(tag.digit_boxes(), width, height):
                continue
            tags.append(tag)
            break
    rng.shuffle(tags)
    return tags


def crosses_a_cut(boxes: list[tuple[float, float, float, float]], width: int, height: int) -> bool:
    left, top = min(b[0] for b in boxes), min(b[1] for b in boxes)
    right, bottom = max(b[2] for b in boxes), max(b[3] for b in boxes)
    across = any(left - 2 < cut < right + 2 for cut in range(VIEW, width, VIEW))
    return across or any(top - 2 < cut < bottom + 2 for cut in range(VIEW, height, VIEW))


def draw_tags(image: Image.Image, tags: list[Tag]) -> Image.Image:
    pen = ImageDraw.Draw(image)
    for tag in tags:
        pen.polygon(outline(tag), fill=COLORS[tag.color])
        dark = sum(COLORS[tag.color]) / 3 > 118
        pen.text(
            (tag.x, tag.text_y),
            str(tag.number),
            font=font(tag.face, tag.font_size),
            fill=(0, 0, 0) if dark else (255, 255, 255),
            anchor="mm",
        )
    return image


def draw_clutter(rng: random.Random, image: Image.Image, tags: list[Tag]) -> None:
    """Up to four coloured things without a number, clear of the tags."""
    pen = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 4)):
        r = rng.uniform(9, 16)
        x, y = rng.uniform(r, image.width - r), rng.uniform(r, image.height - r)
        if any(math.hypot(x - t.x, y - t.y) < 1.2 * (r + t.radius) for t in tags):
            continue
        fill, kind = COLORS[rng.choice(list(COLORS))], rng.choice(CLUTTER)
        if kind == "cross":
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)
            pen.rectangle((x - r / 3, y - r, x + r / 3, y + r), fill=fill)
        elif kind == "diamond":
            pen.polygon([(x, y - r), (x + r * 0.7, y), (x, y + r), (x - r * 0.7, y)], fill=fill)
        elif kind == "ring":
            pen.ellipse((x - r, y - r, x + r, y + r), outline=fill, width=max(3, int(r / 3)))
        else:
            pen.rectangle((x - r, y - r / 3, x + r, y + r / 3), fill=fill)


def place_lines(rng: random.Random, width: int, height: int, count: int) -> list[Line]:
    """A document's lines in one to three blocks, each block inside one crop; one line is the total."""
    words = ["total", *rng.sample(ITEMS, count - 1)]
    rng.shuffle(words)
    cells = [(x, y) for x in range(0, width, VIEW) for y in range(0, height, VIEW)]
    cells = rng.sample(cells, min(rng.randint(1, 3), len(cells)))
    size, face = rng.randint(10, 12), rng.choice(TEXT_FACES)
    pitch = size + rng.randint(6, 9)
    room = (VIEW - 8) // pitch
    lines: list[Line] = []
    for block, (cell_x, cell_y) in enumerate(cells):
        mine = words[block :: len(cells)][:room]
        extent = rng.uniform(58, 88)
        left = cell_x + rng.uniform(5, VIEW - 5 - extent)
        top = cell_y + 4 + rng.uniform(0, VIEW - 8 - pitch * len(mine))
        for row, word in enumerate(mine):
            y = top + (row + 0.5) * pitch
            lines.append(Line(word, rng.randint(10, 99), left, left + extent, y, size, face))
    return lines


def draw_document(rng: random.Random, width: int, height: int, lines: list[Line]) -> Image.Image:
    """The lines on paper, with meaningless text in some of the empty cells."""
    image = paper(rng, width, height)
    for x in range(0, width, VIEW):
        for y in range(0, height, VIEW):
            empty = not any(x <= line.left < x + VIEW and y <= line.y < y + VIEW for line in lines)
            if empty and rng.random() < 0.4:
                fill_with_text(rng, image, (x, y, x + VIEW, y + VIEW))
    pen, ink = ImageDraw.Draw(image), (rng.randint(0, 70),) * 3
    for line in lines:
        drawn = font(line.face, line.font_size)
        pen.text((line.left, line.y), line.word, font=drawn, fill=ink, anchor="lm")
        pen.text((line.right, line.y), str(line.number), font=drawn, fill=ink, anchor="rm")
    return image


def recompressed(rng: random.Random, image: Image.Image) -> Image.Image:
    """Through JPEG in a third of all calls: the evaluation set is stored that way."""
    if rng.random() > 0.33:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=rng.randint(80, 95), subsampling=0)
    return Image.open(buffer).convert("RGB")


def scene(
    seed: str,
    *,
    grids: tuple[tuple[int, int], ...] = GRIDS,
    tags: tuple[int, int] = (1, MOST_TAGS),
    photos: tuple[str, ...] = TRAINING_PHOTOS,
    backgrounds: str = "mixed",
    documents: float = 0.2,
) -> Scene:
    """One picture at the native size of one of `grids`; a share of `documents` are pages. A seed always draws the same."""
    rng = random.Random(seed)
    rows, cols = rng.choices(grids, GRID_WEIGHTS if grids == GRIDS else None)[0]
    width, height = cols * VIEW, rows * VIEW
    if rng.random() < documents:
        lines = place_lines(rng, width, height, rng.randint(3, MOST_LINES))
        return Scene(recompressed(rng, draw_document(rng, width, height, lines)), lines=lines)
    image = background(rng, width, height, photos, backgrounds)
    placed: list[Tag] = []
    while not placed:
        placed = place_tags(rng, width, height, rng.randint(*tags), clustered=rng.random() < 0.5, clear_of_cuts=True)
    draw_clutter(rng, image, placed)
    return Scene(recompressed(rng, draw_tags(image, placed)), tags=placed)
