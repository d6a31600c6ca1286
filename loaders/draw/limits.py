"""Draws of leaves under a limit: whole draws of quotas, each epoch's rounded down or up and never more than the limit.

An epoch's draws are laid end to end, leaf after leaf, and cut at the whole numbers behind a point that moves on by a golden step
every epoch (systematic sampling: Madow 1949). So every leaf gets floor(q) or ceil(q) draws of its quota q, the sum is exact, and
over epochs each gets its share: the points of the golden rotation are spread evenly over any stretch of epochs. How often a leaf
has been drawn before an epoch is a sum of floors along a line, which the steps of Euclid's algorithm give.

`QuotaRounding` has smaller gaps over epochs, but may give a leaf two draws more than floor(q) in one of them.

Shapes: L leaves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels.philox import Stream, random_words
from .shares import MAX_EPOCH_DRAWS, QUOTA_BITS, QUOTA_ONE

# 2**22 over the golden ratio, made odd: all points come before one comes again.
STEP = int(QUOTA_ONE * (math.sqrt(5) - 1) / 2) | 1

Integers = NDArray[np.int64]


def effective_limit(max_repeats: float) -> float:
    """What `max_repeats` allows on average: whole from 1 on, as no span is drawn half a time."""
    return float(math.floor(max_repeats)) if max_repeats >= 1 else max_repeats


class LimitedRounding:
    """Whole draws of quotas, none of them above a leaf's most in any epoch.

    quotas: (L,) draws an epoch, that sum to epoch_draws, 1 .. 2**31 - 1. most: (L,) at least the quotas. Raises ValueError.
    """

    def __init__(self, quotas: ArrayLike, most: ArrayLike, epoch_draws: int, seed: int) -> None:
        quota = np.asarray(quotas, dtype=np.float64)
        if not 0 < epoch_draws < MAX_EPOCH_DRAWS:
            raise ValueError(f"epoch_draws must lie in 1 .. 2**31 - 1, got {epoch_draws}")
        bounds = np.floor(np.asarray(most, dtype=np.float64) * QUOTA_ONE).astype(np.int64)
        units = np.minimum(np.rint(quota * QUOTA_ONE).astype(np.int64), bounds)
        self.epoch_draws = epoch_draws
        self._ends = np.concatenate([[0], np.cumsum(_filled(units, bounds, epoch_draws * QUOTA_ONE))])
        self._first = int(random_words(seed, np.zeros(1, np.int64), 0, Stream.QUOTA, 1)[0, 0]) >> (32 - QUOTA_BITS)

    def drawn_before(self, epoch: int) -> Integers:
        """(L,) how often each leaf has been drawn when `epoch`, 0 or more, begins. The sum is epoch x epoch_draws."""
        turns, epoch_in_turn = divmod(epoch, QUOTA_ONE)  # after 2**22 epochs the points come again
        starts = np.append(self._ends + self._first, self._first)
        passed = floor_sums(epoch_in_turn, QUOTA_ONE, STEP, starts)
        return np.diff(passed[:-1]) + turns * np.diff(self._ends)


def floor_sums(count: int, modulus: int, step: int, starts: Integers) -> Integers:
    """(n,) for each start b the sum over i = 0 .. count - 1 of floor((step i + b) / modulus)."""
    n, b = np.full(len(starts), count, dtype=np.int64), starts.astype(np.int64)
    a, m, total = step, modulus, np.zeros(len(starts), dtype=np.int64)
    while n.any():
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        reach = a * n + b
        going = reach >= m
        n, b = np.where(going, reach // m, 0), np.where(going, reach % m, 0)
        a, m = m, a
        if not m:
            break
    return total


def _filled(units: Integers, bounds: Integers, total: int) -> Integers:
    """`units` with what rounding left of `total` put where there is room, or taken where there is some."""
    units = units.copy()
    while missing := total - int(units.sum()):
        room = np.flatnonzero(bounds > units) if missing > 0 else np.flatnonzero(units > 0)
        if not room.size:
            raise ValueError(
                f"an epoch of {total >> QUOTA_BITS:,} draws does not fit under max_repeats; raise it, or the caps"
            )
        chosen = room[: abs(missing)]
        each = max(abs(missing) // len(chosen), 1)
        change = np.minimum(each, (bounds - units if missing > 0 else units)[chosen])
        units[chosen] += change if missing > 0 else -change
    return units
