"""How spread out a thumbnail's scores are: the signal of `retention_ratio="auto"`."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(scores: Tensor) -> Tensor:
    """The effective number of tokens that share the attention, as a part of all tokens.

    exp(entropy(softmax(z))) / tokens with z the scores at mean 0 and deviation 1, so that neither their scale nor
    their offset counts.

    Args:
        scores: float (images, tokens).

    Returns:
        float64 (images,) in (0, 1]. 1 for scores that are all alike.
    """
    wide = scores.double()
    centred = wide - wide.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt()
    # Scores that are alike but for rounding say nothing.
    flat = deviation <= 1e-6 * wide.abs().amax(-1, keepdim=True)
    logits = torch.where(flat, 0.0, centred / deviation.clamp(min=torch.finfo(wide.dtype).tiny)).log_softmax(-1)
    entropy = -(logits.exp() * logits).sum(-1)
    return entropy.exp() / scores.shape[-1]
