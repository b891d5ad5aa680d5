"""What one training step of the decoder sees: pictures, the tokens that are kept of each, and turns about it.

Every turn is one question with its answer and sees the picture and itself only, as if it were asked alone. Some of its
words also know where to look, in three hops: the word that ends a name at the name's other word, then at the patches that
it is about, and what comes before a word of the answer at the names. `decoder.py` asks some attention heads to look there.
A count is asked twice: "tags" looks at the centres in the crops, a head for each colour (few things are counted well by
how much attention they leave to <s>, many are not), and "many" at any token of the thumbnail, all of which are taught to know it.
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
from scenes import COLORS, GRID_WEIGHTS, GRIDS, MOST_TAGS, SHAPES, VIEW, WORDS, Scene, scene
from tower import IGNORE, PARTS, SIDE, Labelled, Windows, crop, thumbnail

TOKENS = SIDE * SIDE
TURNS = 10
# How often each kind is asked, where the scene allows it.
FREQUENCY = {"read": 4, "exists": 2, "count": 4, "color": 1.5, "left": 2.5, "largest": 1, "document": 4}
ALL_TOKENS = {True: 0.3, False: 0.4}  # share of the steps that see all tokens, with a frozen tower and together
SIZES = (24, 40, 56, 80, 112, 160, 256)  # tokens of a picture in the other steps
# Powers of ten between which the weights of its tokens are drawn: background in crops and in the thumbnail, things in both.
POWERS = ((-2, 1), (-2, 1), (-1, 2), (-1, 2))
USUAL_TOKENS = 350  # of a picture and its turns; longer ones are fewer in a step
TURNS_TOKENS = 150  # of a picture's turns, about
OPENING = 2  # <s> and <user>, before the picture

# What heads are to look at, by layer. A word that names nothing in the picture looks at <s>. Where tags are counted, the
# second layer has a head for each colour instead.
NAMING, SEEING, TELLING = 0, 1, 2
GUIDES = {
    NAMING: ("name",),
    SEEING: ("tens", "units", "crops", "thumbnail"),
    TELLING: ("first name", "last name"),
}
COUNTING = ("many", "tags")  # words of the question for a count
# What a word that names a tag or line, or counts tags, should know after the second layer, and how many classes there are.
# The column is that of the thumbnail.
KNOWN = {"tens": 10, "units": 10, "color": len(COLORS), "column": SIDE, "count": MOST_TAGS + 1}


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
    """int64 (R, 4): picture, text token, layer, head."""
    targets: torch.Tensor
    """bool (R, OPENING + n + T): the keys that a guided word should look at."""
    knowing: torch.Tensor
    """int64 (K, 2): picture, text token of words that name something in the picture."""
    known: torch.Tensor
    """int64 (K, len(KNOWN)), IGNORE where there is nothing to know."""
    everything: bool
    """Whether the pictures show all their tokens."""


@cache
def tokenizer():
    return build_processor().tokenizer


@cache
def packing(grid: tuple[int, int]) -> np.ndarray:
    """LLaVA-NeXT's order for a picture of native size: what stands in each place, tokens first and newlines after them."""
    return LlavaNextAdapter().layout(build_model(tokenizer()).config, grid[0] * VIEW, grid[1] * VIEW).slots.numpy()


def some_places(slots: np.ndarray, owners: np.ndarray, rng: random.Random, count: int) -> np.ndarray:
    """`count` places of a picture's run, ascending: of most things the digits and mostly the centres, and others at random.

    How much there is of things, of background, of the thumbnail and of newlines differs widely from picture to picture,
    so that an answer, a count above all, cannot hang on what else was kept; things mostly weigh more. In some pictures
    centres or things are missing more often, so that tags are counted in the thumbnail too.

    Args:
        slots: What `packing` returned.
        owners: Of the picture's views, (views, len(PARTS), TOKENS).
        rng: Draws.
        count: At most the number of tokens.
    """
    there = rng.choice((0.95, 0.95, 0.95, 0.6))
    things = [number for number in range(owners.max() + 1) if rng.random() < there]
    part = owners.transpose(1, 0, 2).reshape(len(PARTS), -1)
    sure = part[1:] if rng.random() < 0.8 else part[1:-1]  # without centres, the last of PARTS
    needed = np.isin(sure, things).any(0)
    # Weighted draws without replacement: the largest keys log(u) / weight (Efraimidis and Spirakis, 2006).
    group = 2 * np.isin(part[0], things) + (np.arange(part.shape[1]) < TOKENS)
    weight = np.array([10 ** rng.uniform(*powers) for powers in POWERS])[group]
    draws = np.random.default_rng(rng.getrandbits(64)).random((2, part.shape[1]))
    keys = np.where(needed, draws[1], np.log(draws[0]) / weight)
    order = np.argsort(-keys)
    place = np.empty_like(order)
    place[slots[slots < len(order)]] = np.flatnonzero(slots < len(order))
    if rng.random() < 0.3:
        return np.sort(place[order[:count]])
    return with_newlines(place[order], np.flatnonzero(slots >= len(order)), count)


def with_newlines(places: np.ndarray, newlines: np.ndarray, count: int) -> np.ndarray:
    """As many of the first places as fit into `count` with the newlines of their lines, ascending.

    Args:
        places: Of tokens in a picture's run, best first; the first TOKENS of a run are the thumbnail, which has no newlines.
        newlines: Places of all newlines, ascending. Where one place is left over, one more of them takes it.
        count: At most the number of tokens.
    """
    line = np.where(places < TOKENS, -1, np.searchsorted(newlines, places))
    opens = np.zeros(len(places), bool)
    opens[np.unique(line, return_index=True)[1]] = True
    chosen = np.flatnonzero(np.cumsum(1 + (opens & (line >= 0))) <= count)
    ends = newlines[np.setdiff1d(line[chosen], -1)]
    spare = np.setdiff1d(newlines, ends)[: count - len(chosen) - len(ends)]
    return np.sort(np.concatenate([places[chosen], ends, spare]))


def turns_about(rng: random.Random, shown: Scene) -> list[tuple[str, str, str]]:
    """(kind, question, answer), different questions."""
    kinds = rng.choices(KINDS, [FREQUENCY[kind] for kind in KINDS], k=3 * TURNS)
    asked = {q[1]: q for q in (question(rng, shown, kind) for kind in kinds) if q is not None}
    return list(asked.values())[:TURNS]


@cache
def special_words() -> tuple[dict[int, str], dict[int, str], dict[int, str], dict[str, int]]:
    """Colours, shapes and document words by token; tokens of the words for tags and their number."""
    token = {word: tokenizer()(word, add_special_tokens=False).input_ids[0] for word in (*COLORS, *SHAPES, *WORDS)}
    of_tags = {word: tokenizer()(word, add_special_tokens=False).input_ids[0] for word in ("tag", *COUNTING)}
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


def seeing(kind: str, ids: list[int], shown: Scene, owners: np.ndarray) -> list[tuple[int, int, np.ndarray, bool]]:
    """The second hop: (token of the question, head, keys among the picture's tokens, whether <s> is a key too).

    Args:
        kind: Of the question.
        ids: The question's tokens.
        shown: The picture.
        owners: Of its views, (views, len(PARTS), TOKENS).
    """
    part = {name: owners[:, number] for number, name in enumerate(PARTS)}
    in_crops = np.arange(len(owners))[:, None] > 0
    if kind == "count":
        centre = np.where(part["centre"] < 0, len(shown.tags), part["centre"])
        color = np.array([*(list(COLORS).index(tag.color) for tag in shown.tags), -1])[centre]
        many, tags = (ids.index(special_words()[3][word]) for word in COUNTING)
        by_color = [(tags, head, ((color == head) & in_crops).ravel(), True) for head in range(len(COLORS))]
        return [
            (many, GUIDES[SEEING].index("thumbnail"), np.broadcast_to(~in_crops, color.shape).ravel(), False),
            *by_color,
        ]
    found = []
    for place, number in mentions(kind, ids, shown):
        mine = {name: at == number for name, at in part.items()}
        keys = (mine["tens"], mine["units"], mine["any"] & in_crops, mine["any"] & ~in_crops)
        found += [(place, head, wanted.ravel(), number is None) for head, wanted in enumerate(keys)]
    return found


def telling(kind: str, asked: list[int], answer: list[int], shown: Scene) -> list[tuple[int, int, int, int]]:
    """The first and the third hop: (token of the turn, layer, head, token to look at)."""
    colors, shapes, _, of_tags = special_words()
    names = [place for place, _ in mentions(kind, asked, shown)]
    if kind == "count":
        names = [asked.index(of_tags[word]) for word in COUNTING]
    found = [(place, NAMING, 0, place - 1) for place in names if asked[place] in shapes and asked[place - 1] in colors]
    for place in range(len(asked) - 1, len(asked) + len(answer) - 1):
        found += [(place, TELLING, 0, names[0]), (place, TELLING, 1, names[-1])]
    return found


def legible(number: int, kept: np.ndarray) -> bool:
    """Whether both digits of a tag or line are kept: nobody should learn to guess numbers.

    Args:
        number: Of the tag or line in its scene.
        kept: Owners of the tokens that are kept, (len(PARTS), tokens).
    """
    return all((kept[PARTS.index(digit)] == number).any() for digit in ("tens", "units"))


def can_be_told(kind: str, asked: list[int], shown: Scene, kept: np.ndarray) -> bool:
    """Whether a number that is asked for is legible, and something of every tag is there to be counted."""
    if kind == "count":
        return set(range(len(shown.tags))) <= set(kept[0].tolist())
    return kind not in ("read", "document") or all(legible(n, kept) for _, n in mentions(kind, asked, shown))


def facts(kind: str, asked: list[int], shown: Scene, kept: np.ndarray) -> list[tuple[int, list[int]]]:
    """(token of the question, what it should know in the order of KNOWN, IGNORE where there is nothing to know)."""
    if kind == "count":
        return [(asked.index(special_words()[3][word]), [*[IGNORE] * 4, len(shown.tags)]) for word in COUNTING]
    found = []
    for place, number in mentions(kind, asked, shown):
        if number is None:
            continue
        thing = shown.lines[number] if shown.lines else shown.tags[number]
        digits = divmod(thing.number, 10) if legible(number, kept) else (IGNORE, IGNORE)
        seen = [IGNORE, IGNORE]
        if not shown.lines:
            seen = [list(COLORS).index(thing.color), int(thing.x / shown.image.width * SIDE)]
        found.append((place, [*digits, *seen, IGNORE]))
    return found


class Pictures(Dataset):
    """Training step `first + index` as a `Batch`; the tower is frozen in the first `frozen` steps.

    A step has `pictures` pictures, fewer where all tokens are seen, and as many windows, views dense with tags and lines
    that only the tower learns from, once it does.
    """

    def __init__(self, frozen: int, steps: int, first: int = 0, seed: str = "decoder", pictures: int = 8):
        self.frozen, self.steps, self.first, self.seed, self.pictures = frozen, steps, first, seed, pictures

    def __len__(self) -> int:
        return self.steps - self.first

    def __getitem__(self, index: int) -> Batch:
        step = index + self.first
        rng = random.Random(f"{self.seed}-{step}")
        frozen = step < self.frozen
        everything = rng.random() < ALL_TOKENS[frozen]
        count = rng.choice(SIZES)
        grids = [grid for grid in GRIDS if count <= TOKENS * (1 + grid[0] * grid[1])]
        if everything:
            grids = rng.choices(GRIDS, GRID_WEIGHTS)
            count = len(packing(grids[0]))
        size = max(2, min(self.pictures, self.pictures * USUAL_TOKENS // (count + TURNS_TOKENS)))
        shown = [scene(f"{self.seed}-{step}-{number}", grids=tuple(grids)) for number in range(size)]
        windows = Windows(f"{self.seed}-windows", (step + 1) * self.pictures, step * self.pictures)
        views: list[Labelled] = []
        visual, texts, guided, knowing = [], [], [], []
        for picture, whole in enumerate(shown):
            own = [thumbnail(whole)]
            own += [crop(whole, row, col) for row in range(whole.grid[0]) for col in range(whole.grid[1])]
            owners = np.stack([view.owners.numpy() for view in own])
            slots = packing(whole.grid)
            seen = slots if everything else slots[some_places(slots, owners, rng, count)]
            newline = seen >= len(own) * TOKENS
            visual.append(np.where(newline, -1, seen + len(views) * TOKENS))
            views += own
            kept = owners.transpose(1, 0, 2).reshape(len(PARTS), -1)[:, seen[~newline]]
            turns = turns_about(rng, whole)
            segments = [(kind, tokenized(f"{q}<assistant>"), tokenized(f"{a}</s>")) for kind, q, a in turns]
            segments = [turn for turn in segments if can_be_told(*turn[:2], whole, kept)]
            texts.append(segments)
            start, text = 0, OPENING + len(seen)
            for kind, asked, answer in segments:
                for place, head, wanted, start_too in seeing(kind, asked, whole, owners):
                    keys = [0] if start_too else []
                    keys += (OPENING + np.flatnonzero(~newline & wanted[np.where(newline, 0, seen)])).tolist()
                    if keys:
                        guided.append(((picture, start + place, SEEING, head), keys))
                for place, layer, head, key in telling(kind, asked, answer, whole):
                    guided.append(((picture, start + place, layer, head), [text + start + key]))
                knowing += [((picture, start + place), known) for place, known in facts(kind, asked, whole, kept)]
                start += len(asked) + len(answer)
        views += [windows[number] for number in range(0 if frozen else self.pictures)]
        return collated(views, visual, texts, guided, knowing, everything)


@cache
def tokenized(text: str) -> list[int]:
    return tokenizer()(text, add_special_tokens=False).input_ids


def collated(views, visual, texts, guided, knowing, everything) -> Batch:
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
    targets = torch.zeros(len(guided), OPENING + len(visual[0]) + longest, dtype=torch.bool)
    for row, (_, keys) in enumerate(guided):
        targets[row, keys] = True
    stacked = Labelled(
        *(torch.stack([view[part] for view in views]) for part in range(3)),
        torch.tensor([view.things for view in views]),
        torch.stack([view.owners for view in views]),
    )
    return Batch(
        stacked,
        *(torch.from_numpy(np.stack(x)) for x in (visual, ids, labels, turn, place)),
        [[kind for kind, _, _ in segments] for segments in texts],
        torch.tensor([where for where, _ in guided]),
        targets,
        torch.tensor([where for where, _ in knowing]),
        torch.tensor([what for _, what in knowing]),
        everything,
    )
