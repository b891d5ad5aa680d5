"""Scores from what a tower's attention kernel is given; the tower has [CLS] first."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_reduce

from globalcom2.adapters.tap import reader
from globalcom2.core.scores import similarity
from globalcom2.integrations.vllm.model import Pass, ShortModel

SCORES = ("logits", "attention", "mean_query", "received", "similarity")
"""Score types of a tower with [CLS], the default first."""


class ClsOfKernel(ShortModel):
    """Reads queries and keys (after their norms) of one attention module of the tower."""

    def attention(self) -> Any:
        """The attention module of the deepest layer that the features come from; its `attn` is the kernel."""
        raise NotImplementedError

    def install(self) -> None:  # noqa: D102
        self.attention().attn.register_forward_pre_hook(lambda module, args: self.watch.note("attention", args[:2]))

    def scores(self, made: Pass) -> Tensor:  # noqa: D102
        if self.saliency == "similarity":
            return similarity(self.features(made))
        return self.of_tokens(torch.cat([self.row(*given) for given in made.seen["attention"]]), made)

    def of_tokens(self, rows: Tensor, made: Pass) -> Tensor:
        """Scores (views, tokens) from rows (views, sequence) of all patches and [CLS]."""
        raise NotImplementedError

    def row(self, query: Tensor, key: Tensor) -> Tensor:
        """A row (views, sequence) of attention averaged over the heads of all ranks, so that all ranks choose the same tokens.

        Args:
            query: (views, sequence, heads of this rank * head_dim).
            key: (views, sequence, heads of this rank * head_dim).
        """
        attention = self.attention()
        size, heads = attention.head_dim, attention.num_heads
        query, key = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in (query, key))
        # Heads are dealt out in order; the last ones may be padding.
        own = max(0, min(query.shape[1], heads - getattr(attention, "tp_rank", 0) * query.shape[1]))
        if own == 0:
            row = query.new_zeros(query.shape[0], query.shape[2], dtype=torch.float32)
        else:
            read = reader(self.saliency, 0)
            row = read(query[:, :own], key[:, :own], None, attention.scale) * (own / heads)
        return row if getattr(attention, "tp_size", 1) == 1 else tensor_model_parallel_all_reduce(row)
