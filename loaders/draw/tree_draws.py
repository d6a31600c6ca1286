"""(tree, seed, draw number) -> span: draws from a cluster tree, a pure function of the draw's number and the list of phases.

A phase has a tree, quotas and a first draw. Draw n of a phase lies in epoch n // E; a keyed permutation of the epoch's E places
leads it to a leaf, and to a position in the leaf that counts on over all epochs (`shares.py`). position // size keys the
leaf's own permutation, position % size enters it: a leaf is exhausted before any of its spans comes again. A leaf whose spans
are the same in the next phase goes on where it was.

Where a phase limits how often a span comes in an epoch, a leaf gets at most that many draws a span (`limits.py`), and keeps
its permutation throughout: of consecutive places in one circle none comes more than once a round, wherever an epoch begins.
Places in the epoch are still permuted anew, so the order of draws is not that of the epoch before.

Replacements of a failed draw come from the same leaf, each span once; where those are used up, or fail 16 times, from the node
above it, and so on up to the whole tree, since a leaf may hold nothing but one broken video.

Shapes: B draws, L leaves, N spans.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...kernels.philox import Stream, below, philox
from .limits import LimitedRounding
from .permutation import SORTED_PERMUTATION_LIMIT, feistel, permute
from .shares import QuotaRounding
from .tree import TreeSpans

KEPT_EPOCHS = 4
SPARES_PER_NODE = 16
MAX_LEAVES = 2**24

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Phase:
    """first_draw: of the run. spans: what is drawn from. quotas: (L,) draws an epoch of each leaf, summing to epoch_draws. limit:
    most draws of a span an epoch, 1 or more; None is none. Replacements of failed draws are not counted.

    Raises ValueError.
    """

    first_draw: int
    spans: TreeSpans
    quotas: NDArray[np.float64]
    epoch_draws: int
    limit: int | None = None

    def __post_init__(self) -> None:
        if len(self.quotas) != len(self.spans.sizes) or len(self.quotas) >= MAX_LEAVES:
            raise ValueError(
                f"{len(self.quotas)} quotas for {len(self.spans.sizes)} leaves, of which 2**24 are too many"
            )


class TreeOrder:
    """Draws spans, a `SpanOrder`. phases: in the order of their first draws; the first begins at draw 0, and every other at the
    end of an epoch of the one before. seed: 0 .. 2**64 - 1. Threads may share it. Raises ValueError."""

    def __init__(self, phases: Sequence[Phase], seed: int) -> None:
        if not phases or phases[0].first_draw != 0:
            raise ValueError("the first phase must begin at draw 0")
        self._parts: list[_PhaseDraws] = []
        for index, phase in enumerate(phases):
            start = np.zeros(len(phase.quotas), dtype=np.int64)
            if index:
                before = self._parts[-1]
                length = phase.first_draw - phases[index - 1].first_draw
                if length <= 0 or length % before.phase.epoch_draws:
                    raise ValueError(
                        f"a phase begins at draw {phase.first_draw:,}, which ends no epoch of the one before; epochs of "
                        f"{before.phase.epoch_draws:,} draws began at draw {phases[index - 1].first_draw:,}"
                    )
                start = _carry_on(before, length // before.phase.epoch_draws, phase.spans)
            self._parts.append(_PhaseDraws(phase, seed, start, index))
        self._first_draws = np.array([phase.first_draw for phase in phases], dtype=np.int64)

    @property
    def num_spans(self) -> int:
        """Spans of the last phase."""
        return len(self._parts[-1].phase.spans.video)

    @property
    def epoch_draws(self) -> int:
        """Draws of an epoch of the last phase."""
        return self._parts[-1].phase.epoch_draws

    @property
    def repeats(self) -> NDArray[np.float64]:
        """(N,) how often each span of the last phase is drawn an epoch, on average."""
        phase = self._parts[-1].phase
        return np.repeat(phase.quotas / phase.spans.sizes, phase.spans.sizes)

    def fingerprint(self, stop: int) -> str:
        """32 hex digits that change when any of the draws 0 .. stop - 1 may: those of the phases that have begun by then."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self._parts:
            if part.phase.first_draw < stop:
                digest.update(part.digest)
        return digest.hexdigest()

    def spans(
        self, draws: Integers, spare: int = 0, words: NDArray[np.uint32] | None = None
    ) -> tuple[Integers, Integers, Integers]:
        """(video, first frame, frames), each (B,) int64. See `SpanOrder`."""
        video, first_frame, frames = (np.empty(len(draws), dtype=np.int64) for _ in range(3))
        for part, chosen in self._by_phase(draws):
            member = part.members(
                draws[chosen] - part.phase.first_draw, spare, None if words is None else words[chosen]
            )
            spans = part.phase.spans
            video[chosen] = spans.video[member]
            first_frame[chosen], frames[chosen] = spans.first_frame[member], spans.span_frames[member]
        return video, first_frame, frames

    def leaves(self, draws: Integers) -> Integers:
        """(B,) the tree's number of the leaf that each draw comes from."""
        leaves = np.empty(len(draws), dtype=np.int64)
        for part, chosen in self._by_phase(draws):
            leaves[chosen] = part.phase.spans.leaf[part.places(draws[chosen] - part.phase.first_draw)[0]]
        return leaves

    def _by_phase(self, draws: Integers) -> list[tuple[_PhaseDraws, NDArray[np.intp]]]:
        which = np.searchsorted(self._first_draws, draws, side="right") - 1
        return [(self._parts[index], np.flatnonzero(which == index)) for index in np.unique(which).tolist()]


class _PhaseDraws:
    """The draws of one phase, counted from its first. start: (L,) position at which each leaf begins."""

    def __init__(self, phase: Phase, seed: int, start: Integers, index: int) -> None:
        self.phase, self.seed, self.start, self._index = phase, seed, start, index
        self._sizes = phase.spans.sizes
        self.rounding: QuotaRounding | LimitedRounding
        if phase.limit is None:
            self.rounding = QuotaRounding(phase.quotas, phase.epoch_draws, seed)
        else:
            self.rounding = LimitedRounding(phase.quotas, phase.limit * self._sizes, phase.epoch_draws, seed)
        self._tables: OrderedDict[int, tuple[Integers, Integers]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()

    @cached_property
    def digest(self) -> bytes:
        """Of all that this phase's draws follow from, but the phases before it."""
        phase, spans = self.phase, self.phase.spans
        digest = hashlib.blake2b(repr((self.seed, phase.first_draw, phase.epoch_draws)).encode(), digest_size=16)
        placed = (spans.video, spans.first_frame, spans.span_frames, spans.offsets, spans.leaf, spans.paths)
        for array in (*placed, phase.quotas):
            digest.update(np.ascontiguousarray(array).tobytes())
        if phase.limit is not None:
            digest.update(repr(phase.limit).encode())
        return digest.digest()

    def _table(self, epoch: int) -> tuple[Integers, Integers]:
        """Of an epoch: (L,) where each leaf's places end, (L,) what to add to a place for the position in the leaf."""
        with self._lock:
            if epoch not in self._tables:
                before = self.rounding.drawn_before(epoch)
                ends = np.cumsum(self.rounding.drawn_before(epoch + 1) - before)
                begins = np.concatenate([[0], ends[:-1]])
                self._tables[epoch] = (ends, self.start + before - begins)
                if len(self._tables) > KEPT_EPOCHS:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(epoch)
            return self._tables[epoch]

    def places(self, draws: Integers) -> tuple[Integers, Integers]:
        """(leaf, position in it) of draws (B,), counted over all epochs."""
        epochs = draws // self.phase.epoch_draws
        # The phase is part of the key: else a phase that changes nothing but its quotas would repeat the order of the first.
        keys = epochs | self._index << 40
        place = permute(draws % self.phase.epoch_draws, self.phase.epoch_draws, self.seed, keys, Stream.EPOCH)
        leaf, position = np.empty_like(place), np.empty_like(place)
        for epoch in np.unique(epochs).tolist():
            chosen = np.flatnonzero(epochs == epoch)
            ends, shift = self._table(epoch)
            leaf[chosen] = np.searchsorted(ends, place[chosen], side="right")
            position[chosen] = place[chosen] + shift[leaf[chosen]]
        return leaf, position

    def members(self, draws: Integers, spare: int, words: NDArray[np.uint32] | None) -> Integers:
        """(B,) places in the spans' arrays, of draws or of their replacements."""
        spans = self.phase.spans
        leaf, position = self.places(draws)
        size = self._sizes[leaf]
        cycle, inside = (position if self.phase.limit is None else self.start[leaf]) // size, position % size
        if spare and words is not None:
            # Those that follow in the leaf's present order: never the failed span itself, and none twice.
            inside = (inside + spare) % size
        member = spans.offsets[leaf] + permute_leaves(inside, size, self.seed, cycle, spans.leaf[leaf].astype(np.int64))
        if spare and words is not None:
            height = (spare - 1) // SPARES_PER_NODE
            for draw in np.flatnonzero(np.maximum(spare // size, height)).tolist():
                steps = max(int(spare // size[draw]), height)
                first, stop = self._node(int(leaf[draw]), steps)
                member[draw] = first + below(words[draw : draw + 1], stop - first)[0]
        return member

    def _node(self, leaf: int, steps: int) -> tuple[int, int]:
        """The range of spans of the node `steps` above a leaf, all where there is none so high."""
        paths, offsets = self.phase.spans.paths, self.phase.spans.offsets
        depth = max(paths.shape[1] - steps, 0)
        inside = (paths[:, :depth] == paths[leaf, :depth]).all(axis=1)
        first, last = np.flatnonzero(inside)[[0, -1]]
        return int(offsets[first]), int(offsets[last + 1])


def permute_leaves(positions: Integers, sizes: Integers, seed: int, cycles: Integers, leaves: Integers) -> Integers:
    """Where positions (B,), 0 .. sizes - 1, go under the permutations that (seed, cycle, leaf) key, each of its leaf's own size.

    cycles: (B,) below 2**40. leaves: (B,) below 2**24, the tree's numbers, which stay when others are left out. Returns (B,).
    """
    result = np.empty_like(positions)
    lowest = 0
    for limit in (4, 16, SORTED_PERMUTATION_LIMIT):
        chosen = np.flatnonzero((sizes > lowest) & (sizes <= limit))
        lowest = limit
        if not chosen.size:
            continue
        words = _leaf_words(seed, cycles[chosen], leaves[chosen], limit).astype(np.uint64)
        words[np.arange(limit) >= sizes[chosen, None]] = 1 << 40  # behind all that count
        order = np.argsort(words, axis=-1, kind="stable")
        result[chosen] = order[np.arange(len(chosen)), positions[chosen]]
    chosen = np.flatnonzero(sizes > SORTED_PERMUTATION_LIMIT)
    walked = positions[chosen]
    size, cycle, leaf = sizes[chosen], cycles[chosen], leaves[chosen]
    bits = np.frexp((size - 1).astype(np.float64))[1].astype(np.int64)  # bit length, exact below 2**53
    outside = np.arange(len(chosen))
    while outside.size:
        walked[outside] = feistel(walked[outside], bits[outside], seed, cycle[outside], Stream.LEAF, leaf[outside])
        outside = outside[walked[outside] >= size[outside]]
    result[chosen] = walked
    return result


def _leaf_words(seed: int, cycles: Integers, leaves: Integers, count: int) -> NDArray[np.uint32]:
    """(B, count) random numbers keyed by (seed, cycle, leaf)."""
    counter = np.empty((len(cycles), -(-count // 4), 4), dtype=np.uint64)
    counter[..., 0] = np.arange(counter.shape[1], dtype=np.uint64)
    counter[..., 1] = (cycles & 0xFFFFFFFF)[:, None]
    counter[..., 2] = (cycles >> 32)[:, None]
    counter[..., 3] = (Stream.LEAF | leaves << 8)[:, None]
    return philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(len(cycles), -1)[:, :count]


def _carry_on(before: _PhaseDraws, epochs: int, spans: TreeSpans) -> Integers:
    """(L,) the position at which each leaf of the next phase begins: where it was, if it has the same spans, else 0."""
    ends = before.start + before.rounding.drawn_before(epochs)
    known = {
        path: (digest, end) for path, digest, end in zip(*_identities(before.phase.spans), ends.tolist(), strict=True)
    }
    start = np.zeros(len(spans.leaf), dtype=np.int64)
    for leaf, (path, digest) in enumerate(zip(*_identities(spans), strict=True)):
        if (found := known.get(path)) is not None and found[0] == digest:
            start[leaf] = found[1]
    return start


def _identities(spans: TreeSpans) -> tuple[list[bytes], list[bytes]]:
    """The path and a hash of the spans of each leaf."""
    bounds = zip(spans.offsets[:-1].tolist(), spans.offsets[1:].tolist(), strict=True)
    hashes = [
        hashlib.blake2b(spans.video[a:b].tobytes() + spans.first_frame[a:b].tobytes(), digest_size=16).digest()
        for a, b in bounds
    ]
    return [path.tobytes() for path in spans.paths], hashes
