"""What can be asked about a scene, and the answers."""

from __future__ import annotations

import random
from collections.abc import Callable

from scenes import COLORS, ITEMS, SHAPES, Scene, Tag

Asked = tuple[str, str, str]  # kind, question, answer


def question(rng: random.Random, scene: Scene, kind: str) -> Asked | None:
    """A question of this kind, or None where the scene allows none."""
    return BUILDERS[kind](rng, scene)


def read(rng: random.Random, scene: Scene) -> Asked | None:
    if not scene.tags:
        return None
    tag = rng.choice(scene.tags)
    return "read", f"what number is on the {tag.name}?", str(tag.number)


def exists(rng: random.Random, scene: Scene) -> Asked | None:
    wanted = rng.random() < 0.5
    if scene.lines:
        present = [line.word for line in scene.lines if line.word != "total"]
        word = rng.choice(present if wanted else [item for item in ITEMS if item not in present])
        return "exists", f"is there {word}?", "yes" if wanted else "no"
    color, shape = named(rng.choice(scene.tags)) if wanted else absent_pairs(rng, scene.tags, 1)[0]
    return "exists", f"is there a {color} {shape}?", "yes" if wanted else "no"


def count(rng: random.Random, scene: Scene) -> Asked | None:
    return ("count", "how many tags are there?", str(len(scene.tags))) if scene.tags else None


def color(rng: random.Random, scene: Scene) -> Asked | None:
    unique = with_unique_shape(scene.tags)
    if not unique:
        return None
    tag = rng.choice(unique)
    return "color", f"what color is the {tag.shape}?", tag.color


def left(rng: random.Random, scene: Scene) -> Asked | None:
    """Of two tags whose centres are at least a seventh of the picture apart: a patch of the thumbnail."""
    pairs = [(a, b) for a in scene.tags for b in scene.tags if b.x - a.x > scene.image.width / 7]
    if not pairs:
        return None
    pair = rng.choice(pairs)
    first, second = rng.sample(pair, 2)
    return "left", f"which is on the left, the {first.name} or the {second.name}?", pair[0].name


def largest(rng: random.Random, scene: Scene) -> Asked | None:
    by_size = sorted(scene.tags, key=lambda tag: -tag.radius)
    if len(by_size) < 2 or by_size[0].radius < 1.3 * by_size[1].radius:
        return None
    return "largest", "what color is the largest tag?", by_size[0].color


def document(rng: random.Random, scene: Scene) -> Asked | None:
    """The total, or the number of another line, as often."""
    if not scene.lines:
        return None
    total = [line for line in scene.lines if line.word == "total"]
    line = rng.choice(total if total and rng.random() < 0.5 else scene.lines)
    asked = "what is the total?" if line.word == "total" else f"how much is the {line.word}?"
    return "document", asked, str(line.number)


BUILDERS: dict[str, Callable[[random.Random, Scene], Asked | None]] = {
    "read": read,
    "exists": exists,
    "count": count,
    "color": color,
    "left": left,
    "largest": largest,
    "document": document,
}
KINDS = tuple(BUILDERS)


def named(tag: Tag) -> tuple[str, str]:
    return tag.color, tag.shape


def with_unique_shape(tags: list[Tag]) -> list[Tag]:
    shapes = [tag.shape for tag in tags]
    return [tag for tag in tags if shapes.count(tag.shape) == 1]


def absent_pairs(rng: random.Random, tags: list[Tag], many: int) -> list[tuple[str, str]]:
    """(colour, shape) pairs that no tag has; half of them share one of the two with a tag."""
    present = {named(tag) for tag in tags}
    absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
    near = [pair for pair in absent if any(pair[0] == c or pair[1] == s for c, s in present)]
    return [rng.choice(near if rng.random() < 0.5 else absent) for _ in range(many)]
