"""The [CLS] row of attention logits from what a tower's attention kernel is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from vllm.distributed import tensor_model_parallel_all_reduce

from globalcom2.core.attention import attention_row
from globalcom2.integrations.vllm.model import ShortModel


class ClsOfKernel(ShortModel):
    """Reads queries and keys (after their norms) of one attention module of the tower."""

    saliency = "logits"

    def attention(self) -> Any:
        """The attention module of the deepest layer that the features come from; its `attn` is the kernel."""
        raise NotImplementedError

    def install(self) -> None:  # noqa: D102
        self.attention().attn.register_forward_pre_hook(lambda module, args: self.watch.note(args[:2]))

    def row(self, query: Tensor, key: Tensor) -> Tensor:
        """Logits (views, sequence) averaged over the heads of all ranks, so that all ranks choose the same tokens.

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
            row = attention_row(query[:, :own], key[:, :own], None, attention.scale, 0, False) * (own / heads)
        return row if getattr(attention, "tp_size", 1) == 1 else tensor_model_parallel_all_reduce(row)
