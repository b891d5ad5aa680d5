"""What a token's saliency may be, and the one that needs no attention. Rows of attention maps: `attention.py`."""

from __future__ import annotations

import torch
from torch import Tensor

SCORE_TYPES = ("logits", "attention", "mean_query", "received", "similarity")


def similarity(features: Tensor) -> Tensor:
    """Minus the cosine of each token to the mean of its view, float32 (..., tokens) of (..., tokens, dim)."""
    features = features.float()
    return -torch.cosine_similarity(features, features.mean(-2, keepdim=True), dim=-1)
