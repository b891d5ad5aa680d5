"""Accuracies with bootstrap intervals. Images are drawn, not questions, as questions about one image fail together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 4000
Interval = list[float]


@dataclass(frozen=True)
class Bootstrap:
    """One set of resamples, used for every run, so that runs are compared on the same draws.

    Args:
        images: Which image each question is about, int (questions,), counted from 0.
        resamples: How many times the set is drawn.
        seed: Of the draws.
    """

    images: NDArray[np.int64]
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        """Draw how often each resample takes each image, (resamples, images)."""
        count = int(self.images.max()) + 1
        weights = np.random.default_rng(self.seed).multinomial(count, np.full(count, 1 / count), self.resamples)
        object.__setattr__(self, "_weights", weights.astype(np.float64))

    def accuracies(self, right: NDArray[np.bool_], among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """The accuracy in every resample.

        Args:
            right: Whether each question was answered rightly, (questions,).
            among: Which questions count, (questions,). Default: all.

        Returns:
            (resamples,), NaN where no question that counts was drawn.
        """
        among = np.ones(len(right), bool) if among is None else among
        weights: NDArray[np.float64] = self._weights  # type: ignore[attr-defined]
        count = weights.shape[1]
        hits = np.bincount(self.images[among], right[among].astype(np.float64), count)
        asked = np.bincount(self.images[among], minlength=count)
        with np.errstate(invalid="ignore"):
            drawn: NDArray[np.float64] = (weights @ hits) / (weights @ asked)
        return drawn


def interval(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of resampled values."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return [float(low), float(high)]
