"""What every token of a picture shows: compact arrays for the way to the device, labels made of them there."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from native.build import TOKEN
from native.pictures import MOST_THINGS
from scenes import COLORS, SHAPES, WORDS, Scene, outline
from tower import IGNORE, PARTS

MOST_AROUND = 10
COLUMNS = ("color", "shape", "tens", "units", "word")  # of the table of things, -1 where there is no such thing
# Read-outs of every token and their classes; the last class of color and word is background.
HEADS = {
    "color": len(COLORS) + 1,
    "shape": len(SHAPES),
    "tens": 10,
    "units": 10,
    "word": len(WORDS) + 1,
    "centre": 2,
    "around": MOST_AROUND + 1,
}
BACKGROUND = {"color": len(COLORS), "word": len(WORDS), "centre": 0}
Box = tuple[float, float, float, float]


def owned(seen: Scene, scale: int = 1) -> tuple[np.ndarray, np.ndarray, int]:
    """Which thing each token shows.

    Args:
        seen: A picture whose sides are multiples of a token.
        scale: How many times smaller the picture is than its things' coordinates; above one nothing is legible.

    Returns:
        int8 (len(PARTS), height, width), number of the tag or line by part, -1 for none; int8 (things, len(COLUMNS));
        the number of things, at most MOST_AROUND.
    """
    width, height = (side // TOKEN for side in seen.image.size)
    owners = np.full((len(PARTS), height, width), -1, np.int8)
    best = np.zeros((height, width), np.float32)  # a token belongs to the thing that covers most of it
    around = 0
    for number, tag in enumerate(seen.tags):
        around += mark_tag(owners, best, number, tag, scale)
    for number, line in enumerate(seen.lines if scale == 1 else ()):
        around += mark_line(owners, best, number, line)
    return owners, table_of(seen), min(around, MOST_AROUND)


def table_of(seen: Scene) -> np.ndarray:
    tags = [[list(COLORS).index(t.color), SHAPES.index(t.shape), *divmod(t.number, 10), -1] for t in seen.tags]
    lines = [[-1, -1, *divmod(line.number, 10), WORDS.index(line.word)] for line in seen.lines]
    return np.array(tags + lines, np.int8).reshape(-1, len(COLUMNS))


def mark_tag(owners: np.ndarray, best: np.ndarray, number: int, tag, scale: int) -> int:
    """1 if the centre is in the picture."""
    corners = [(x / scale, y / scale) for x, y in outline(tag)]
    xs, ys = zip(*corners, strict=True)
    rows, cols = span(min(ys), max(ys), best.shape[0]), span(min(xs), max(xs), best.shape[1])
    if rows.start >= rows.stop or cols.start >= cols.stop:
        return 0
    left, top = cols.start * TOKEN, rows.start * TOKEN
    canvas = Image.new("L", ((cols.stop - cols.start) * TOKEN, (rows.stop - rows.start) * TOKEN))
    ImageDraw.Draw(canvas).polygon([(x - left, y - top) for x, y in corners], fill=1)
    share = np.asarray(canvas).reshape(rows.stop - rows.start, TOKEN, cols.stop - cols.start, TOKEN).mean((1, 3))
    if share.max() < 0.1:
        return 0
    claim(owners[0, rows, cols], best[rows, cols], share, min(0.3, share.max() - 1e-6), number)
    boxes = tag.digit_boxes()
    if scale == 1 and within(boxes, best.shape):
        mark_digits(owners, number, boxes)
    return mark_centre(owners, number, tag.x / scale, tag.y / scale)


def mark_line(owners: np.ndarray, best: np.ndarray, number: int, line) -> int:
    boxes = line.boxes()
    if not within(boxes, best.shape):
        return 0
    for box in boxes:
        rows, cols, share = coverage(box, best.shape)
        claim(owners[0, rows, cols], best[rows, cols], share, 0.15, number)
    mark_digits(owners, number, line.digit_boxes())
    return mark_centre(owners, number, line.right - 8, line.y)


def claim(owner: np.ndarray, best: np.ndarray, share: np.ndarray, least: float, number: int) -> None:
    owner[(share > least) & (share > best)] = number
    np.maximum(best, share, out=best)


def mark_centre(owners: np.ndarray, number: int, x: float, y: float) -> int:
    row, col = int(y // TOKEN), int(x // TOKEN)
    if not (0 <= row < owners.shape[1] and 0 <= col < owners.shape[2]):
        return 0
    owners[PARTS.index("centre"), row, col] = number
    return 1


def mark_digits(owners: np.ndarray, number: int, boxes: list[Box]) -> None:
    """Each digit where it stands: tokens that hold at least 30 % of its box."""
    for part, box in zip(("tens", "units"), boxes, strict=True):
        rows, cols, share = coverage(box, owners.shape[1:])
        area = (box[2] - box[0]) * (box[3] - box[1]) / TOKEN**2
        owners[PARTS.index(part), rows, cols][share > 0.3 * area] = number


def within(boxes: list[Box], shape: tuple[int, int]) -> bool:
    height, width = (side * TOKEN for side in shape)
    return all(min(box[:2]) >= 0 and box[2] <= width and box[3] <= height for box in boxes)


def span(first: float, last: float, most: int) -> slice:
    """Tokens that a stretch of px touches."""
    return slice(max(0, int(first // TOKEN)), max(0, min(most, int(last // TOKEN) + 1)))


def coverage(box: Box, shape: tuple[int, int]) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns that a box touches, and how much of each token there it covers."""
    left, top, right, bottom = box
    rows, cols = span(top, bottom, shape[0]), span(left, right, shape[1])
    # Boxes touch a few tokens, so plain numbers are faster than arrays.
    down = [min(bottom, y + TOKEN) - max(top, y) for y in range(rows.start * TOKEN, rows.stop * TOKEN, TOKEN)]
    across = [min(right, x + TOKEN) - max(left, x) for x in range(cols.start * TOKEN, cols.stop * TOKEN, TOKEN)]
    share = [[high * wide / TOKEN**2 for wide in across] for high in down]
    return rows, cols, np.array(share).reshape(len(down), len(across))


def padded(tables: list[np.ndarray]) -> np.ndarray:
    """int8 (pictures, MOST_THINGS, len(COLUMNS))."""
    out = np.full((len(tables), MOST_THINGS, len(COLUMNS)), -1, np.int8)
    for row, table in zip(out, tables, strict=True):
        row[: len(table)] = table
    return out


def token_labels(owners: Tensor, things: Tensor, around: Tensor) -> dict[str, Tensor]:
    """What each read-out should say, int64 (pictures, tokens) by head, IGNORE where nothing is asked.

    Args:
        owners: int8 (pictures, len(PARTS), tokens).
        things: int8 (pictures, MOST_THINGS, len(COLUMNS)).
        around: int8 (pictures,).
    """
    part = owners.long()
    place = {"color": 0, "shape": 0, "word": 0, "tens": 1, "units": 2}
    labels = {}
    for name, row in place.items():
        owner = part[:, row]
        value = things[:, :, COLUMNS.index(name)].long().gather(1, owner.clamp(min=0))
        nothing = BACKGROUND.get(name, IGNORE)
        labels[name] = torch.where((owner < 0) | (value < 0), nothing, value)
    labels["centre"] = (part[:, PARTS.index("centre")] >= 0).long()
    labels["around"] = around.long()[:, None].expand_as(labels["centre"])
    return labels
