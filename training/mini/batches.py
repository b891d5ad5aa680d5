"""What one training step of the decoder sees: pictures, the tokens that are kept of each, and turns about it.

Every turn is one question with its answer and sees the picture and itself only, as if it were asked alone. Some of its
words also know which patches they are about; `decoder.py` asks one attention layer to look there.
"""

from __future__ import annotations

import random
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from build import model as build_model
from build import processor as build_processor
from globalcom2.adapters.llava_next import LlavaNextAdapter
from questions import KINDS, question
from scenes import COLORS, GRID_WEIGHTS, GRIDS, SHAPES, VIEW, WORDS, Scene, scene
from tower import IGNORE, PARTS, PATCH, SIDE, Labelled, Windows, crop, thumbnail

TOKENS = SIDE * SIDE
TURNS = 10
# How often each kind is asked, where the scene allows it.
FREQUENCY = {"read": 3, "exists": 2, "count": 1, "color": 1.5, "left": 2.5, "largest": 1, "document": 4}
ALL_TOKENS = {True: 0.15, False: 0.4}  # share of the steps that see all tokens, with a frozen tower and together
SIZES = (40, 64, 96, 160)  # tokens of a picture in the other steps
PICTURES = 8  # per step; fewer where all tokens are seen
MOST_TOKENS = 2800  # per step that sees all tokens
WINDOWS = 8  # views per step that only the tower learns from, once it does: dense with tags and lines
OPENING = 2  # <s> and <user>, before the picture

# What the heads of the guided layer are to look at. A word that names nothing in the picture looks at <s>.
GUIDES = ("tens", "units", "crops", "thumbnail", "count in crops", "count in thumbnail")
COUNTING = len(GUIDES) - 2


class Batch(NamedTuple):
    """One step. B pictures with n tokens each, V views in all, T text tokens per picture, R guided words."""

    views: Labelled
    """All pictures' views, thumbnail first, then any windows."""
    visual: torch.Tensor
    """int64 (B, n): index into the views' tokens (V * TOKENS), -1 for a newline."""
    ids: torch.Tensor
    """int64 (B, T): the turns, one after the other."""
    labels: torch.Tensor
    """int64 (B, T): the ids to be learnt, else IGNORE."""
    turn: torch.Tensor
    """int64 (B, T): number of the turn, -1 for padding."""
    place: torch.Tensor
    """int64 (B, T): place within its turn."""
    kinds: list[list[str]]
    """Per picture and turn."""
    guided: torch.Tensor
    """int64 (R, 3): picture, text token, head of the guided layer."""
    targets: torch.Tensor
    """float (R, OPENING + n): 1 for the keys that a guided word should look at."""
    everything: bool
    """Whether the pictures show all their tokens."""


@cache
def tokenizer():
    return build_processor().tokenizer


@cache
def packing(grid: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """LLaVA-NeXT's order for a picture of native size: what stands in each place (tokens first, newlines after them),
    and the place of each crop token, (rows * SIDE, cols * SIDE)."""
    layout = LlavaNextAdapter().layout(build_model(tokenizer()).config, grid[0] * VIEW, grid[1] * VIEW)
    slots = layout.slots.numpy()
    places = np.empty(slots.max() + 1, np.int64)
    places[slots] = np.arange(len(slots))
    crops = places[TOKENS : layout.views * TOKENS].reshape(*grid, SIDE, SIDE)
    return slots, crops.transpose(0, 2, 1, 3).reshape(grid[0] * SIDE, grid[1] * SIDE)


def some_places(shown: Scene, rng: random.Random, count: int, fewest: int) -> np.ndarray:
    """`count` places of the packed run, ascending: `fewest` tokens of everything shown or up to twice as many, then others
    at random."""
    slots, crops = packing(shown.grid)
    boxes = [
        (t.x - 0.8 * t.radius, t.y - 0.8 * t.radius, t.x + 0.8 * t.radius, t.y + 0.8 * t.radius) for t in shown.tags
    ]
    boxes += [box for line in shown.lines for box in line.boxes()]
    chosen = set()
    for left, top, right, bottom in boxes:
        rows = slice(max(0, int(top // PATCH)), int(bottom // PATCH) + 1)
        cols = slice(max(0, int(left // PATCH)), int(right // PATCH) + 1)
        own = crops[rows, cols].ravel().tolist()
        chosen.update(rng.sample(own, min(len(own), rng.randint(fewest, 2 * fewest))))
        x, y = (left + right) / 2 / shown.image.width, (top + bottom) / 2 / shown.image.height
        chosen.add(int(y * SIDE) * SIDE + int(x * SIDE))  # the thumbnail comes first and has no newlines
    if rng.random() < 0.3:
        chosen.update(np.flatnonzero(slots >= (1 + shown.grid[0] * shown.grid[1]) * TOKENS).tolist())
    picked = sorted(chosen)
    if len(picked) > count:
        return np.array(sorted(rng.sample(picked, count)))
    rest = np.setdiff1d(np.arange(len(slots)), picked).tolist()
    return np.array(sorted(picked + rng.sample(rest, count - len(picked))))


def turns_about(rng: random.Random, shown: Scene) -> list[tuple[str, str, str]]:
    """(kind, question, answer), different questions."""
    kinds = rng.choices(KINDS, [FREQUENCY[kind] for kind in KINDS], k=3 * TURNS)
    asked = {q[1]: q for q in (question(rng, shown, kind) for kind in kinds) if q is not None}
    return list(asked.values())[:TURNS]


@cache
def special_words() -> tuple[dict[int, str], dict[int, str], dict[int, str], dict[str, int]]:
    """Colours, shapes and document words by token; tokens of the words for tags."""
    token = {word: tokenizer()(word, add_special_tokens=False).input_ids[0] for word in (*COLORS, *SHAPES, *WORDS)}
    of_tags = {word: tokenizer()(word, add_special_tokens=False).input_ids[0] for word in ("tag", "tags")}
    return *({token[word]: word for word in words} for words in (COLORS, SHAPES, WORDS)), of_tags


def mentions(kind: str, ids: list[int], shown: Scene) -> list[tuple[int, int | None]]:
    """Words of a question that name a tag or line: (token, number of what it names or None where nothing is so called)."""
    colors, shapes, words, _ = special_words()
    if kind == "count":
        return []
    if shown.lines:
        lines = {line.word: number for number, line in enumerate(shown.lines)}
        return [(place, lines.get(words[token])) for place, token in enumerate(ids) if token in words]
    if kind == "largest":
        radii = [tag.radius for tag in shown.tags]
        return [(ids.index(special_words()[3]["tag"]), radii.index(max(radii)))]
    by_name = {tag.name: number for number, tag in enumerate(shown.tags)}
    by_shape = {tag.shape: number for number, tag in enumerate(shown.tags)}
    found = []
    for place, token in enumerate(ids):
        if token in shapes:
            name = shapes[token] if kind == "color" else f"{colors[ids[place - 1]]} {shapes[token]}"
            found.append((place, (by_shape if kind == "color" else by_name).get(name)))
    return found


def guides(kind: str, ids: list[int], shown: Scene, owners: np.ndarray) -> list[tuple[int, int, np.ndarray | None]]:
    """(token of the question, head, keys among the picture's tokens; None for <s>).

    Args:
        kind: Of the question.
        ids: The question's tokens.
        shown: The picture.
        owners: Of its views, (views, len(PARTS), TOKENS).
    """
    part = {name: owners[:, number] for number, name in enumerate(PARTS)}
    in_crops = np.arange(len(owners))[:, None] > 0
    if kind == "count":
        place = ids.index(special_words()[3]["tags"])
        centres = part["centre"] >= 0
        return [(place, COUNTING, (centres & in_crops).ravel()), (place, COUNTING + 1, (centres & ~in_crops).ravel())]
    found = []
    for place, number in mentions(kind, ids, shown):
        if number is None:
            found += [(place, head, None) for head in range(COUNTING)]
            continue
        mine = part["any"] == number
        keys = (part["tens"] == number, part["units"] == number, mine & in_crops, mine & ~in_crops)
        found += [(place, head, wanted.ravel()) for head, wanted in enumerate(keys)]
    return found


class Pictures(Dataset):
    """Training step `first + index` as a `Batch`; the tower is frozen in the first `frozen` steps."""

    def __init__(self, frozen: int, steps: int, first: int = 0):
        self.frozen, self.steps, self.first = frozen, steps, first

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, index: int) -> Batch:
        step = index + self.first
        rng = random.Random(f"step-{step}")
        frozen = step < self.frozen
        everything = rng.random() < ALL_TOKENS[frozen]
        grids, size = GRIDS, PICTURES
        if everything:
            grids = (rng.choices(GRIDS, GRID_WEIGHTS)[0],)
            size = max(2, min(PICTURES, MOST_TOKENS // (len(packing(grids[0])[0]) + 150)))
        shown = [scene(f"decoder-{step}-{number}", grids=grids) for number in range(size)]
        count, fewest = rng.choice(SIZES), rng.choice((3, 6, TOKENS))
        windows = Windows("windows", (step + 1) * WINDOWS, step * WINDOWS)
        views: list[Labelled] = []
        visual, texts, guided, targets = [], [], [], []
        for picture, whole in enumerate(shown):
            own = [thumbnail(whole)]
            own += [crop(whole, row, col) for row in range(whole.grid[0]) for col in range(whole.grid[1])]
            owners = np.stack([view.owners.numpy() for view in own])
            slots = packing(whole.grid)[0]
            seen = slots if everything else slots[some_places(whole, rng, min(count, len(slots)), fewest)]
            newline = seen >= len(own) * TOKENS
            visual.append(np.where(newline, -1, seen + len(views) * TOKENS))
            views += own
            turns = turns_about(rng, whole)
            segments = [(kind, tokenized(f"{q}<assistant>"), tokenized(f"{a}</s>")) for kind, q, a in turns]
            texts.append(segments)
            start = 0
            for kind, asked, answer in segments:
                for place, head, keys in guides(kind, asked, whole, owners):
                    target = np.zeros(OPENING + len(seen), np.float32)
                    if keys is None or head >= COUNTING:
                        target[0] = 1
                    if keys is not None:
                        target[OPENING:] = np.where(newline, False, keys[np.where(newline, 0, seen)])
                    if target.any():
                        guided.append((picture, start + place, head))
                        targets.append(target)
                start += len(asked) + len(answer)
        views += [windows[number] for number in range(0 if frozen else WINDOWS)]
        return collated(views, visual, texts, guided, targets, everything)


def tokenized(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False).input_ids


def collated(views, visual, texts, guided, targets, everything) -> Batch:
    longest = max(sum(len(asked) + len(answer) for _, asked, answer in segments) for segments in texts)
    shape = (len(texts), longest)
    ids, labels = np.full(shape, tokenizer().pad_token_id), np.full(shape, IGNORE)
    turn, place = np.full(shape, -1), np.zeros(shape, np.int64)
    for row, segments in enumerate(texts):
        start = 0
        for number, (_, asked, answer) in enumerate(segments):
            stop = start + len(asked) + len(answer)
            ids[row, start:stop], labels[row, start + len(asked) : stop] = asked + answer, answer
            turn[row, start:stop], place[row, start:stop] = number, np.arange(stop - start)
            start = stop
    stacked = Labelled(
        *(torch.stack([view[part] for view in views]) for part in range(3)),
        torch.tensor([view.things for view in views]),
        torch.stack([view.owners for view in views]),
    )
    return Batch(
        stacked,
        *(torch.from_numpy(np.stack(x)) for x in (visual, ids, labels, turn, place)),
        [[kind for kind, _, _ in segments] for segments in texts],
        torch.tensor(guided),
        torch.from_numpy(np.stack(targets)),
        everything,
    )
