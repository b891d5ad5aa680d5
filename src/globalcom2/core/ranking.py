"""What a selector decides, and what it is told while it decides."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Merge(NamedTuple):
    """Dropped tokens whose features are added to kept ones of their own view, instead of being lost.

    It is here so that published methods that merge can be compared. Merging lost to plain dropping wherever it was
    measured for this package. Both views' kinds need token grids of one size. The first view is the thumbnail; where
    there is none to keep, its entries are not read.
    """

    into: Tensor
    """int64 (batch, 1 + crops, tokens), thumbnail first: for a dropped token, the token of its view that it is added to,
    in [0, tokens); -1 for none. A contribution to a token that is not kept either is left out."""
    weight: Tensor
    """float (batch, 1 + crops, tokens): the factor on a token's feature in the sum, of a kept token as of a dropped one. A
    kept token with weight 1 into which nothing is merged keeps its feature, and so does one that was to be merged itself and
    is kept because budget was left."""


class Counts(NamedTuple):
    """Tokens that the budget has for a method that must know them before it chooses (`Method.nested` is False)."""

    thumbnail: int
    """Tokens of the thumbnail; 0 where it has no share of its own."""
    crops: Tensor
    """int64 (batch, crops), or (batch, 1) where one order over all crops was returned: the tokens of that order."""


class Ranking(NamedTuple):
    """What a selector decides; `globalcom2.core.allocation` turns it into masks that meet the budget.

    Shapes carry the leading batch axis of the views. Scores must be finite on valid tokens, or minus infinity.
    """

    thumbnail: Tensor | None
    """float (batch, tokens), higher is kept first; None for an image without a thumbnail."""
    crops: Tensor
    """float (batch, crops, tokens), higher is kept first: within its crop with `ratios`, over all crops without."""
    ratios: Tensor | None = None
    """float (batch, crops), finite and not negative: the fraction of its valid tokens that each crop should keep. None:
    `crops` is one order over all crops, and a crop may be left without a token."""
    thumbnail_competes: bool = False
    """With `ratios` None: the thumbnail's tokens stand in the same order as those of the crops, by the same scores, and
    have no share of their own."""
    merge: Merge | None = None
    """What becomes of dropped tokens; None: nothing. Only of methods with `Method.merges`."""
