"""Rows and columns that embeddings carry, and how vLLM's plugin numbers short prompts: as transformers numbers the full ones."""

from dataclasses import dataclass

import pytest
import torch

from families.native import NATIVE
from globalcom2.integrations.vllm.places import DIGITS, numbered, with_places, without_places

SIZES = ((12, 3), (4, 9), (30, 5))
"""Rows and columns in tokens: portrait, landscape, portrait."""


@dataclass(frozen=True)
class Place:
    offset: int
    length: int
    is_embed: torch.Tensor | None = None


@dataclass(frozen=True)
class Feature:
    mm_position: Place
    size: tuple[int, int]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_and_columns_come_back_exactly(dtype):
    """Of images of more tokens than bfloat16 counts."""
    for rows, cols in ((3, 700), (700, 3), (257, 256), (1, 1)):
        places = torch.arange(rows * cols)[:: max(1, rows * cols // 500)]
        run = torch.randn(len(places), 5).to(dtype)
        wide = with_places(run, places, cols)
        assert wide.dtype == dtype
        assert wide.shape == (len(places), 5 + DIGITS)
        embedding, inside = without_places(wide, 5)
        assert torch.equal(embedding, run)
        assert torch.equal(inside, torch.stack([places // cols, places % cols]))


def test_embeddings_without_digits_are_at_no_row_and_column():
    run = torch.randn(4, 5)
    embedding, inside = without_places(run, 5)
    assert embedding is run
    assert inside.tolist() == [[0] * 4] * 2


def prompt_of(model, keep=1.0, seed=0):
    """Ids of a full prompt with three images between text, and which of its tokens stay."""
    image, ids, stays = model.config.image_token_id, [], []
    generator = torch.Generator().manual_seed(seed)
    for number, (rows, cols) in enumerate(SIZES):
        ids += [5 + number] * (number + 2) + [image] * rows * cols
        kept = torch.rand(rows * cols, generator=generator) < keep
        kept[0] = True
        stays += [True] * (number + 2) + kept.tolist()
    return torch.tensor(ids + [9] * 4), torch.tensor(stays + [True] * 4)


@pytest.mark.parametrize("keep", [0.05, 0.4])
@pytest.mark.parametrize("whole_one", [None, 1])
def test_a_short_prompt_has_the_positions_of_the_full_one(keep, whole_one):
    """What is known before the tower runs, with rows and columns added: gathered positions. One image may keep everything."""
    model = NATIVE["qwen2_5_vl"]().model.base_model
    image = model.config.image_token_id
    ids, stays = prompt_of(model, keep)
    runs = (ids == image).nonzero().flatten().split([rows * cols for rows, cols in SIZES])
    if whole_one is not None:
        stays[runs[whole_one]] = True
    full = transformers_numbers(model, ids)
    short, features, inside = ids[stays], [], torch.zeros(2, len(ids), dtype=torch.long)
    for number, (run, (rows, cols)) in enumerate(zip(runs, SIZES, strict=True)):
        start, length = int(stays[: run[0]].sum()), int(stays[run].sum())
        embeds = torch.ones(length, dtype=torch.bool)
        features.append(Feature(Place(start, length, embeds), (0, 0) if number == whole_one else (rows, cols)))
        if number != whole_one:
            inside[:, run] = torch.stack([torch.arange(rows * cols) // cols, torch.arange(rows * cols) % cols])

    def whole(tokens, moved):
        assert tokens == ids.tolist()
        assert [one.mm_position.offset for one in moved] == [int(run[0]) for run in runs]
        assert [one.mm_position.length for one in moved] == [len(run) for run in runs]
        return full, int(full.max()) + 1 - len(tokens)

    def count(feature):
        return feature.size[0] * feature.size[1] or None

    # In any order: vLLM's list need not be sorted.
    positions, delta = numbered(short.tolist(), features[::-1], count, whole)
    assert torch.equal(positions[:1], full[:1, stays])
    assert torch.equal(positions[1:] + inside[:, stays], full[1:, stays])
    assert delta + len(short) == int(full.max()) + 1


def transformers_numbers(model, ids):
    """Positions (3, tokens) by the model's own code."""
    grids = torch.tensor([[1, 2 * rows, 2 * cols] for rows, cols in SIZES])
    types = (ids == model.config.image_token_id).int()[None]
    return model.get_rope_index(ids[None], mm_token_type_ids=types, image_grid_thw=grids)[0][:, 0]


def test_a_prompt_of_text_alone_is_left_alone():
    positions = torch.arange(5).expand(3, -1)
    found, delta = numbered([7, 8, 9, 7, 8], [], lambda feature: None, lambda tokens, features: (positions, 0))
    assert torch.equal(found, positions)
    assert delta == 0
