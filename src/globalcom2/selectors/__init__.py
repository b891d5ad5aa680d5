"""One file per algorithm: views in, a `Ranking` out. It imports `core` alone.

No model, no budget arithmetic and no rounding live here; `core.allocation` makes every budget exact.
"""

from __future__ import annotations

from globalcom2.core.ranking import Counts, Merge, Ranking

__all__ = ["Counts", "Merge", "Ranking"]
