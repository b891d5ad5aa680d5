"""Shows on a CPU that training computes what transformers' own classes compute, and that hints mean what they say.

python -m native.prove          in the folder training; about a minute
"""

from __future__ import annotations

import mmap

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from batches import SEEING
from native.asking import ANY_TOKEN, CENTRE_COLOR, WORD
from native.build import END, IMAGE, TOKEN, image_processor, model, processor, tokenizer
from native.decoder import BEFORE, OPENING, Read, guidance, positions, read
from native.feed import SLOT, Batch, packed, unpacked
from native.steps import Arrays, decoder_step
from native.tower import features
from scenes import COLORS

CLOSE = 2e-5
PROMPT = "<s><user><|vision_start|><|image_pad|><|vision_end|>"


def batch_of(arrays: Arrays) -> Batch:
    """As the feed hands it over."""
    slot = mmap.mmap(-1, SLOT)
    layout, used = packed(arrays, slot)
    host = np.frombuffer(slot, np.uint8)[:used]
    return unpacked(layout, host, torch.from_numpy(host.copy()))


def check_tower(made: torch.nn.Module) -> float:
    """Pictures through Qwen's image processor and transformers' tower, against the batched tower."""
    worst = 0.0
    for rows, cols in ((7, 7), (10, 13), (21, 14), (6, 9), (16, 28), (20, 8)):
        images = torch.randint(0, 256, (2, rows * TOKEN, cols * TOKEN, 3), dtype=torch.uint8)
        inputs = image_processor()(images=[Image.fromarray(image.numpy()) for image in images], return_tensors="pt")
        theirs = made.model.visual(inputs.pixel_values, grid_thw=inputs.image_grid_thw).pooler_output
        worst = max(worst, (theirs - features(made.model.visual, images).flatten(0, 1)).abs().max().item())
    return worst


def alone(made: torch.nn.Module, image: Image.Image, ids: list[int]) -> Tensor:
    """Logits of one turn after the whole prompt, with the positions that transformers gives it."""
    inputs = processor()(text=PROMPT, images=image, return_tensors="pt")
    inputs["input_ids"] = torch.cat([inputs.input_ids, torch.tensor([ids])], 1)
    inputs["attention_mask"] = torch.ones_like(inputs.input_ids)
    inputs["mm_token_type_ids"] = (inputs.input_ids == tokenizer().convert_tokens_to_ids(IMAGE)).int()
    return made(**inputs).logits[0, -len(ids) - 1 : -1]


def cut(made: torch.nn.Module, size: tuple[int, int], tokens: Tensor, seen: Tensor, ids: list[int]) -> Tensor:
    """Logits of one turn where some of a picture's tokens were cut out by hand."""
    embed, words = made.get_input_embeddings(), tokenizer().convert_tokens_to_ids
    opening, closing = (torch.tensor(words(list(some))) for some in (OPENING, (END,)))
    parts = [embed(opening), tokens[seen], embed(closing), embed(torch.tensor(ids))]
    places = positions(size, seen[None], torch.arange(len(ids))[None])
    mask = torch.ones(1, places.shape[-1], dtype=torch.long)
    out = made(inputs_embeds=torch.cat(parts)[None], position_ids=places, attention_mask=mask)
    return out.logits[0, -len(ids) - 1 : -1]


def check_turns(made: torch.nn.Module, seed: str, everything: bool) -> float:
    arrays = decoder_step(seed, 3, everything=everything)
    batch = batch_of(arrays)
    size = tuple(batch.numbers["size"][:2])
    tokens = features(made.model.visual, batch.arrays["images"])
    found, worst = read(made, batch, tokens), 0.0
    for row in range(len(tokens)):
        for turn in range((arrays["kinds"][row] >= 0).sum()):
            mine = torch.from_numpy(arrays["turn"][row] == turn)
            ids = arrays["ids"][row][mine.numpy()].tolist()
            if everything:
                wanted = alone(made, Image.fromarray(arrays["images"][row]), ids)
            else:
                wanted = cut(made, size, tokens[row], batch.arrays["visual"][row].long(), ids)
            # A turn's first token follows the picture when it is asked alone; it is never learnt.
            worst = max(worst, (found.logits[row][mine] - wanted)[1:].abs().max().item())
    return worst


def keys_of(arrays: Arrays, row: np.ndarray, length: int) -> list[int]:
    """What a guided word should look at, read from its hint one key after the other."""
    picture, _, _, _, kind, which, start = row.tolist()
    keys = [0] if start else []
    owners, things = arrays["owners"][picture], arrays["things"][picture]
    for place, token in enumerate(arrays["visual"][picture]):
        centre = owners[3, token]
        mine = kind == ANY_TOKEN
        if kind == CENTRE_COLOR:
            mine = centre >= 0 and things[centre, 0] == which
        elif kind < CENTRE_COLOR:
            mine = owners[kind, token] == which
        if mine:
            keys.append(BEFORE + place)
    if kind == WORD:
        keys.append(length - arrays["ids"].shape[1] + which)
    return keys


def check_guidance(seed: str) -> float:
    """The loss of guided heads on random attention, against a sum over hints."""
    arrays = decoder_step(seed, 4, everything=False)
    batch = batch_of(arrays)
    texts = arrays["ids"].shape[1]
    shape = (len(arrays["images"]), len(COLORS), texts, BEFORE + arrays["visual"].shape[1] + 1 + texts)
    seen = [torch.randn(shape).softmax(-1) for _ in range(4)]
    mine, share = guidance(Read(torch.zeros(shape[0], texts, 1), seen, []), batch)
    losses, masses = [], []
    for row in arrays["guided"]:
        picture, word, layer, head, _, _, start = row.tolist()
        keys = keys_of(arrays, row, shape[-1])
        if not keys:
            continue
        attention = seen[layer][picture, head, word][keys]
        losses.append(-attention.log().mean() if start else -attention.sum().log())
        if layer == SEEING and not start:
            masses.append(attention.sum())
    there = torch.stack(losses).mean(), torch.stack(masses).mean()
    return max((mine - there[0]).abs().item(), (share - there[1]).abs().item())


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    made = model().eval()
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)  # so that attention is not nearly even
    found = {"tower": check_tower(made)}
    for seed in ("one", "two", "three"):
        found[f"turns, all tokens, {seed}"] = check_turns(made, seed, True)
        found[f"turns, some tokens, {seed}"] = check_turns(made, seed, False)
        found[f"guidance, {seed}"] = check_guidance(seed)
    for name, worst in found.items():
        print(f"{name}: differs by {worst:.1e} at most")
    if max(found.values()) > CLOSE:
        raise SystemExit("training does not compute what the model does")


if __name__ == "__main__":
    main()
