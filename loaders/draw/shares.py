"""How often each leaf of a cluster tree is drawn: quotas that sum to the length of an epoch, and their rounding over epochs.

The epoch's draws are divided down the tree. A node divides its part among its children in proportion to size ** (1 - balance):
balance 0 gives every child its size's share, hence the corpus as it is, 1 gives all children the same (hierarchical sampling, Vo
et al. 2024, arXiv 2405.15613, section 3.4). What a node cannot take, because its spans would come more often than `max_repeats`
an epoch, flows to its siblings.

Rounding. Leaf l has been drawn floor(t q_l + v_l) times when t epochs have passed, with its quota q_l and a keyed v_l in [0, 1).
An epoch ends after exactly E draws: at the time t, near a whole number, at which all leaves together have been drawn that often.
So the sums are exact, a leaf far below one draw an epoch still gets its share, never later than ceil(1 / q_l) + 1 epochs after
the last time, and where any epoch begins inside every leaf is known without going through the epochs before it.

Shapes: L leaves in depth-first order, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels.philox import Stream, random_words

QUOTA_BITS = 22  # quotas are integers in units of 2**-22 draws
CLOCK_BITS = 18  # times are integers in units of 2**-18 epochs
QUOTA_ONE, CLOCK_ONE = 1 << QUOTA_BITS, 1 << CLOCK_BITS
MAX_EPOCH_DRAWS = 2**31

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


def divide(budget: float, sizes: Floats, capacities: Floats, balance: float) -> Floats:
    """One node's part among its children, (C,): in proportion to sizes ** (1 - balance), none above its capacity.

    budget: at most the sum of the capacities. sizes: above 0.
    """
    # Nine digits: powers of other machines may differ in the sixteenth, and the order of draws must not.
    weights = np.array([float(f"{size ** (1 - balance):.9g}") for size in sizes.tolist()])
    parts = np.zeros(len(sizes))
    free = np.ones(len(sizes), dtype=bool)
    while free.any():
        left = budget - math.fsum(parts[~free].tolist())
        wanted = max(left, 0.0) * weights / math.fsum(weights[free].tolist())
        full = free & (wanted > capacities)
        if not full.any():
            parts[free] = wanted[free]
            break
        parts[full] = capacities[full]
        free &= ~full
    return parts


def leaf_quotas(
    paths: NDArray[np.int32], sizes: ArrayLike, epoch_draws: int, balances: Sequence[float], capacities: ArrayLike
) -> Floats:
    """(L,) draws an epoch of each leaf.

    paths: (L, K) the node of each level, top first, in lexicographic order. sizes: (L,) spans, at least 1. balances: (K,) for the
    children of each level, 0 .. 1. capacities: (L,) most draws an epoch. Raises ValueError where the capacities hold less than
    epoch_draws together.
    """
    size, capacity = np.asarray(sizes, dtype=np.float64), np.asarray(capacities, dtype=np.float64)
    # A hair of room: capacities that add up to the epoch exactly need not do so in floating point.
    if math.fsum(capacity.tolist()) < epoch_draws * (1 - 1e-9):
        raise ValueError(
            f"an epoch of {epoch_draws:,} draws does not fit: at most {math.fsum(capacity.tolist()):,.0f} are allowed; raise "
            "max_repeats or the caps, or set epoch_draws lower"
        )
    starts, parts = np.zeros(1, dtype=np.int64), np.array([float(epoch_draws)])
    for level, balance in enumerate(balances):
        changes = (paths[1:, : level + 1] != paths[:-1, : level + 1]).any(axis=1)
        children = np.flatnonzero(np.concatenate([[True], changes]))
        child_sizes, child_capacities = np.add.reduceat(size, children), np.add.reduceat(capacity, children)
        bounds = np.append(np.searchsorted(children, starts), len(children))
        parts = np.concatenate(
            [
                divide(part, child_sizes[first:stop], child_capacities[first:stop], balance)
                for part, first, stop in zip(parts.tolist(), bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
            ]
        )
        starts = children
    return parts


def capped_quotas(
    paths: NDArray[np.int32],
    sizes: ArrayLike,
    groups: NDArray[np.int64],
    epoch_draws: int,
    balances: Sequence[float],
    max_repeats: float,
    caps: Sequence[float],
) -> Floats:
    """`leaf_quotas` under caps on groups of leaves: group g, 0 .. len(caps) - 1, gets at most the share caps[g] of the draws.

    groups: (L,) the group of each leaf, -1 for none. max_repeats: most draws of one span an epoch. Within a capped group the
    leaves keep their proportions; what it loses flows on as what exceeds max_repeats does. Raises ValueError as `leaf_quotas`.
    """
    size = np.asarray(sizes, dtype=np.float64)
    capacity = size * max_repeats
    capped: set[int] = set()
    while True:
        quotas = leaf_quotas(paths, size, epoch_draws, balances, capacity)
        totals = np.array([math.fsum(quotas[groups == group].tolist()) for group in range(len(caps))])
        limits = np.asarray(caps, dtype=np.float64) * epoch_draws
        over = [g for g in range(len(caps)) if g not in capped and totals[g] > limits[g] * (1 + 1e-9)]
        if not over:
            return quotas
        for group in over:
            mine = groups == group
            capacity[mine] = np.minimum(capacity[mine], quotas[mine] * (limits[group] / totals[group]))
            capped.add(group)


class QuotaRounding:
    """Whole draws of quotas. quotas: (L,) draws an epoch, above 0, that sum to epoch_draws, 1 .. 2**31 - 1. Raises ValueError."""

    def __init__(self, quotas: ArrayLike, epoch_draws: int, seed: int) -> None:
        quota = np.asarray(quotas, dtype=np.float64)
        if not 0 < epoch_draws < MAX_EPOCH_DRAWS:
            raise ValueError(f"epoch_draws must lie in 1 .. 2**31 - 1, got {epoch_draws}")
        if quota.min() <= 0 or abs(math.fsum(quota.tolist()) - epoch_draws) > 1e-6 * epoch_draws:
            raise ValueError(f"quotas must be above 0 and sum to {epoch_draws}, got {quota.min()} .. and {quota.sum()}")
        units = np.maximum(np.rint(quota * QUOTA_ONE).astype(np.int64), 1)
        units = _with_sum(units, epoch_draws * QUOTA_ONE)
        self.epoch_draws = epoch_draws
        self.whole, self._rest = units >> QUOTA_BITS, units & (QUOTA_ONE - 1)
        self._rest_draws = int(self._rest.sum()) >> QUOTA_BITS
        words = random_words(seed, np.arange(len(quota)), 0, Stream.QUOTA, 1)[:, 0].astype(np.int64)
        self._phase = words >> (32 - QUOTA_BITS)

    def drawn_before(self, epoch: int) -> Integers:
        """(L,) how often each leaf has been drawn when `epoch`, 0 or more, begins. The sum is epoch x epoch_draws."""
        turns, epoch_in_turn = divmod(epoch, QUOTA_ONE)  # after 2**22 epochs the pattern of fractions repeats
        return epoch * self.whole + turns * self._rest + self._fractions(epoch_in_turn)

    def _counts(self, clock: int) -> Integers:
        return (clock * self._rest + (self._phase << CLOCK_BITS)) >> (QUOTA_BITS + CLOCK_BITS)

    def _fractions(self, epoch: int) -> Integers:
        """(L,) what the quotas' fractions have come to: the first epoch x their sum of all leaves' draws in order of time."""
        if not self._rest_draws:
            return np.zeros(len(self.whole), dtype=np.int64)
        wanted = epoch * self._rest_draws
        clock = epoch << CLOCK_BITS
        counts = self._counts(clock)
        gap = wanted - int(counts.sum())
        # The latest time at which no more than `wanted` are drawn lies in low .. high - 1.
        step = max(1, abs(gap) * CLOCK_ONE // self._rest_draws)
        low, high = clock, clock + 1
        while low > 0 and self._counts(low).sum() > wanted:
            low, high, step = max(low - step, 0), low, 2 * step
        while self._counts(high).sum() <= wanted and high <= QUOTA_ONE * CLOCK_ONE:
            low, high, step = high, high + step, 2 * step
        while high - low > 1:
            middle = (low + high) // 2
            if self._counts(middle).sum() > wanted:
                high = middle
            else:
                low = middle
        counts = self._counts(low)
        left = wanted - int(counts.sum())
        if left:
            due = np.flatnonzero(self._counts(low + 1) > counts)[:left]
            counts[due] += 1
        return counts


def _with_sum(units: Integers, total: int) -> Integers:
    """`units` with a few of them, the largest, changed by a hair so that they sum to `total`."""
    missing = total - int(units.sum())
    order = np.argsort(-units, kind="stable")
    while missing:
        count = min(abs(missing), len(units))
        each = max(abs(missing) // len(units), 1)
        chosen = order[:count]
        units[chosen] += each if missing > 0 else -each
        missing = total - int(units.sum())
    if units.min() < 1:
        raise ValueError("quotas are too small to be told from none; use fewer leaves or a longer epoch")
    return units
