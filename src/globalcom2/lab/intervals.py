"""Accuracies with bootstrap intervals. Pictures are drawn, not questions: those about one picture fail together."""

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
        pictures: Which picture each question is about, int (questions,), from 0.
    """

    pictures: NDArray[np.int64]
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        """Draw how often each resample takes each picture, (resamples, pictures)."""
        count = int(self.pictures.max()) + 1
        weights = np.random.default_rng(self.seed).multinomial(count, np.full(count, 1 / count), self.resamples)
        object.__setattr__(self, "_weights", weights.astype(np.float64))

    def accuracies(self, right: NDArray[np.bool_], among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """The accuracy in every resample, (resamples,), over the questions `among`; NaN where none was drawn."""
        among = np.ones(len(right), bool) if among is None else among
        weights: NDArray[np.float64] = self._weights  # type: ignore[attr-defined]
        count = weights.shape[1]
        hits = np.bincount(self.pictures[among], right[among].astype(np.float64), count)
        asked = np.bincount(self.pictures[among], minlength=count)
        with np.errstate(invalid="ignore"):
            drawn: NDArray[np.float64] = (weights @ hits) / (weights @ asked)
        return drawn


def interval(values: NDArray[np.float64]) -> Interval:
    """The middle 95 % of resampled values."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return [float(low), float(high)]
