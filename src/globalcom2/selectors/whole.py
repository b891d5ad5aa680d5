"""All views of an image in one tensor, thumbnail first, and what selectors share that look at them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from globalcom2.core.budget import keep_counts
from globalcom2.core.views import Views
from globalcom2.errors import InputError

DECIMALS = 6
"""Equal tokens must be equally alike; a matrix product differs in its last bits, and differently in a batch."""


def by_view(views: Views, name: str, method: str) -> Tensor:
    """What a method reads of the tokens of all views that can be kept.

    Args:
        views: With a batch axis.
        name: "features" or "keys".
        method: Its name, for the message.

    Returns:
        float (batch, kept views, tokens, dim), at least float32: the thumbnail's first, if there is one to keep.

    Raises:
        InputError: The views have none.
    """
    tensor: Tensor | None = getattr(views, name)
    if views.thumbnail_scores is None and tensor is not None:
        tensor = tensor[:, 1:]
    if tensor is None:
        raise InputError(
            f"{name} must be given for method {method!r}, got None. Pass Views(..., {name}=...), or use a method that reads "
            "scores alone, such as 'uniform'."
        )
    return tensor if tensor.dtype.itemsize > 2 else tensor.float()


def valid_by_view(views: Views) -> Tensor:
    """Which tokens of these views show image, bool (kept views, tokens); all of the thumbnail's do."""
    valid = views.valid_mask
    return valid if views.thumbnail_scores is None else F.pad(valid, (0, 0, 1, 0), value=True)


def parts(views: Views, values: Tensor) -> tuple[Tensor | None, Tensor]:
    """Split (batch, kept views, tokens) into the thumbnail's (batch, tokens), or None, and the crops'."""
    return (None, values) if views.thumbnail_scores is None else (values[:, 0], values[:, 1:])


def even_ratios(views: Views, retention_ratio: float) -> Tensor:
    """The same ratio for every crop, float64 (batch, crops)."""
    return torch.full(views.scores.shape[:-1], retention_ratio, dtype=torch.float64, device=views.scores.device)


def most_kept(views: Views, retention_ratio: float) -> int:
    """The largest number of tokens that an image of these sizes keeps under any rule for newlines."""
    own = 0 if views.thumbnail_scores is None else views.thumbnail_tokens
    total = keep_counts(retention_ratio, own, views.valid_count, views.line_count).total
    return min(total, own + views.valid_count)


def cosines(tokens: Tensor, others: Tensor) -> Tensor:
    """Cosine similarity of (..., n, dim) to (..., m, dim), float (..., n, m), rounded; 0 for a token of zeros."""
    similarity: Tensor = F.normalize(tokens, dim=-1) @ F.normalize(others, dim=-1).mT
    return similarity.mul_(10**DECIMALS).round_().div_(10**DECIMALS)
