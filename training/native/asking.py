"""What is asked about a picture, where its words should look and what they should know, as in `../mini/batches.py`.

There is no thumbnail here. `where` is new: the column and the row of the token that holds the centre. A picture's tokens
know them from their positions alone, two layers deep, so the word that names a tag looks at its centre once more in the
third layer, and the answer looks at the name again in the fourth.
"""

from __future__ import annotations

import random

import numpy as np

import batches
import questions
from batches import COUNTING, NAMING, SEEING, TELLING, TURNS, mentions, special_words, tokenized
from native.build import MOST, TOKEN, tokenizer
from questions import Asked
from scenes import COLORS, MOST_TAGS, Scene
from tower import IGNORE, PARTS

batches.tokenizer = tokenizer  # its functions, with this vocabulary

FREQUENCY = {"read": 4, "exists": 2, "count": 3, "color": 1.5, "left": 2.5, "largest": 1, "document": 4, "where": 4}
KINDS = tuple(FREQUENCY)
AGAIN = 3  # the layer in which answers about places look at names once more
LAYERS = (NAMING, SEEING, TELLING, AGAIN)
# What a word that names a tag or line, or counts tags, should know after the second layer, and how many classes there are.
KNOWN = {"tens": 10, "units": 10, "color": len(COLORS), "col": MOST, "row": MOST, "count": MOST_TAGS + 1}
# What the keys of a guided word are: tokens of the picture by what they show (the first four are PARTS), or a word.
CENTRE_COLOR, ANY_TOKEN, WORD = len(PARTS), len(PARTS) + 1, len(PARTS) + 2
Turn = tuple[str, list[int], list[int]]  # kind, tokens of the question, tokens of the answer
Hint = tuple[int, int, int, int, int, int]
"""Text token, layer, head, kind of keys, which of them (a thing, a color, a text token), whether <s> is a key too."""


def where(rng: random.Random, scene: Scene) -> Asked | None:
    if not scene.tags:
        return None
    tag = rng.choice(scene.tags)
    return "where", f"where is the {tag.name}?", f"{int(tag.x // TOKEN):02d} {int(tag.y // TOKEN):02d}"


def question(rng: random.Random, scene: Scene, kind: str) -> Asked | None:
    return where(rng, scene) if kind == "where" else questions.question(rng, scene, kind)


def turns_about(rng: random.Random, shown: Scene, kept: np.ndarray) -> list[Turn]:
    """Different questions that what is kept can answer, at most TURNS and at least one.

    Args:
        rng: Draws.
        shown: The picture.
        kept: Owners of the tokens that are kept, (len(PARTS), tokens).
    """
    kinds = rng.choices(KINDS, list(FREQUENCY.values()), k=3 * TURNS)
    asked = {q[1]: q for q in (question(rng, shown, kind) for kind in kinds) if q is not None}
    turns = [as_tokens(q) for q in list(asked.values())[:TURNS]]
    turns = [turn for turn in turns if can_be_told(turn, shown, kept)]
    while not turns:  # everything that was asked about is gone
        absent = question(rng, shown, "exists")
        turns = [as_tokens(absent)] if absent is not None and absent[2] == "no" else []
    return turns


def as_tokens(asked: Asked) -> Turn:
    kind, text, answer = asked
    return kind, tokenized(f"{text}<assistant>"), tokenized(f"{answer}</s>")


def can_be_told(turn: Turn, shown: Scene, kept: np.ndarray) -> bool:
    """Whether the answer is to be seen: nobody should learn to guess."""
    kind, asked, _ = turn
    if kind == "where":
        return all((kept[PARTS.index("centre")] == number).any() for _, number in mentions(kind, asked, shown))
    return batches.can_be_told(kind, asked, shown, kept)


def hints(turn: Turn, shown: Scene, start: int) -> list[Hint]:
    """Where the words of a turn should look; `start` is the text token that it starts with."""
    kind, asked, answer = turn
    named = mentions(kind, asked, shown)
    found = [(start + place, layer, head, WORD, start + key, 0) for place, layer, head, key in telling(turn, shown)]
    if kind == "count":
        many, tags = (start + asked.index(special_words()[3][word]) for word in COUNTING)
        found += [(tags, SEEING, head, CENTRE_COLOR, head, 1) for head in range(len(COLORS))]
        return [*found, (many, SEEING, 3, ANY_TOKEN, 0, 0)]
    for place, number in named:
        for head, part in enumerate(("tens", "units", "any", "centre")):
            # A word that names nothing in the picture looks at <s>.
            thing = number if number is not None else len(shown.tags) + len(shown.lines)
            found.append((start + place, SEEING, head, PARTS.index(part), thing, int(number is None)))
        if kind in ("where", "left") and number is not None:
            found.append((start + place, TELLING, 2, PARTS.index("centre"), number, 0))
    if kind in ("where", "left"):
        names = (named[0][0], named[-1][0])
        for place in range(start + len(asked) - 1, start + len(asked) + len(answer) - 1):
            found += [(place, AGAIN, head, WORD, start + name, 0) for head, name in enumerate(names)]
    return found


def telling(turn: Turn, shown: Scene) -> list[tuple[int, int, int, int]]:
    """The first and the third hop: (token of the turn, layer, head, token to look at)."""
    kind, asked, answer = turn
    return batches.telling(kind, asked, answer, shown)


def facts(turn: Turn, shown: Scene, kept: np.ndarray, start: int) -> list[list[int]]:
    """(text token, what it should know in the order of KNOWN, IGNORE where there is nothing to know)."""
    kind, asked, _ = turn
    if kind == "count":
        nothing = [IGNORE] * (len(KNOWN) - 1)
        words = (asked.index(special_words()[3][word]) for word in COUNTING)
        return [[start + word, *nothing, len(shown.tags)] for word in words]
    found = []
    for place, number in mentions(kind, asked, shown):
        if number is None:
            continue
        thing = shown.lines[number] if shown.lines else shown.tags[number]
        digits = divmod(thing.number, 10) if batches.legible(number, kept) else (IGNORE, IGNORE)
        seen = [IGNORE] * 3
        if not shown.lines:
            seen = [list(COLORS).index(thing.color), int(thing.x // TOKEN), int(thing.y // TOKEN)]
        found.append([start + place, *digits, *seen, IGNORE])
    return found
