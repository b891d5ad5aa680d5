"""How evenly saliency is spread over an image: the signal of `retention_ratio="auto"`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from globalcom2.core.views import Views

SHARPNESS = 1.5
"""How much more a token counts that stands out by one deviation, as an exponent."""
ALIKE = 1e-6
"""Scores that differ by less, as a part of the largest, are alike: what is left is rounding."""


def spread(views: Views) -> Tensor:
    """The effective number of tokens that stand out, as a part of the number that scores without any order would give.

    With z the scores of all valid tokens of the crops, each crop's at mean 0, all of them together at deviation 1, and
    p = softmax(SHARPNESS * z): exp(entropy(p)) / tokens, divided by its value for normally distributed scores,
    exp(-SHARPNESS ** 2 / 2), and at most 1. Neither scale nor offset of the scores counts, nor an offset of each crop.

    Args:
        views: Of images of one layout, with a batch axis. An image without crops is its thumbnail.

    Returns:
        float64 (batch,) in (0, 1]: near 0 where few tokens stand out; 1 where all are alike. Never waits for the device.
    """
    scores, valid = views.scores, views.valid_mask
    if views.crops == 0 and views.thumbnail_scores is not None:
        scores = views.thumbnail_scores[:, None]
        valid = torch.ones(scores.shape[1:], dtype=torch.bool, device=scores.device)
    wide = scores.double().masked_fill(~valid, 0.0)
    means = wide.sum(-1, keepdim=True) / valid.sum(-1)[:, None].clamp(min=1)
    centred = (wide - means).masked_fill(~valid, 0.0).flatten(1)
    tokens = valid.sum().clamp(min=1)
    deviation = (centred.square().sum(-1, keepdim=True) / tokens).sqrt()
    alike = deviation <= ALIKE * wide.flatten(1).abs().amax(-1, keepdim=True)
    z = torch.where(alike, 0.0, centred / deviation.clamp(min=torch.finfo(torch.float64).tiny))
    logs = (SHARPNESS * z).masked_fill(~valid.flatten(), -torch.inf).log_softmax(-1)
    entropy = torch.where(valid.flatten(), -logs.exp() * logs, 0.0).sum(-1)
    return (entropy.exp() / tokens / math.exp(-(SHARPNESS**2) / 2)).clamp(max=1.0)
