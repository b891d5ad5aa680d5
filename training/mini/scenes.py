"""Draws the mini model's pictures: photographs, gradients or noise with coloured tags that carry two-digit numbers.

A digit is about 11 px tall: legible in a 112 px crop, not in the thumbnail, which shows the same picture at a half or a
third of the size. That is the situation that thumbnail-plus-crops models are built for. Everything is a function of
a seed, so a training run can be repeated and a held-out picture stays held out.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
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
GRIDS = ((2, 2), (1, 2), (2, 1), (1, 3), (3, 1), (3, 3))  # rows, cols of crops

# Photographs bundled in ordinary packages. The held-out ones are public domain or CC0, so the package may ship a
# picture drawn over them; they are never used in training.
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
    "sklearn:china.jpg",
    "sklearn:flower.jpg",
)
HELD_OUT_PHOTOS = ("skimage:chelsea.png", "matplotlib:grace_hopper.jpg", "skimage:camera.png", "skimage:brick.png")


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

    @property
    def text_y(self) -> float:
        return self.y + (self.radius * 0.22 if self.shape == "triangle" else 0.0)

    def digit_boxes(self) -> list[tuple[float, float, float, float]]:
        """Boxes (left, top, right, bottom) of the tens and the units digit as drawn."""
        left, top, right, bottom = font(self.font_size).getbbox(str(self.number), anchor="mm")
        middle = (left + right) / 2
        x, y = self.x, self.text_y
        return [(x + left, y + top, x + middle, y + bottom), (x + middle, y + top, x + right, y + bottom)]


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"), size)


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
    """A photograph's section (half of the time, or always with kinds="photo"), a colour gradient or smooth noise."""
    kind = rng.random() if kinds == "mixed" else 0.0
    if kind < 0.5:
        source = photo(rng.choice(photos))
        w, h = source.size
        scale = rng.uniform(0.35, 1.0) * min(w / width, h / height)
        cw, ch = max(8, int(width * scale)), max(8, int(height * scale))
        x, y = rng.randint(0, w - cw), rng.randint(0, h - ch)
        section = source.crop((x, y, x + cw, y + ch)).resize((width, height), Image.Resampling.BILINEAR)
        return section.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else section
    noise = np.random.default_rng(rng.randrange(1 << 30))
    if kind < 0.75:
        first, second = noise.uniform(30, 230, (2, 3))
        angle = rng.random() * math.pi
        y, x = np.mgrid[0:height, 0:width]
        ramp = x / width * math.cos(angle) + y / height * math.sin(angle)
        ramp = ((ramp - ramp.min()) / (np.ptp(ramp) + 1e-9))[..., None]
        return Image.fromarray((first * (1 - ramp) + second * ramp).astype(np.uint8))
    cells = rng.choice([4, 8, 16])
    grid = noise.integers(50, 220, (cells, cells, 3)).astype(np.uint8)
    return Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)


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
    """Up to `count` tags with distinct (colour, shape) pairs that do not overlap.

    With `clear_of_cuts` no number lies across the border of two crops, where no single view could show it.
    """
    left, top, right, bottom = 0.0, 0.0, float(width), float(height)
    if clustered and width >= VIEW * 2 and height >= VIEW * 2:
        left, top = rng.uniform(0, width * 0.45), rng.uniform(0, height * 0.45)
        right, bottom = left + width * 0.55, top + height * 0.55
    tags: list[Tag] = []
    for color, shape in rng.sample([(c, s) for c in COLORS for s in SHAPES], count):
        for _ in range(40):
            radius = rng.uniform(14, 19)
            tag = Tag(
                color,
                shape,
                rng.randint(10, 99),
                rng.uniform(left + radius, right - radius),
                rng.uniform(top + radius, bottom - radius),
                radius,
                rng.choice([13, 14, 15]),
            )
            if any(math.hypot(tag.x - o.x, tag.y - o.y) < 1.12 * (tag.radius + o.radius) for o in tags):
                continue
            if clear_of_cuts and crosses_a_cut(tag, width, height):
                continue
            tags.append(tag)
            break
    return tags


def crosses_a_cut(tag: Tag, width: int, height: int) -> bool:
    (left, top, _, bottom), (_, _, right, _) = tag.digit_boxes()
    across = any(left - 2 < cut < right + 2 for cut in range(VIEW, width, VIEW))
    return across or any(top - 2 < cut < bottom + 2 for cut in range(VIEW, height, VIEW))


def draw(image: Image.Image, tags: list[Tag]) -> Image.Image:
    pen = ImageDraw.Draw(image)
    for tag in tags:
        pen.polygon(outline(tag), fill=COLORS[tag.color])
        dark = sum(COLORS[tag.color]) / 3 > 118
        pen.text(
            (tag.x, tag.text_y),
            str(tag.number),
            font=font(tag.font_size),
            fill=(0, 0, 0) if dark else (255, 255, 255),
            anchor="mm",
        )
    return image


def scene(
    seed: str,
    *,
    grids: tuple[tuple[int, int], ...] = GRIDS,
    tags: tuple[int, int] = (1, 5),
    photos: tuple[str, ...] = TRAINING_PHOTOS,
    backgrounds: str = "mixed",
) -> tuple[Image.Image, list[Tag]]:
    """One picture at the native size of one of `grids`, with its tags. The same seed draws the same picture."""
    rng = random.Random(seed)
    rows, cols = rng.choice(grids)
    width, height = cols * VIEW, rows * VIEW
    image = background(rng, width, height, photos, backgrounds)
    placed: list[Tag] = []
    while not placed:
        placed = place_tags(rng, width, height, rng.randint(*tags), clustered=rng.random() < 0.5, clear_of_cuts=True)
    return draw(image, placed), placed


KINDS = ("read", "exists", "count", "color")


def question(rng: random.Random, tags: list[Tag], kind: str | None = None) -> tuple[str, str, str]:
    """One (kind, question, answer) about a scene."""
    kind = kind or rng.choice(("read", "read", "exists", "exists", "count", "color", "color", "color"))
    if kind == "read":
        tag = rng.choice(tags)
        return kind, f"what number is on the {tag.color} {tag.shape}?", str(tag.number)
    if kind == "exists":
        if rng.random() < 0.5:
            tag = rng.choice(tags)
            return kind, f"is there a {tag.color} {tag.shape}?", "yes"
        color, shape = absent_pairs(rng, tags, 1)[0]
        return kind, f"is there a {color} {shape}?", "no"
    if kind == "count":
        return kind, "how many tags are there?", str(len(tags))
    if kind == "color":
        shapes = [t.shape for t in tags]
        unique = [t for t in tags if shapes.count(t.shape) == 1]
        if unique:
            tag = rng.choice(unique)
            return kind, f"what color is the {tag.shape}?", tag.color
        return question(rng, tags, "read")
    raise ValueError(f"kind must be one of {KINDS}, got {kind!r}.")


def absent_pairs(rng: random.Random, tags: list[Tag], count: int) -> list[tuple[str, str]]:
    """(colour, shape) pairs that no tag has; half of them share one of the two with a tag."""
    present = {(t.color, t.shape) for t in tags}
    absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
    near = [pair for pair in absent if any(pair[0] == c or pair[1] == s for c, s in present)]
    return [rng.choice(near if rng.random() < 0.5 else absent) for _ in range(count)]


def caption(rng: random.Random, tags: list[Tag]) -> str:
    """All tags in random order: every word after the first is a supervised look-up.

    Half of the time the shape comes first, so that colours are looked up by shape as well as shapes by colour.
    """
    shape_first = rng.random() < 0.5
    order = rng.sample(tags, len(tags))
    return ", ".join(
        f"{t.shape} {t.color} {t.number}" if shape_first else f"{t.color} {t.shape} {t.number}" for t in order
    )


def look_ups(rng: random.Random, tags: list[Tag]) -> list[tuple[str, str]]:
    """What is asked and its answer, in random order.

    Either the numbers of all tags and "no" for as many absent ones, or the colour of each shape that only one tag has
    and "no" for the shapes that none has.
    """
    shapes = [t.shape for t in tags]
    by_shape = [(t.shape, t.color) for t in tags if shapes.count(t.shape) == 1]
    by_shape += [(shape, "no") for shape in SHAPES if shape not in shapes]
    if by_shape and rng.random() < 0.5:
        return rng.sample(by_shape, len(by_shape))
    entries = [(f"{t.color} {t.shape}", str(t.number)) for t in tags]
    entries += [(f"{color} {shape}", "no") for color, shape in absent_pairs(rng, tags, len(tags))]
    return rng.sample(entries, len(entries))
