"""VidCom2: what is unlike the rest of the image, and of its own crop, is kept. Crops stand for a video's frames."""

from __future__ import annotations

from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.ranking import Ranking
from globalcom2.core.views import Views
from globalcom2.errors import InputError

WIDTHS = tuple(2.0**k for k in range(-3, 2))
"""Of the Gaussian kernels, squared."""


def vidcom2(views: Views, retention_ratio: float, *, temperature: float = 0.01) -> Ranking:
    """Uniqueness by Gaussian kernels: crops unlike the whole keep more, and tokens unlike their crop come first.

    Of the features, the half of the channels that varies least over all crops is read. A token's likeness to a centre
    is the sum of five Gaussian kernels of the distance of their directions.

    Args:
        views: Images or videos, with features of the crops.
        retention_ratio: Fraction to keep, in (0, 1].
        temperature: Of the softmax over crops, positive.

    Returns:
        Crop tokens by minus their likeness to the mean of all crops and to that of their own; ratios
        R * (1 + p - mean of p), p being the softmax of minus the crops' mean likeness to the whole over `temperature`.
        The thumbnail by its own scores.

    Raises:
        InputError: No features of the crops, or a temperature out of range.

    Paper: https://arxiv.org/abs/2505.14454. Differs from the paper: it was made for videos and their frames, has no
    thumbnail and reads features behind the projector, while this reads those of the vision tower; padding is neither kept
    nor part of a mean.
    """
    if isinstance(temperature, bool) or not isinstance(temperature, Real) or not 0.0 < temperature < float("inf"):
        raise InputError(f"temperature must be a positive number, got {temperature!r}.")
    features, valid = views.crop_features, views.valid_mask
    if features is None:
        raise InputError(
            "crop_features must be given for method 'vidcom2', got None. Pass Views(..., crop_features=...), or use a method "
            "that reads scores alone, such as 'uniform'."
        )
    features = features if features.dtype.itemsize > 2 else features.float()
    count = valid.sum(-1)
    steady = _steady(features.masked_fill(~valid[..., None], 0.0), valid)
    own_centre = steady.sum(-2, keepdim=True) / count.clamp(min=1)[:, None, None]
    centre = steady.sum((-3, -2), keepdim=True) / count.sum().clamp(min=1)
    to_whole = _likeness(steady, centre)
    crops = -(to_whole + _likeness(steady, own_centre))
    mean = to_whole.masked_fill(~valid, 0.0).sum(-1).double() / count.clamp(min=1)
    shares = (-mean / temperature).masked_fill(count == 0, -torch.inf).softmax(-1).nan_to_num(nan=0.0)
    ratios = (retention_ratio * (1 + shares - shares.mean(-1, keepdim=True))).clamp(0.0, 1.0)
    return Ranking(views.thumbnail_scores, crops, ratios)


def _steady(features: Tensor, valid: Tensor) -> Tensor:
    """The half of the channels with the least variance over all valid tokens, (batch, crops, tokens, dim // 2)."""
    count = valid.sum().clamp(min=1)
    mean = features.sum((-3, -2), keepdim=True) / count
    variance = ((features - mean).square() * valid[..., None]).sum((-3, -2)) / count
    half = max(1, features.shape[-1] // 2)
    channels = variance.argsort(dim=-1, stable=True)[:, :half].sort(-1).values
    return features.gather(-1, channels[:, None, None].expand(*features.shape[:-1], half))


def _likeness(tokens: Tensor, centre: Tensor) -> Tensor:
    """Sum of Gaussian kernels of the distance between directions, at most five; (batch, crops, tokens)."""
    apart = (F.normalize(tokens, dim=-1) - F.normalize(centre, dim=-1)).square().sum(-1)
    kernels = [(-apart / (2 * width)).exp() for width in WIDTHS]
    return torch.stack(kernels).sum(0).mul(10**6).round().div(10**6)
