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

from ...kernels.philox import Stream, below, random_words
from ..corpus.corpus import Corpus
from ..video.timeline import Timeline
from .permutation import permute
from .screened import Screened
from .stretches import Stretches

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
        self.stretches = Stretches(self.video_frames, self.span_frames, pauses, screened)

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

    @property
    def num_videos(self) -> int:
        return len(self.video_frames)

    @property
    def num_spans(self) -> int:
        return self.stretches.num_spans if self.order is None else self.order.num_spans

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
        self.stretches.add_to(digest)
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
        begin, last = self.stretches.around(video, first)
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
        return self.stretches.placed(np.arange(self.stretches.num_spans))

    def _spans(self, draw: Integers, words: NDArray[np.uint32] | None) -> tuple[Integers, Integers, Integers]:
        """(video, first frame, frames) of the spans of these draws, all spans in turn; of replacements where there are words."""
        if words is not None:
            return self.stretches.placed(below(words[:, 0], self.num_spans))
        return self.stretches.placed(permute(draw % self.num_spans, self.num_spans, self.seed, draw // self.num_spans))
