"""Prompts are shortened as a loop over rows and tokens would do it: which tokens stay, where, and what goes with them."""

import random

import pytest
import torch

from globalcom2.hf.positions import original_positions
from globalcom2.hf.prompt import shorten

PAD = 99


def batch(seed, *, masked=True):
    """Random ids, a mask with padding anywhere in a row, and wanted tokens, as nested lists."""
    rng = random.Random(seed)
    rows, long = rng.randint(1, 4), rng.randint(1, 9)
    ids = [[rng.randint(0, 9) for _ in range(long)] for _ in range(rows)]
    shown, wish = rng.choice([0.3, 0.7, 1.0]), rng.choice([0.0, 0.4, 0.8, 1.0])
    mask = [[int(rng.random() < shown) if masked else 1 for _ in range(long)] for _ in range(rows)]
    return ids, mask, [[rng.random() < wish for _ in range(long)] for _ in range(rows)]


def columns(mask, wanted, fixed):
    """Row by row: which columns of the caller's prompt stand in the short one; None on new padding."""
    rows = []
    for present, wish in zip(mask, wanted, strict=True):
        end = max((n for n, shown in enumerate(present) if shown), default=None)
        stay = [n for n in range(fixed, len(present)) if (present[n] and wish[n]) or (end is not None and n > end)]
        rows.append(stay)
    longest = max(map(len, rows))
    return [[*range(fixed), *[None] * (longest - len(stay)), *stay] for stay in rows]


def by_hand(values, places, fill):
    return [[fill if n is None else row[n] for n in own] for row, own in zip(values, places, strict=True)]


@pytest.mark.parametrize("seed", range(60))
def test_shortening(seed):
    ids, mask, wanted = batch(seed)
    fixed = random.Random(seed).randint(0, len(ids[0])) if seed % 2 else 0
    places = columns(mask, wanted, fixed)
    short = shorten(torch.tensor(ids), torch.tensor(mask), torch.tensor(wanted), PAD, fixed)
    real = by_hand(mask, places, 0)
    expected = by_hand(ids, places, PAD)
    for row, own in enumerate(real):
        expected[row][fixed:] = [x if m else PAD for x, m in zip(expected[row], own, strict=True)][fixed:]
    assert short.input_ids.tolist() == expected
    assert short.attention_mask.tolist() == real
    assert short.real.tolist() == [[bool(m) for m in row] for row in real]
    assert short.placed.tolist() == [[n is not None for n in row] for row in places]
    index = by_hand([list(range(len(ids[0])))] * len(ids), places, None)
    got = short.index.tolist()
    assert all(w in (None, g) for row, own in zip(index, got, strict=True) for w, g in zip(row, own, strict=True))
    assert all(0 <= n < len(ids[0]) for row in got for n in row)


@pytest.mark.parametrize("seed", range(20))
def test_without_a_mask(seed):
    """Every token is there, so only new padding needs a mask."""
    ids, mask, wanted = batch(seed, masked=False)
    places = columns(mask, wanted, 0)
    short = shorten(torch.tensor(ids), None, torch.tensor(wanted), PAD)
    assert short.input_ids.tolist() == by_hand(ids, places, PAD)
    new = by_hand(mask, places, 0)
    if all(all(row) for row in new):
        assert short.attention_mask is None
    else:
        assert short.attention_mask.tolist() == new


def test_a_mask_keeps_its_values_and_type():
    """Packed batches number their samples in the mask."""
    mask = torch.tensor([[0, 1, 1, 2, 2], [3, 3, 3, 1, 0]], dtype=torch.int32)
    wanted = torch.tensor([[True, True, False, True, True], [False, True, False, True, True]])
    short = shorten(torch.arange(10).view(2, 5), mask, wanted, PAD)
    assert short.attention_mask.tolist() == [[1, 2, 2], [3, 1, 0]]
    assert short.attention_mask.dtype == torch.int32
    assert short.input_ids.tolist() == [[1, 3, 4], [6, 8, PAD]]


@pytest.mark.parametrize("seed", range(30))
def test_aligned_tensors_are_cut_in_step(seed):
    ids, mask, wanted = batch(seed)
    places = columns(mask, wanted, 0)
    short = shorten(torch.tensor(ids), torch.tensor(mask), torch.tensor(wanted), PAD)
    real = by_hand(mask, places, 0)
    rng = random.Random(seed)
    layers = [[[rng.randint(0, 99) for _ in row] for row in ids] for _ in range(3)]
    expected = [
        [
            [x if m else -100 for x, m in zip(row, own, strict=True)]
            for row, own in zip(by_hand(values, places, -100), real, strict=True)
        ]
        for values in layers
    ]
    assert short.gather(torch.tensor(layers), -100).tolist() == expected
    assert short.gather(torch.tensor(layers[0]), -100).tolist() == expected[0]


@pytest.mark.parametrize("seed", range(30))
def test_values_of_the_following_token_go_to_the_place_before_it(seed):
    """A value that belongs to a dropped token goes with it. What stands at a row's last token stays there.

    Padding before a row's first token holds that token's value.
    """
    rng = random.Random(seed)
    long, ids, mask, wanted = rng.randint(1, 8), [], [], []
    for _ in range(3):  # padding at the ends alone
        left = rng.randint(0, long - 1)
        right = rng.randint(0, long - 1 - left)
        mask.append([0] * left + [1] * (long - left - right) + [0] * right)
        wanted.append([rng.random() < 0.6 for _ in range(long)])
        ids.append([rng.randint(0, 9) for _ in range(long)])
    values = [[10 * row + n for n in range(long)] for row in range(3)]
    expected = []
    for row, own in enumerate(columns(mask, wanted, 0)):
        kept = [(here, n) for here, n in enumerate(own) if n is not None and mask[row][n]]
        out = [-1] * len(own)
        for here, n in kept:
            out[here] = values[row][n]
        for here, n in kept:
            if here and n:
                out[here - 1] = values[row][n - 1]
        expected.append(out)
    short = shorten(torch.tensor(ids), torch.tensor(mask), torch.tensor(wanted), PAD)
    assert short.gather_shifted(torch.tensor(values), -1).tolist() == expected


def test_the_prompt_after_its_fixed_columns():
    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    wanted = torch.tensor([[True, True, False, True, False, True], [True] * 6])
    short = shorten(ids, mask, wanted, PAD, fixed=2)
    rest = short.after(2)
    assert short.input_ids.tolist() == [[0, 1, PAD, PAD, 3, 5], [6, 7, 8, 9, 10, PAD]]
    assert rest.input_ids.tolist() == [[PAD, PAD, 3, 5], [8, 9, 10, PAD]]
    assert rest.attention_mask.tolist() == [[0, 0, 1, 1], [1, 1, 1, 0]]
    assert rest.gather(ids[:, 2:], -1).tolist() == [[-1, -1, 3, 5], [8, 9, 10, -1]]
    assert rest.placed.tolist() == [[False, False, True, True], [True, True, True, True]]
    assert short.after(0) is short


@pytest.mark.parametrize("seed", range(10))
def test_positions_of_an_uncompressed_call_count_the_tokens_before(seed):
    _, mask, _ = batch(seed)
    mask = [[2 * m for m in row] for row in mask]  # only zero means padding
    expected = [[max(0, sum(map(bool, row[: n + 1])) - 1) for n in range(len(row))] for row in mask]
    assert original_positions(torch.tensor(mask)).tolist() == expected
