"""A bound on what a setting loses, true with a given confidence whatever the losses are like, and settings in turn under it.

Per picture, what a setting gains on the bound is a number from `bound - 1` to `bound + 1` whose mean is zero or less where
the promise is false. A share of a purse is bet on each picture. Where the promise is false, the purse grows on average by
nothing, so it reaches 20 times what it began with in at most 5 of 100 sets (Markov's inequality). How much to bet is found on
other pictures, which keeps this true: Waudby-Smith and Ramdas, https://arxiv.org/abs/2010.09686. Settings are checked in an
order that was fixed on those other pictures, up to the first that fails, so that all promises together are false in at most 5
of 100 sets: Angelopoulos and others, https://arxiv.org/abs/2110.01052.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from globalcom2.errors import InputError

CONFIDENCE = 0.95
BETS = np.append(np.arange(0.02, 1.0, 0.02), 0.999)
"""Shares of the purse that may be bet. Below 1, so that one picture, all of whose answers were lost, leaves something."""
DRAWS = 400
"""Sets of pictures that are drawn to estimate a chance."""
TOTAL_LOSSES = 0.5
"""Pictures all of whose answers are lost, added to those seen when a bet is chosen: one may come that was not seen."""
LEAST_CHANCE = 0.1
"""Settings that are less likely to pass are not checked."""
MOST_PICTURES = 100_000


@dataclass(frozen=True)
class Losses:
    """What a setting gets wrong that all tokens get right, less what it alone gets right, by picture."""

    lost: NDArray[np.int64]
    """Questions, (pictures,); below 0 where the setting does better."""
    asked: NDArray[np.int64]
    """Questions about each picture, (pictures,)."""
    most: int
    """Most questions about any picture, seen or not."""

    @property
    def rate(self) -> float:
        """Lost questions of those asked."""
        return float(self.lost.sum() / self.asked.sum())

    def margins(self, bound: float) -> NDArray[np.float64]:
        """By how much each picture stays under a bound, (pictures,), from `bound - 1` to `bound + 1`.

        The mean is at or below 0 where the loss is at or above the bound, each question counting alike.
        """
        return (bound * self.asked - self.lost) / self.most


@dataclass(frozen=True)
class Candidate:
    """A setting on the choosing pictures."""

    index: int
    """Which of the settings it is."""
    cost: float
    """Visual tokens per image."""
    loss: float
    bet: float
    """Share of the purse that is bet on each checking picture."""
    chance: float
    """That it passes, if the checking pictures are like the choosing ones."""


@dataclass(frozen=True)
class Check:
    """A candidate on the checking pictures."""

    candidate: Candidate
    loss: float
    upper: float
    """The least bound under which this setting, taken by itself, would be promised."""
    holds: bool
    """Whether the loss is promised to be under the bound that was asked for."""


def split(pictures: int, seed: int = 0, share: float = 0.5) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places of the choosing and of the checking pictures, each in order.

    Args:
        pictures: How many there are, 2 at least.
        seed: Of the draw.
        share: Of the pictures that choose, in (0, 1); rounded down, and one at least on either side.

    Raises:
        InputError: Fewer than 2 pictures, or a share out of range.
    """
    _check_share("share", share)
    if pictures < 2:
        raise InputError(f"pictures must be 2 or more, got {pictures}. Half of them choose, and half of them check.")
    order = np.random.default_rng(seed).permutation(pictures)
    choosing = min(max(int(pictures * share), 1), pictures - 1)
    return np.sort(order[:choosing]), np.sort(order[choosing:])


def fewest_pictures(max_loss: float, confidence: float = CONFIDENCE) -> int:
    """Checking pictures without which not even a setting that never errs can be promised to lose less than `max_loss`."""
    return math.ceil(-math.log(1 - confidence) / math.log1p(float(BETS[-1]) * max_loss))


def holds(losses: Losses, bet: float, bound: float, confidence: float = CONFIDENCE) -> bool:
    """Whether a loss under a bound is promised: whether the purse is `1 / (1 - confidence)` times what it began with.

    Args:
        losses: Of pictures on which `bet` was not chosen.
        bet: Share of the purse bet on each picture, in (0, 1).
        bound: In [0, 1].
        confidence: In (0, 1).
    """
    return bool(np.log1p(bet * losses.margins(bound)).sum() >= -math.log(1 - confidence))


def upper_bound(losses: Losses, bet: float, confidence: float = CONFIDENCE) -> float:
    """A bound on the loss, in [0, 1], that is below the true loss in at most `1 - confidence` of all sets of pictures.

    Args:
        losses: See `holds`.
        bet: See `holds`.
        confidence: In (0, 1).
    """
    low, high = 0.0, 1.0
    if holds(losses, bet, low, confidence):
        return low
    for _ in range(40):  # the purse grows with the bound
        middle = (low + high) / 2
        low, high = (low, middle) if holds(losses, bet, middle, confidence) else (middle, high)
    return high


def plan(
    losses: Losses,
    max_loss: float,
    pictures: int,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    total_losses: float = TOTAL_LOSSES,
) -> tuple[float, float]:
    """The bet that is likeliest to pass on other pictures like these, and how likely that is.

    Args:
        losses: Of the choosing pictures.
        max_loss: The bound.
        pictures: How many pictures will be checked.
        confidence: Of the promise.
        seed: Of the sets that are drawn.
        total_losses: Pictures all of whose answers are lost, taken to be among these.
    """
    margins, times = np.unique(np.append(losses.margins(max_loss), max_loss - 1), return_counts=True)
    likely = times.astype(np.float64)
    likely[0] += total_losses - 1
    likely /= likely.sum()
    drawn = np.random.default_rng(seed).multinomial(pictures, likely, DRAWS)
    growth = np.log1p(BETS * margins[:, None])
    chances = (drawn @ growth >= -math.log(1 - confidence)).mean(0)
    best = np.lexsort((likely @ growth, chances))[-1]
    return float(BETS[best]), float(chances[best])


def pictures_needed(
    losses: Losses, max_loss: float, confidence: float = CONFIDENCE, chance: float = 0.8, seed: int = 0
) -> int | None:
    """About how many pictures must be checked for a setting to pass with a chance, if its losses stay what they are.

    None where it loses as much as the bound or more, and where more than a hundred thousand would be needed.

    Args:
        losses: Of all pictures of the setting that are known.
        max_loss: The bound.
        confidence: Of the promise.
        chance: That it passes.
        seed: Of the sets that are drawn.
    """

    def passes(pictures: int) -> bool:
        return plan(losses, max_loss, pictures, confidence, seed, 0.0)[1] >= chance

    low = enough = fewest_pictures(max_loss, confidence)
    while not passes(enough):
        low, enough = enough, 2 * enough
        if losses.rate >= max_loss or enough > MOST_PICTURES:
            return None
    while enough - low > max(1, low // 20):
        middle = (low + enough) // 2
        low, enough = (low, middle) if passes(middle) else (middle, enough)
    return enough


def walk(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The order of checking: the likeliest to pass first, each one cheaper than those before it.

    A setting is left out where one that is as likely to pass is as cheap, and where it is unlikely to pass.
    """
    order = sorted(candidates, key=lambda found: (-found.chance, found.cost, found.loss))
    steps: list[Candidate] = []
    for found in order:
        if found.chance >= LEAST_CHANCE and (not steps or found.cost < steps[-1].cost):
            steps.append(found)
    return steps


def choose(
    losses: Sequence[Losses],
    costs: Sequence[float],
    max_loss: float,
    pictures: int,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> list[Candidate]:
    """All settings as candidates, with their bets and chances.

    Args:
        losses: Of each setting, on the choosing pictures.
        costs: Visual tokens per image of each setting.
        max_loss: The bound to promise, in (0, 1).
        pictures: How many will be checked.
        confidence: Of the promise.
        seed: Of the sets that are drawn to find bets.

    Raises:
        InputError: A bound or a confidence out of range.
    """
    _check_share("max_loss", max_loss)
    _check_share("confidence", confidence)
    found = []
    for index, (own, cost) in enumerate(zip(losses, costs, strict=True)):
        bet, chance = plan(own, max_loss, pictures, confidence, seed)
        found.append(Candidate(index, float(cost), own.rate, bet, chance))
    return found


def check(
    steps: Sequence[Candidate],
    losses_of: Callable[[Candidate], Losses],
    max_loss: float,
    confidence: float = CONFIDENCE,
) -> list[Check]:
    """Check settings in turn, up to the first that fails. All that hold are promised together.

    Args:
        steps: What `walk` gave.
        losses_of: The losses of a setting on the checking pictures; asked for only where it is its turn.
        max_loss: The bound.
        confidence: Of all promises together.
    """
    done: list[Check] = []
    for candidate in steps:
        losses = losses_of(candidate)
        promised = holds(losses, candidate.bet, max_loss, confidence)
        done.append(Check(candidate, losses.rate, upper_bound(losses, candidate.bet, confidence), promised))
        if not promised:
            break
    return done


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise InputError(f"{name} must be a share in (0, 1), got {value!r}. Write 0.01 for one in a hundred.")
