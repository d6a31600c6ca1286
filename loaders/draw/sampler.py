"""(seed, draw number) -> clip: a pure function, so the order of a run needs no state.

Every video is cut at its pauses, and on a grid into base spans of (num_frames - 1) x stride + 1 frames; the spans of all videos
are numbered through. Draw n visits them in a keyed pseudo-random order: n // num_spans keys a permutation of all spans, n %
num_spans enters it, so every span is seen once before any is seen twice. The clip starts at the span's first frame plus a keyed
offset below the span's length, clamped at the end of the video, or at the pause that follows: no two visits see the same cut, no
frame is out of reach, and no clip crosses a pause. A stretch between two pauses that fills less than half a span is left out, if
the video has a longer one. Cuts are as pauses where a screen tells them, and what it leaves out is no stretch at all
(`screened.py`).

With sample_fps, in a video of variable rate, the grid still counts frames, so that a video weighs what it has pictures, at its
average rate; the clip takes the frames nearest in time.

Draw n is the same on 1 or 1,000 ranks, and resuming is one integer. Replacement k of a failed draw n is `spare` k of n, pure too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...kernels.philox import FEW, Stream, below, philox_integers, philox_words, random_words
from ..corpus.corpus import Corpus
from ..corpus.folder import CorpusError
from ..video.timeline import Timeline
from .screened import Screened

# Below this size a permutation is the argsort of random keys: a Feistel network of a few bits is far from uniform.
SORTED_PERMUTATION_LIMIT = 64
FEISTEL_ROUNDS = 6
MAX_SPARES = 64

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Clip:
    """One clip to read.

    draw, view, spare: what it was drawn for; spare 0 is the draw itself. video: row in the corpus. frames: (T,) frame numbers in
    display order, ascending. repeated: how many places show the frame before them again, or lie beyond a short video's end.
    label: whatever belongs to it, handed through. problem: why it cannot be read, where that is known before any frame is.
    """

    draw: int
    view: int
    spare: int
    video: int
    frames: Integers
    repeated: int
    label: Any = None
    problem: str = ""


def repeats(frames: Integers, beyond: NDArray[np.bool_]) -> Integers:
    """How many places of clips `frames` (..., T) show the frame before them again or are `beyond` (..., T) the video's end."""
    again = np.diff(frames, axis=-1, prepend=-1) == 0
    return (beyond | again).sum(axis=-1)


def feistel(
    values: Integers, bits: int | Integers, seed: int, cycles: Integers, stream: Stream, leaves: int | Integers = 0
) -> Integers:
    """A keyed permutation of 0 .. 2**bits - 1: a Feistel network whose round function is Philox (Luby and Rackoff 1988).

    values, cycles: (B,). bits: one number or (B,). leaves: below 2**24, part of the key. The halves have bits // 2 and
    bits - bits // 2 bits and change places every round.
    """
    if values.size <= FEW:  # as in `philox`, but all rounds at once
        table = np.broadcast(values, bits, cycles, leaves)
        found = [_feistel_integer(*map(int, row), seed=seed, stream=stream) for row in table]
        return np.array(found, np.int64).reshape(table.shape)
    low_bits = bits // 2
    left, right = values >> low_bits, values & ((1 << low_bits) - 1)
    left_bits, right_bits = bits - low_bits, low_bits
    cycle_low, cycle_high = (cycles & 0xFFFFFFFF).astype(np.uint64), cycles >> 32
    domain = np.asarray(stream | np.asarray(leaves, dtype=np.int64) << 8).astype(np.uint64)
    for round_number in range(FEISTEL_ROUNDS):
        second = (cycle_high | (round_number << 16)).astype(np.uint64)
        key = (seed & 0xFFFFFFFF, seed >> 32)
        mixed = philox_words(right.astype(np.uint64), cycle_low, second, domain, key)[0].astype(np.int64)
        left, right = right, left ^ (mixed & ((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return (left << right_bits) | right


def _feistel_integer(value: int, bits: int, cycle: int, leaf: int, *, seed: int, stream: int) -> int:
    low_bits = bits // 2
    left, right = value >> low_bits, value & ((1 << low_bits) - 1)
    left_bits, right_bits = bits - low_bits, low_bits
    cycle_low, cycle_high, domain = cycle & 0xFFFFFFFF, cycle >> 32, stream | leaf << 8
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for round_number in range(FEISTEL_ROUNDS):
        mixed = philox_integers(right, cycle_low, cycle_high | round_number << 16, domain, *key)[0]
        left, right = right, left ^ (mixed & ((1 << left_bits) - 1))
        left_bits, right_bits = right_bits, left_bits
    return left << right_bits | right


def permute(
    positions: Integers, size: int, seed: int, cycles: Integers, stream: Stream = Stream.PERMUTATION
) -> Integers:
    """Where `positions` go under the permutations of 0 .. size - 1 that (seed, cycle, stream) key.

    positions: (B,) in 0 .. size - 1. cycles: (B,), 0 .. 2**48 - 1. Returns (B,).
    """
    if size <= SORTED_PERMUTATION_LIMIT:
        distinct, which = np.unique(cycles, return_inverse=True)
        keys = random_words(seed, distinct, 0, stream, size)
        return np.argsort(keys, axis=-1, kind="stable")[which, positions]
    bits = (size - 1).bit_length()
    result = feistel(positions, bits, seed, cycles, stream)
    outside = np.flatnonzero(result >= size)
    while outside.size:  # cycle walking keeps it a permutation of the smaller set; two steps on average at most
        result[outside] = feistel(result[outside], bits, seed, cycles[outside], stream)
        outside = outside[result[outside] >= size]
    return result


class SpanOrder(Protocol):
    """Another order than `Sampler`'s own, as `tree_draws.TreeOrder` is one."""

    @property
    def num_spans(self) -> int: ...

    @property
    def epoch_draws(self) -> int: ...

    def spans(
        self, draws: Integers, spare: int, words: NDArray[np.uint32] | None
    ) -> tuple[Integers, Integers, Integers]:
        """(video, first frame, frames) of the base spans, each (B,), that `draws` (B,) or their replacements are cut from.

        words: (B,) random numbers for the choice of replacement `spare`; None where spare is 0.
        """
        ...

    def fingerprint(self, stop: int) -> str:
        """Hex digits that change when any of the draws 0 .. stop - 1 may."""
        ...


class Sampler:
    """Draws clips from a corpus.

    video_frames: (V,) frames of each video. num_frames: T. Exactly one of stride (decoded frames from one clip frame to the next,
    one number or (V,)) and sample_fps (clip frames a second, for corpora of mixed frame rates; needs video_fps (V,)). pauses: (N,
    2) as a `Corpus` has them. timeline: when the frames of a video are shown, asked for with sample_fps where it has a
    variable_rate (V,); without, all rates are taken for constant. `Sampler.of` gives all this from a corpus. seed: 0 .. 2**64 - 1.
    order: draws from a cluster tree instead of from all spans alike; spans are the tree's then, and a longer clip reaches into
    those that follow. screened: where clips may lie. Raises ValueError on values out of range, CorpusError where no span is left.
    """

    max_spares = MAX_SPARES

    def __init__(
        self,
        video_frames: ArrayLike,
        *,
        num_frames: int,
        stride: ArrayLike | None = None,
        sample_fps: float | None = None,
        video_fps: ArrayLike | None = None,
        pauses: Integers | None = None,
        variable_rate: NDArray[np.bool_] | None = None,
        timeline: Callable[[int], Timeline] | None = None,
        seed: int = 0,
        order: SpanOrder | None = None,
        screened: Screened | None = None,
    ) -> None:
        self.video_frames = np.asarray(video_frames, dtype=np.int64)
        self.num_frames, self.seed, self.order = num_frames, seed, order
        if not self.video_frames.size or self.video_frames.min() < 1:
            raise ValueError("the sampler needs at least one video, each with at least one frame")
        if num_frames < 1:
            raise ValueError(f"num_frames must be at least 1, got {num_frames}")
        if (stride is None) == (sample_fps is None):
            raise ValueError(f"give exactly one of stride and sample_fps, got stride={stride}, sample_fps={sample_fps}")
        if stride is not None:
            if np.asarray(stride).min() < 1:
                raise ValueError(f"stride must be at least 1, got {stride}")
            self.stride = np.full(len(self.video_frames), stride, dtype=np.float64)
        else:
            if video_fps is None or sample_fps is None or sample_fps <= 0:
                raise ValueError(
                    f"sample_fps must be positive and needs the frame rate of every video, got {sample_fps}"
                )
            self.stride = np.asarray(video_fps, dtype=np.float64) / sample_fps
        self.span_frames = self._offsets(self.stride)[:, -1] + 1
        # Where the rate is constant, frames are counted; else their times are looked up.
        self._timeline = timeline
        self._by_time = np.zeros(len(self.video_frames), bool)
        if sample_fps is not None and variable_rate is not None and timeline is not None:
            self._by_time = np.asarray(variable_rate, bool)
            self._steps = np.arange(num_frames) / sample_fps
        # Stretches between pauses, in frames of all videos numbered through.
        self._first_frame = np.concatenate([[0], np.cumsum(self.video_frames)])
        pauses = np.zeros((0, 2), np.int64) if pauses is None else pauses
        starts = np.union1d(self._first_frame[:-1], self._first_frame[pauses[:, 0]] + pauses[:, 1])
        self._is_left_out = np.zeros(len(starts), bool)
        self._is_screened = np.zeros(self.num_videos, bool)
        if screened is not None:
            starts = self._screen(starts, screened)
        self._stretches = np.append(starts, self._first_frame[-1])
        self._stretch_video = np.searchsorted(self._first_frame, starts, side="right") - 1
        self._first_span = np.concatenate([[0], np.cumsum(self._spans_of_stretches())])
        if not self._first_span[-1]:
            raise CorpusError("data.where and data.within_shots leave no stretch as long as half a clip; ask for less")

    @classmethod
    def of(
        cls,
        corpus: Corpus,
        *,
        num_frames: int,
        stride: int | None = None,
        sample_fps: float | None = None,
        seed: int = 0,
        order: SpanOrder | None = None,
        screened: Screened | None = None,
    ) -> Sampler:
        """Of a corpus of originals or proxies. stride: in frames of the originals, a multiple of what the proxies keep."""
        return cls(
            corpus.frames,
            num_frames=num_frames,
            stride=None if stride is None else stride // corpus.packed_stride,
            sample_fps=sample_fps,
            video_fps=corpus.fps,
            pauses=corpus.pauses,
            variable_rate=corpus.variable_rate,
            timeline=corpus.timeline,
            seed=seed,
            order=order,
            screened=screened,
        )

    def _screen(self, starts: Integers, screened: Screened) -> Integers:
        """Where stretches start that begin at `starts` and wherever a screen says; those that it leaves out are marked."""
        breaks, left_out = screened.breaks, screened.left_out
        begin, end = (self._first_frame[left_out[:, 0]] + left_out[:, column] for column in (1, 2))
        starts = np.unique(np.concatenate([starts, self._first_frame[breaks[:, 0]] + breaks[:, 1], begin, end]))
        starts = starts[starts < self._first_frame[-1]]
        # Spans of a screen overlap nowhere, so what begins inside of one is left out.
        order = np.argsort(begin)
        inside = np.searchsorted(begin[order], starts, side="right") - 1
        self._is_left_out = (inside >= 0) & (starts < np.append(end[order], 0)[inside])
        self._is_screened[np.concatenate([breaks[:, 0], left_out[:, 0]])] = True
        return starts

    def _spans_of_stretches(self) -> Integers:
        video, frames = self._stretch_video, np.diff(self._stretches)
        length = self.span_frames[video]
        kept = 2 * frames >= length
        longest_first = np.lexsort((-frames, video))
        longest = longest_first[np.unique(video[longest_first], return_index=True)[1]]
        kept[longest[~self._is_screened[video[longest]]]] = True
        return np.where(kept & ~self._is_left_out, np.maximum(frames // length, 1), 0)

    def within(
        self, video: Integers, first: Integers, frames: Integers
    ) -> tuple[NDArray[np.bool_], Integers, Integers]:
        """Of spans (N,) of videos, from frame `first` on: whether half or more of each lies in one stretch that is not left out,
        and the first frame and the frames of its longest such part. All as they are in videos that no screen says anything of."""
        begin = self._first_frame[video] + first
        end = np.minimum(begin + frames, self._first_frame[video + 1])
        stretch = np.searchsorted(self._stretches, begin, side="right") - 1
        last = np.searchsorted(self._stretches, end - 1, side="right") - 1
        best, length = begin.copy(), np.zeros_like(frames)
        for step in range(int((last - stretch).max(initial=-1)) + 1):
            here = np.minimum(stretch + step, last)
            start, stop = np.maximum(begin, self._stretches[here]), np.minimum(end, self._stretches[here + 1])
            part = np.where((stretch + step <= last) & ~self._is_left_out[here], stop - start, 0)
            better = part > length
            best, length = np.where(better, start, best), np.where(better, part, length)
        untouched = ~self._is_screened[video]
        kept = untouched | (2 * length >= frames)
        return kept, np.where(untouched, first, best - self._first_frame[video]), np.where(untouched, frames, length)

    @property
    def num_videos(self) -> int:
        return len(self.video_frames)

    @property
    def num_spans(self) -> int:
        return int(self._first_span[-1]) if self.order is None else self.order.num_spans

    @property
    def epoch_draws(self) -> int:
        """Draws of an epoch: every span once, where no tree says otherwise."""
        return self.num_spans if self.order is None else self.order.epoch_draws

    def fingerprint(self, stop: int) -> str:
        """32 hex digits that change when any of the draws 0 .. stop - 1 may: their spans, or where in them clips start."""
        order = "" if self.order is None else self.order.fingerprint(stop)
        digest = hashlib.blake2b(repr((self.num_frames, self.seed, order)).encode(), digest_size=16)
        for array in (self.video_frames, self.stride):
            digest.update(array.tobytes())
        # What has neither pauses nor variable rates is drawn from as before there was a look at them.
        if len(self._stretch_video) > self.num_videos:
            digest.update(self._stretches.tobytes())
        if self._is_left_out.any():
            digest.update(self._is_left_out.tobytes())
        if self._by_time.any():
            digest.update(self._by_time.tobytes())
        return digest.hexdigest()

    def _offsets(self, stride: NDArray[np.float64]) -> Integers:
        """Frame offsets inside a clip, (B, T), for the strides (B,)."""
        return np.floor(np.arange(self.num_frames) * stride[:, None] + 0.5).astype(np.int64)

    def clips(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> list[Clip]:
        """The clips of these draws.

        draws: (B,) in 0 .. 2**48 - 1. view: which of several views of one draw: the same span, another offset. spare: 0, or k
        for the k-th replacement.
        """
        draw = np.asarray(draws, dtype=np.int64)
        video, frames, repeated = self.frames(draw, view=view, spare=spare)
        return [
            Clip(*values)
            for values in zip(
                draw.tolist(), [view] * len(draw), [spare] * len(draw), video.tolist(), frames, repeated.tolist(),
                strict=True,
            )
        ]  # fmt: skip

    def frames(self, draws: ArrayLike, *, view: int = 0, spare: int = 0) -> tuple[Integers, Integers, Integers]:
        """`clips` as arrays: (B,) videos, (B, T) frame numbers, (B,) how many places repeat the frame before."""
        draw = np.asarray(draws, dtype=np.int64)
        words = random_words(self.seed, draw, spare, Stream.SPARE, 2 + view) if spare else None
        if self.order is None:
            video, first, length = self._spans(draw, words)
        else:
            video, first, length = self.order.spans(draw, spare, None if words is None else words[:, 0])
        if words is not None:
            offset_word = words[:, 1 + view]
        else:
            offset_word = random_words(self.seed, draw, view, Stream.JITTER, 1)[:, 0]
        return video, *self.frames_from(video, first, first + below(offset_word, length))

    def frames_from(self, video: Integers, first: Integers, start: Integers | None = None) -> tuple[Integers, Integers]:
        """(B, T) frame numbers of clips of videos (B,) from frame `start` (B,) on, or from the first of the span, `first` (B,),
        moved into the stretch between pauses that holds `first` where they would reach beyond; (B,) how many places repeat the
        frame before, for there are fewer frames than a clip has."""
        before = self._first_frame[video]
        stretch = np.searchsorted(self._stretches, before + first, side="right") - 1
        begin, last = self._stretches[stretch] - before, self._stretches[stretch + 1] - before - 1
        start = first if start is None else start
        counted = np.maximum(np.minimum(start, last + 1 - self.span_frames[video]), begin)
        frames = counted[:, None] + self._offsets(self.stride[video])
        beyond = frames > last[:, None]
        frames = np.minimum(frames, last[:, None])
        by_time = video[self._by_time[video]]
        for row in np.unique(by_time).tolist() if by_time.size else ():
            assert self._timeline is not None
            chosen, timeline = np.flatnonzero(video == row), self._timeline(row)
            latest = timeline.latest_start(self._steps[-1], last[chosen])
            begins = np.maximum(np.minimum(start[chosen], latest), begin[chosen])
            frames[chosen], beyond[chosen] = timeline.sample(begins, self._steps, last[chosen])
        return frames, repeats(frames, beyond)

    def grid(self) -> tuple[Integers, Integers, Integers]:
        """(video, first frame, frames), each (num_spans,), of all spans in turn, where no other order is given."""
        counts = np.diff(self._first_span)
        stretch = np.repeat(np.arange(len(counts)), counts)
        return self._placed(np.arange(len(stretch)), stretch)

    def _spans(self, draw: Integers, words: NDArray[np.uint32] | None) -> tuple[Integers, Integers, Integers]:
        """(video, first frame, frames) of the spans of these draws, all spans in turn; of replacements where there are words."""
        if words is not None:
            span = below(words[:, 0], self.num_spans)
        else:
            span = permute(draw % self.num_spans, self.num_spans, self.seed, draw // self.num_spans)
        return self._placed(span, np.searchsorted(self._first_span, span, side="right") - 1)

    def _placed(self, span: Integers, stretch: Integers) -> tuple[Integers, Integers, Integers]:
        video = self._stretch_video[stretch]
        length = self.span_frames[video]
        first = self._stretches[stretch] - self._first_frame[video] + (span - self._first_span[stretch]) * length
        return video, first, length
