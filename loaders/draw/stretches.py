"""A corpus as stretches that no clip leaves, and the base spans on them, numbered through.

Every video is cut at its pauses and, where there is a screen, at its cuts and at what the screen leaves out; a stretch holds as
many spans as fit, and one where it fills at least half of one. A video's longest stretch has a span in any case, unless a screen
says something of the video.

Shapes: V videos, S stretches, N spans.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from ..corpus.folder import CorpusError
from .screened import Screened

Integers = NDArray[np.int64]


class Stretches:
    """video_frames, span_frames: (V,) frames of each video, and of a base span in it. pauses: (K, 2) as a `Corpus` has them.
    screened: where clips may lie.

    Raises CorpusError where no span is left.
    """

    def __init__(
        self,
        video_frames: Integers,
        span_frames: Integers,
        pauses: Integers | None = None,
        screened: Screened | None = None,
    ) -> None:
        self._span_frames = span_frames
        # In frames of all videos numbered through.
        self._first_frame = np.concatenate([[0], np.cumsum(video_frames)])
        pauses = np.zeros((0, 2), np.int64) if pauses is None else pauses
        starts = np.union1d(self._first_frame[:-1], self._first_frame[pauses[:, 0]] + pauses[:, 1])
        self._is_left_out = np.zeros(len(starts), bool)
        self._is_screened = np.zeros(len(video_frames), bool)
        if screened is not None:
            starts = self._screen(starts, screened)
        self._bounds = np.append(starts, self._first_frame[-1])
        self._video = np.searchsorted(self._first_frame, starts, side="right") - 1
        self._first_span = np.concatenate([[0], np.cumsum(self._count_spans())])
        if not self.num_spans:
            raise CorpusError("data.where and data.within_shots leave no stretch as long as half a clip; ask for less")

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

    def _count_spans(self) -> Integers:
        video, frames = self._video, np.diff(self._bounds)
        length = self._span_frames[video]
        kept = 2 * frames >= length
        longest_first = np.lexsort((-frames, video))
        longest = longest_first[np.unique(video[longest_first], return_index=True)[1]]
        kept[longest[~self._is_screened[video[longest]]]] = True
        return np.where(kept & ~self._is_left_out, np.maximum(frames // length, 1), 0)

    @property
    def num_spans(self) -> int:
        return int(self._first_span[-1])

    def placed(self, span: Integers) -> tuple[Integers, Integers, Integers]:
        """(video, first frame, frames), each (B,), of spans (B,) in 0 .. num_spans - 1."""
        stretch = np.searchsorted(self._first_span, span, side="right") - 1
        video = self._video[stretch]
        length = self._span_frames[video]
        first = self._bounds[stretch] - self._first_frame[video] + (span - self._first_span[stretch]) * length
        return video, first, length

    def around(self, video: Integers, frame: Integers) -> tuple[Integers, Integers]:
        """The first and the last frame, each (B,), of the stretches that hold frames (B,) of videos (B,)."""
        before = self._first_frame[video]
        stretch = np.searchsorted(self._bounds, before + frame, side="right") - 1
        return self._bounds[stretch] - before, self._bounds[stretch + 1] - before - 1

    def within(
        self, video: Integers, first: Integers, frames: Integers
    ) -> tuple[NDArray[np.bool_], Integers, Integers]:
        """Of spans (N,) of videos, from frame `first` on: whether half or more of each lies in one stretch that is not left out,
        and the first frame and the frames of its longest such part. All as they are in videos that no screen says anything of."""
        begin = self._first_frame[video] + first
        end = np.minimum(begin + frames, self._first_frame[video + 1])
        stretch = np.searchsorted(self._bounds, begin, side="right") - 1
        last = np.searchsorted(self._bounds, end - 1, side="right") - 1
        best, length = begin.copy(), np.zeros_like(frames)
        for step in range(int((last - stretch).max(initial=-1)) + 1):
            here = np.minimum(stretch + step, last)
            start, stop = np.maximum(begin, self._bounds[here]), np.minimum(end, self._bounds[here + 1])
            part = np.where((stretch + step <= last) & ~self._is_left_out[here], stop - start, 0)
            better = part > length
            best, length = np.where(better, start, best), np.where(better, part, length)
        untouched = ~self._is_screened[video]
        kept = untouched | (2 * length >= frames)
        return kept, np.where(untouched, first, best - self._first_frame[video]), np.where(untouched, frames, length)

    def add_to(self, digest: hashlib.blake2b) -> None:
        """What has no pauses is drawn from as before there was a look at them, so its fingerprint says nothing of them."""
        if len(self._video) > len(self._is_screened):
            digest.update(self._bounds.tobytes())
        if self._is_left_out.any():
            digest.update(self._is_left_out.tobytes())
