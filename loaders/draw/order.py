"""Which view of which draw a run's n-th clip is: a pure function, also where every decoded span serves several clips.

Without a pool the views of a draw follow one another: clip n is view n % V of draw n // V.

With a pool of decoded spans they lie far apart. Clips go round the *lanes*: clip n is number n // L of lane n % L, and every lane
owns p slots of the pool. It serves its slots in rounds, each slot once a round, in an order that is permuted anew every round. A
slot serves the V views of one span in V rounds and then takes the lane's next span; the slots take turns in that, so that the
same share of them, p / V, needs decoding every round. (The spans that fill the pool at the start serve 1 to V views.)

So the order needs no state: a rank owns the lanes that are congruent to it, whatever the number of ranks, and a run that resumes
decodes again those spans of which some views are still due.

Shapes: B clips. V views per span, L lanes, p slots a lane.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels.philox import Stream
from .permutation import permute


@dataclass(frozen=True)
class ClipOrder:
    """The order of clips.

    views_per_span: V. pool_spans: spans in the pool over all ranks, a multiple of lanes; 0 is no pool. lanes: L; the number of
    ranks has to divide it. seed: 0 .. 2**64 - 1. Raises ValueError.
    """

    views_per_span: int = 1
    pool_spans: int = 0
    lanes: int = 24
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.views_per_span <= 64:
            raise ValueError(f"views_per_span must lie in 1 .. 64, got {self.views_per_span}")
        if self.lanes < 1:
            raise ValueError(f"lanes must be at least 1, got {self.lanes}")
        if self.pool_spans < 0 or self.pool_spans % self.lanes:
            raise ValueError(f"pool_spans must be a multiple of lanes ({self.lanes}) or 0, got {self.pool_spans}")

    def clips(self, numbers: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(draws, views), each (B,) int64, of the clips `numbers` (B,). A draw's views come in ascending order."""
        number = np.asarray(numbers, dtype=np.int64)
        if not self.pool_spans:
            return number // self.views_per_span, number % self.views_per_span
        slots = self.pool_spans // self.lanes
        lane, place = number % self.lanes, number // self.lanes
        turn = place // slots
        slot = permute(place % slots, slots, self.seed, turn * self.lanes + lane, Stream.POOL)
        uses = turn + slot % self.views_per_span
        span = uses // self.views_per_span * slots + slot
        return span * self.lanes + lane, uses % self.views_per_span

    def draws_before(self, number: int) -> int:
        """How many draws there are up to the last of those that clips 0 .. number - 1, at least one, belong to."""
        # Within two rounds every slot of the pool is served, and a slot's draws ascend.
        latest = self.clips(np.arange(max(0, number - max(1, 2 * self.pool_spans)), number))[0]
        return int(latest.max()) + 1

    def diversity(self, stop: int, clips: int = 1000) -> tuple[float, float]:
        """Of the `clips` clips before number `stop`, or as many as there are: distinct draws for each 1,000 clips, and after how
        many clips a draw comes again, on average; 0 where none does."""
        numbers = np.arange(max(0, stop - clips - 2 * max(self.pool_spans, self.views_per_span)), stop)
        draws, views = self.clips(numbers)
        recent = numbers >= stop - clips
        # A draw's views come in ascending order, at most two rounds apart.
        by_draw = np.lexsort((views, draws))
        again = (np.diff(draws[by_draw]) == 0) & recent[by_draw[1:]]
        apart = np.diff(numbers[by_draw])[again]
        distinct = len(np.unique(draws[recent]))
        return 1000 * distinct / max(1, int(recent.sum())), float(apart.mean()) if len(apart) else 0.0

    def share(self, numbers: ArrayLike, rank: int, ranks: int) -> NDArray[np.int64]:
        """Those of the clips `numbers` that rank `rank` of `ranks` reads: all views of a draw fall to one rank.

        Raises ValueError where a pool's lanes cannot be divided among so many ranks.
        """
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} is not in 0 .. {ranks - 1}")
        number = np.asarray(numbers, dtype=np.int64)
        if not self.pool_spans:
            return number[number // self.views_per_span % ranks == rank]
        if self.lanes % ranks:
            raise ValueError(
                f"{ranks} ranks do not divide the pool's {self.lanes} lanes; set data.lanes to a multiple of {ranks}"
            )
        return number[number % ranks == rank]
