"""One order over the tokens of all crops: less wanted is what resembles a token before it, or comes from a crop with many."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.allocation import nth_of_its_kind, ranks

ROUNDS = 4
"""How often the order is corrected. More than four change no set on the mini model's tuning pictures."""
CANDIDATES = 2
"""Per token of the budget: how many compete by likeness. All others follow in the order of worth and price."""
MOST = 4096
"""Candidates at most: each is compared with each. The first tokens of a larger budget are safe, and the last ones compete."""
CHANNELS = 128
"""Evenly spaced ones tell likeness well enough."""


def compete(
    worth: Tensor, valid: Tensor, features: Tensor | None, count: int, likeness: float, crop_price: float
) -> Tensor:
    """Order the tokens of all crops of an image, many images at once.

    A token is charged `likeness` * (its cosine to the most similar token before it) + `crop_price` * log(1 + tokens of its
    crop before it), and the order is that of worth less charges. Cosines are of features less their mean over the crops;
    negative ones count as 0.

    The order is found in rounds and not token by token: all candidates are ordered by worth and price, charged for what
    stands before them, and ordered again.

    Args:
        worth: float (batch, crops, tokens), of any scale.
        valid: bool (crops, tokens).
        features: float (batch, crops, tokens, dim), or None: nothing is alike.
        count: About how many tokens the budget has.
        likeness: Charge of a token that equals one before it, in units of worth.
        crop_price: Factor of the charge for a crop's further tokens, in units of worth.

    Returns:
        float (batch, crops, tokens), higher comes first; the least on padding.
    """
    batch, crops, tokens = worth.shape
    worth = worth.masked_fill(~valid, -torch.inf)
    priced = (worth - crop_price * (ranks(worth) + 1).to(worth.dtype).log()).flatten(1)
    order = priced.argsort(dim=-1, descending=True, stable=True)
    last = min(CANDIDATES * count, crops * tokens)
    if features is not None and likeness > 0 and last > 0:
        first = max(0, last - MOST)
        few = order[:, first:last]
        alike = _cosines(features, valid, few).mul_(likeness)
        few = few.gather(-1, _corrected(worth, order[:, :first], few, alike, crop_price))
        order = torch.cat([order[:, :first], few, order[:, last:]], 1)
    places = torch.arange(crops * tokens, 0, -1, device=worth.device, dtype=torch.float32).expand(batch, -1)
    scores: Tensor = torch.empty_like(places).scatter(-1, order, places).unflatten(1, (crops, tokens))
    return scores


def _corrected(worth: Tensor, safe: Tensor, few: Tensor, alike: Tensor, crop_price: float) -> Tensor:
    """The order of candidates by worth less charges, int64 (batch, candidates), as places in `few`.

    Args:
        worth: (batch, crops, tokens).
        safe: int64 (batch, places), tokens that stand before all candidates.
        few: int64 (batch, candidates), best first.
        alike: (batch, candidates, candidates), the charge of the first for the second.
        crop_price: See `compete`.
    """
    batch, crops, tokens = worth.shape
    worth, crop = worth.flatten(1).gather(-1, few), few // tokens
    had = torch.zeros(batch, crops, dtype=torch.int64, device=few.device)
    had = had.scatter_add(-1, safe // tokens, torch.ones_like(safe)).gather(-1, crop)
    places = torch.arange(few.shape[1], device=few.device).expand_as(few)
    sequence, before = places, torch.empty_like(alike)
    for _ in range(ROUNDS):
        there = torch.empty_like(alike[..., 0]).scatter(-1, sequence, places.to(alike.dtype))
        # 1 where the second stands before the first, else 0: in one buffer, several times faster than masks.
        torch.sub(there[..., None], there[:, None, :], out=before)
        charge = before.clamp_(0, 1).mul_(alike).amax(-1)
        nth = torch.empty_like(few).scatter(-1, sequence, nth_of_its_kind(crop.gather(-1, sequence)))
        left = worth - charge - crop_price * (had + nth).to(worth.dtype).log()
        sequence = left.argsort(dim=-1, descending=True, stable=True)
    return sequence


def _cosines(features: Tensor, valid: Tensor, few: Tensor) -> Tensor:
    """How alike candidates are, float32 (batch, candidates, candidates) in [0, 1]."""
    stride = -(-features.shape[-1] // CHANNELS)
    features, shown = features[..., ::stride].flatten(1, 2).float(), valid.flatten()[:, None]
    mean = features.masked_fill(~shown, 0).sum(1, keepdim=True) / shown.sum()
    own = features.gather(1, few[..., None].expand(-1, -1, features.shape[-1]))
    own = F.normalize(own - mean, dim=-1)
    return (own @ own.mT).clamp_(min=0)
