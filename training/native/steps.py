"""What one training step sees, drawn by a worker: uint8 pictures and small integers, nothing that the device can make.

Every array of a step is a function of its seed. B pictures of one size, n tokens each, c of them kept, T text tokens.
"""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
from PIL import Image

from batches import TURNS
from native.asking import KINDS, KNOWN, LAYERS, Turn, facts, hints, turns_about
from native.build import tokenizer
from native.labels import owned, padded
from native.pictures import PHOTOS, crowded, decoder_size, tower_size, usual
from scenes import Scene
from tower import PARTS

Arrays = dict[str, np.ndarray]
ALL_TOKENS = 0.4  # share of the decoder's steps that see all tokens
SIZES = (12, 20, 32, 48, 72, 104, 150)  # tokens kept of a picture in the other steps
# Powers of ten between which the weights of background and of things are drawn where tokens are dropped.
POWERS = ((-2, 1), (-1, 2))
USUAL_TOKENS, TURNS_TOKENS = 300, 150  # of a picture with its turns, and of the turns; longer ones are fewer in a step
LARGE_TOKENS = 400  # of a picture for the tower; of larger ones a step has fewer
SMALL = 0.1  # share of the tower's steps that see pictures at a half or a third of their size, as a guide is seen
CROWDED = 0.6  # share of the others that are dense


def tower_step(seed: str, tokens: int) -> Arrays:
    """Pictures of one size of about `tokens` tokens in all: `images` (B, height, width, 3) px, and what `owned` returns."""
    rng = random.Random(seed)
    size, scale, draw = tower_size(rng), 1, crowded if rng.random() < CROWDED else usual
    if rng.random() < SMALL:
        scale, draw = rng.choice((2, 3)), usual
        size = rng.randint(3, 24 // scale), rng.randint(3, 24 // scale)
    full = size[0] * scale, size[1] * scale
    scenes = [draw(f"{seed}-{n}", full) for n in range(max(4, round(tokens / (size[0] * size[1]))))]
    return pictured(scenes, scale)


def pictured(scenes: list[Scene], scale: int = 1) -> Arrays:
    """Images and what their tokens show; a picture is drawn `scale` times smaller than its scene."""
    images = [shown.image for shown in scenes]
    if scale > 1:
        smaller = (images[0].width // scale, images[0].height // scale)
        images = [image.resize(smaller, Image.Resampling.BICUBIC) for image in images]
        scenes = [replace(shown, image=image) for shown, image in zip(scenes, images, strict=True)]
    owners, tables, around = zip(*(owned(shown, scale) for shown in scenes), strict=True)
    return {
        "images": np.stack([np.asarray(image) for image in images]),
        "owners": np.stack(owners).reshape(len(scenes), len(PARTS), -1),
        "things": padded(list(tables)),
        "around": np.array(around, np.int8),
    }


def decoder_step(seed: str, pictures: int, photos: tuple[str, ...] = PHOTOS, everything: bool | None = None) -> Arrays:
    """At most `pictures` pictures with turns about them; without `everything` it is drawn whether all tokens are seen."""
    rng = random.Random(seed)
    size = decoder_size(rng)
    tokens = size[0] * size[1]
    if everything is None:
        everything = rng.random() < ALL_TOKENS
    count = tokens if everything else min(rng.choice(SIZES), tokens)
    many = min(pictures, pictures * USUAL_TOKENS // (count + TURNS_TOKENS), pictures * LARGE_TOKENS // tokens)
    many = max(2, many)
    scenes = [usual(f"{seed}-{n}", size, photos=photos) for n in range(many)]
    arrays = pictured(scenes)
    visual, texts, guided, knowing = [], [], [], []
    for picture, (shown, owners) in enumerate(zip(scenes, arrays["owners"], strict=True)):
        seen = np.arange(tokens) if count == tokens else some_tokens(owners, rng, count)
        turns = turns_about(rng, shown, owners[:, seen])
        start = 0
        for turn in turns:
            guided += [(picture, *hint) for hint in hints(turn, shown, start)]
            knowing += [(picture, *fact) for fact in facts(turn, shown, owners[:, seen], start)]
            start += len(turn[1]) + len(turn[2])
        visual.append(seen)
        texts.append(turns)
    arrays |= {"visual": np.stack(visual).astype(np.int16), **written(texts), **by_layer(guided)}
    arrays["knowing"] = np.array(knowing, np.int16).reshape(-1, 2 + len(KNOWN))
    arrays["size"] = np.array((*size, count == tokens), np.int16)
    return arrays


def some_tokens(owners: np.ndarray, rng: random.Random, count: int) -> np.ndarray:
    """`count` tokens of a picture, ascending: of most things the digits and mostly the centres, and others at random.

    How much there is of things and of background differs widely from picture to picture, so that an answer, a count above
    all, cannot hang on what else was kept.

    Args:
        owners: int8 (len(PARTS), tokens).
        rng: Draws.
        count: At most the number of tokens.
    """
    there = rng.choice((0.95, 0.95, 0.95, 0.6))
    things = [number for number in range(owners.max() + 1) if rng.random() < there]
    sure = owners[1:] if rng.random() < 0.8 else owners[1:-1]  # without centres, the last of PARTS
    needed = np.isin(sure, things).any(0)
    # Weighted draws without replacement: the largest keys log(u) / weight (Efraimidis and Spirakis, 2006).
    weight = np.array([10 ** rng.uniform(*powers) for powers in POWERS])[np.isin(owners[0], things).astype(int)]
    draws = np.random.default_rng(rng.getrandbits(64)).random((2, owners.shape[1]))
    keys = np.where(needed, draws[1], np.log(draws[0]) / weight)
    return np.sort(np.argsort(-keys)[:count])


def written(texts: list[list[Turn]]) -> Arrays:
    """uint8 (B, T): `ids` of the turns one after the other, `answer` where they are to be learnt, `place` within the turn;
    int8 (B, T) `turn`, -1 for padding; int8 (B, TURNS) `kinds`, -1 where there is no turn."""
    longest = max(sum(len(asked) + len(answer) for _, asked, answer in turns) for turns in texts)
    shape = (len(texts), -(-longest // 16) * 16)
    ids, answers = np.full(shape, tokenizer().pad_token_id, np.uint8), np.zeros(shape, np.uint8)
    number, place = np.full(shape, -1, np.int8), np.zeros(shape, np.uint8)
    kinds = np.full((len(texts), TURNS), -1, np.int8)
    for row, turns in enumerate(texts):
        start = 0
        for turn, (kind, asked, answer) in enumerate(turns):
            stop = start + len(asked) + len(answer)
            ids[row, start:stop], answers[row, start + len(asked) : stop] = asked + answer, 1
            number[row, start:stop], place[row, start:stop] = turn, np.arange(stop - start)
            kinds[row, turn] = KINDS.index(kind)
            start = stop
    return {"ids": ids, "answer": answers, "turn": number, "place": place, "kinds": kinds}


def by_layer(guided: list[tuple[int, ...]]) -> Arrays:
    """int16 (R, 7) `guided`: picture and hint, ordered by layer, and `guided_of`, how many each of LAYERS has."""
    rows = np.array(guided, np.int16)
    rows = rows[np.argsort(rows[:, 2], kind="stable")]
    return {"guided": rows, "guided_of": np.bincount(rows[:, 2], minlength=len(LAYERS)).astype(np.int16)}
