"""What a selector decides."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Ranking(NamedTuple):
    """What a selector decides; `globalcom2.core.allocation` turns it into masks that meet the budget.

    Shapes carry the leading batch axis of the views.
    """

    thumbnail: Tensor | None
    """float (batch, tokens), higher is kept first; None for an image without a thumbnail."""
    crops: Tensor
    """float (batch, crops, tokens), higher is kept first within its crop."""
    ratios: Tensor
    """float64 (batch, crops): the fraction of its valid tokens that each crop should keep."""
