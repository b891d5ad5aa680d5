"""What a cache remembers maps the caller's conversation to the short prompt, number by number, on memories made by hand."""

import random
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from globalcom2 import InputError
from globalcom2.hf.cache import Memory
from globalcom2.hf.prompt import shorten

PAD = 99


class Talk(NamedTuple):
    """Prompts that were shortened, as nested lists; `keeps` tells of every place whether it is a token that stayed."""

    ids: list
    mask: list
    keeps: list
    memory: Memory

    def tokens(self, original):
        """Tokens of each prompt whose positions come before the next one's."""
        return [sum(row) for row in (self.mask if original else self.keeps)]


def talk(seed, original=False):
    """Left-padded prompts with random tokens dropped, and a memory whose numbers are counted one by one."""
    rng = random.Random(seed)
    long, ids, mask, keeps, positions = rng.randint(4, 9), [], [], [], []
    for _ in range(rng.randint(1, 3)):
        left = rng.randint(0, long - 3)
        ids.append([PAD] * left + [rng.randint(0, 9) for _ in range(long - left)])
        mask.append([0] * left + [1] * (long - left))
        keeps.append([m and (n == long - 1 or rng.random() < 0.5) for n, m in enumerate(mask[-1])])
        counted = mask[-1] if original else keeps[-1]
        positions.append([sum(counted[:n]) for n in range(long) if keeps[-1][n]])
    longest = max(map(len, positions))
    filled = [[0] * (longest - len(row)) + [1] * len(row) for row in positions]
    memory = Memory(
        length=long,
        prompt=shorten(torch.tensor(ids), torch.tensor(mask), torch.tensor(keeps).bool(), PAD),
        attention_mask=torch.tensor(filled),
        position_ids=torch.tensor([[0] * (longest - len(row)) + row for row in positions]),
        dropped=torch.tensor([sum(m) - sum(k) for m, k in zip(mask, keeps, strict=True)]),
        original_positions=original,
        last=torch.tensor([[sum(m if original else k) - 1] for m, k in zip(mask, keeps, strict=True)]),
        ends=torch.ones(len(ids), dtype=torch.bool),
    )
    return Talk(ids, mask, [[bool(k) for k in row] for row in keeps], memory)


def short_ids(made):
    rows = [[x for x, k in zip(*pair, strict=True) if k] for pair in zip(made.ids, made.keeps, strict=True)]
    return [[PAD] * (max(map(len, rows)) - len(row)) + row for row in rows]


def joined(*parts):
    """Lists of rows side by side, as a tensor."""
    return torch.tensor([[x for row in rows for x in row] for rows in zip(*parts, strict=True)])


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("given", ["nothing", "mask", "positions", "both"])
@pytest.mark.parametrize("seed", range(6))
def test_a_conversation_goes_on(seed, given, original):
    made, rng = talk(seed, original), random.Random(seed)
    new = rng.randint(1, 4)
    tail = [[rng.randint(0, 9) for _ in range(new)] for _ in made.ids]
    shown = [[1] * new for _ in made.ids]
    call = {"input_ids": joined(made.ids, tail), "other": "stays"}
    if given in ("mask", "both"):
        call["attention_mask"] = joined(made.mask, shown)
    if given in ("positions", "both"):
        real = [row + [1] * new for row in made.mask]
        call["position_ids"] = torch.tensor([[sum(row[:n]) for n in range(len(row))] for row in real])
    before = {name: value.clone() for name, value in call.items() if name != "other"}
    got = made.memory.continued_prompt(call)
    filled = made.memory.attention_mask.tolist()
    assert got["input_ids"].tolist() == joined(short_ids(made), tail).tolist()
    assert got["attention_mask"].tolist() == joined(filled, shown).tolist()
    assert got["other"] == "stays"
    if given in ("positions", "both") or original:
        follow = [[count + n for n in range(new)] for count in made.tokens(original)]
        assert got["position_ids"].tolist() == joined(made.memory.position_ids.tolist(), follow).tolist()
    else:
        assert "position_ids" not in got  # transformers counts the mask
    assert all(torch.equal(call[name], value) for name, value in before.items()), "the caller's tensors are not touched"


def test_original_positions_count_what_the_mask_of_the_new_tokens_shows():
    made = talk(1, original=True)
    shown = [[1, 0, 1] for _ in made.ids]
    call = {"input_ids": joined(made.ids, [[1, 2, 3] for _ in made.ids]), "attention_mask": joined(made.mask, shown)}
    got = made.memory.continued_prompt(call)["position_ids"][:, -3:].tolist()
    assert [(row[0], row[2]) for row in got] == [(count, count + 1) for count in made.tokens(True)]


def test_another_conversation_is_refused():
    made = talk(2)
    for ids in (made.ids, [[*row[:-1], 55, 1] for row in made.ids], [row[1:] for row in made.ids]):
        with pytest.raises(InputError, match=f"must begin with the {made.memory.length} tokens"):
            made.memory.continued_prompt({"input_ids": torch.tensor(ids)})
    for pixels in ("pixel_values", "pixel_values_videos"):
        for proceed in (made.memory.continued_prompt, lambda call: made.memory.continued_step(call, 9)):
            with pytest.raises(InputError, match="continued, got new images"):
                proceed({"input_ids": joined(made.ids, made.ids), pixels: torch.zeros(1)})


def test_a_dropped_token_may_be_another_one():
    """The cache does not hold it, so nothing can tell."""
    made = talk(3)
    other = [
        [x if k or not m else 77 for x, m, k in zip(*rows, strict=True)]
        for rows in zip(made.ids, made.mask, made.keeps, strict=True)
    ]
    assert other != made.ids
    got = made.memory.continued_prompt({"input_ids": joined(other, [[1]] * len(other))})
    assert got["input_ids"].tolist() == joined(short_ids(made), [[1]] * len(other)).tolist()


def test_ids_that_a_direct_call_found_in_its_cache_are_taken_from_the_conversation():
    ids, mask = torch.tensor([[0, 0, 5, 6, 7]]), torch.ones(1, 5, dtype=torch.long)
    wanted = torch.tensor([[True, True, False, True, True]])
    prompt = shorten(ids, mask, wanted, PAD, fixed=2)
    ones = torch.ones(1, 4, dtype=torch.long)
    last, ends = torch.tensor([[3]]), torch.tensor([True])
    memory = Memory(5, prompt, ones, torch.arange(4)[None], torch.tensor([1]), False, last, ends, unknown=2)
    whole = torch.tensor([[3, 4, 5, 6, 7, 8]])
    assert memory.continued_prompt({"input_ids": whole})["input_ids"].tolist() == [[3, 4, 6, 7, 8]]
    with pytest.raises(InputError, match="must begin with"):
        replace(memory, unknown=0).continued_prompt({"input_ids": whole})


@pytest.mark.parametrize("original", [False, True])
@pytest.mark.parametrize("given", ["nothing", "full mask", "short mask", "positions", "full mask and positions"])
@pytest.mark.parametrize("seed", range(6))
def test_a_direct_call_goes_on(seed, given, original):
    made, rng = talk(seed, original), random.Random(seed)
    since, new = rng.randint(0, 3), rng.randint(1, 3)
    count, filled = since + new, made.memory.attention_mask.tolist()
    shown = [[1] * count for _ in made.ids]
    call = {"input_ids": torch.tensor([[rng.randint(0, 9) for _ in range(new)] for _ in made.ids]), "other": "stays"}
    ids = call["input_ids"].clone()
    if "full mask" in given:
        call["attention_mask"] = joined(made.mask, shown)
    if given == "short mask":
        call["attention_mask"] = joined(filled, shown)
    if "positions" in given:
        call["position_ids"] = torch.tensor([[sum(row) + since + n for n in range(new)] for row in made.mask])
    got = made.memory.continued_step(call, made.memory.short + since)
    assert torch.equal(got["input_ids"], ids)
    assert got["other"] == "stays"
    assert got["attention_mask"].tolist() == joined(filled, shown).tolist()
    assert got["position_ids"].tolist() == [
        [tokens + since + n for n in range(new)] for tokens in made.tokens(original)
    ]


def test_masks_of_direct_calls():
    made = talk(5)
    rows, short = len(made.ids), made.memory.short
    call = {"input_ids": torch.ones(rows, 2, dtype=torch.long)}
    for length in (2, made.memory.length + 1, made.memory.length + 3):
        assert length != short + 2
        mask = torch.ones(rows, length, dtype=torch.long)
        with pytest.raises(InputError, match=rf"cover the {made.memory.length + 2} tokens so far, got {length}\."):
            made.memory.continued_step({**call, "attention_mask": mask}, short)
    biased = torch.zeros(rows, 1, 2, short + 2)
    assert made.memory.continued_step({**call, "attention_mask": biased}, short)["attention_mask"] is biased
