"""Speed against a peer from pairs measured in turns: the median of their ratios, and an interval that assumes nothing.

Shapes: N pairs.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import comb


@dataclass(frozen=True)
class Interval:
    """The median of a sample; with probability `confidence` the true median lies in low .. high."""

    median: float
    low: float
    high: float
    confidence: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """The narrowest symmetric pair of order statistics that holds the true median with at least `confidence`, 0 .. 1.

    The k-th smallest and the k-th largest of N independent values enclose it with probability 1 - 2 P(Binomial(N, 1/2) < k)
    (David and Nagaraja, Order Statistics, 7.1). With fewer than six values not even the extremes reach 0.95: then they are given
    with what they have. Raises ValueError on an empty sample.
    """
    if not values:
        raise ValueError("a median needs at least one value")
    ordered, count = sorted(values), len(values)
    place, reached = 1, _coverage(count, 1)
    while place < (count + 1) // 2 and _coverage(count, place + 1) >= confidence:
        place += 1
        reached = _coverage(count, place)
    return Interval(statistics.median(ordered), ordered[place - 1], ordered[-place], reached)


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Of a row: how many times ours theirs is, round by round; the median, its interval and the confidence of that."""
    return vars(median_interval([one / other for one, other in zip(theirs, ours, strict=True)]))


def _coverage(count: int, place: int) -> float:
    return max(0.0, 1 - 2 * sum(comb(count, below) for below in range(place)) / 2**count)
