"""Where kept tokens stand: how embeddings carry row and column, and how a short prompt is numbered by them (M-RoPE).

Kept tokens have the positions that they have in the full prompt, as in transformers. Those of text follow from the images'
sizes, so they are known before any tower runs. Those of an image's tokens follow from which are kept. Knows no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

BASE = 256
"""Of the digits of rows and columns: the largest base whose digits bfloat16 has exactly."""
DIGITS = 4
"""Channels that the embeddings of a short run have more: two digits of the row, two of the column."""


def with_places(run: Tensor, places: Tensor, cols: int) -> Tensor:
    """Embeddings (tokens, dim) with the digits of their rows and columns behind: (tokens, dim + DIGITS).

    Args:
        run: Embeddings of tokens of one image.
        places: Their numbers in the image, row by row, int (tokens,), on the device of `run`.
        cols: Columns of the image.
    """
    parts = (places // cols, places % cols)
    digits = [digit for part in parts for digit in (part // BASE, part % BASE)]
    return torch.cat([run, torch.stack(digits, 1).to(run)], 1)


def without_places(embedding: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Undo `with_places`: embeddings (tokens, dim), and rows and columns, int64 (2, tokens); 0 where there were none."""
    if embedding.shape[1] == dim:
        return embedding, embedding.new_zeros(2, len(embedding), dtype=torch.long)
    high_row, row, high_col, col = embedding[:, dim:].long().unbind(1)
    return embedding[:, :dim], torch.stack([high_row * BASE + row, high_col * BASE + col])


def numbered(
    tokens: Sequence[int],
    features: Sequence[Any],
    count: Callable[[Any], int | None],
    whole: Callable[[list[int], list[Any]], tuple[Tensor, int]],
) -> tuple[Tensor, int]:
    """Positions of a prompt with short runs: those of the full prompt. Tokens of a short run have where their image begins.

    Args:
        tokens: The prompt's ids.
        features: What stands in it, as vLLM's `MultiModalFeatureSpec`.
        count: How many tokens a feature with a short run has in the full prompt; None for others.
        whole: vLLM's own numbering, of the full prompt.

    Returns:
        int64 (3, tokens), and the next position less the number of tokens.
    """
    full: list[int] = []
    columns: list[int] = []  # of the full prompt, one for each token of this one
    moved: list[Any] = []
    at = 0
    for feature in sorted(features, key=lambda own: own.mm_position.offset):
        where = feature.mm_position
        start, end = where.offset, where.offset + where.length
        columns += range(len(full), len(full) + start - at)
        full += tokens[at:start]
        here, tall = len(full), count(feature)
        if tall is None:
            columns += range(here, here + where.length)
            full += tokens[start:end]
            moved.append(replace(feature, mm_position=replace(where, offset=here)))
        else:
            columns += [here] * where.length
            full += [tokens[start]] * tall
            moved.append(replace(feature, mm_position=replace(where, offset=here, length=tall, is_embed=None)))
        at = end
    columns += range(len(full), len(full) + len(tokens) - at)
    full += tokens[at:]
    positions, delta = whole(full, moved)
    return positions[:, torch.tensor(columns, dtype=torch.long)], delta + len(full) - len(tokens)
