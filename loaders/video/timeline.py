"""Seconds of one video <-> its frame numbers, exactly, at constant and at variable frame rates; from the index alone.

Seconds are the player's: 0 is where the first of the file's streams starts, picture or sound, after edit lists, as FFmpeg tells it
(the container's `start_time`, from which players built on it count). So where the picture begins 2
seconds behind the sound, frame 0 is at 2 s, and where a recorder's clock begins at 10 hours, it is at 0. They are taken to be right
to a millisecond, as tables of annotations write them: a frame that begins half a millisecond later counts as begun.

Shapes: N frames or moments, T steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .video import GopTable, VideoError, VideoFacts

TOLERANCE_SECONDS = 0.0005


class Timeline:
    """When the frames of one video are on screen. last: its last frame's number. Raises VideoError where the index is damaged."""

    def __init__(self, video: VideoFacts, gops: GopTable) -> None:
        self.video, self.gops = video, gops
        self.last = video.frames - 1
        self._tick_seconds = video.time_base_numerator / video.time_base_denominator

    @property
    def end(self) -> float:
        """When the last frame has been shown for as long as frames usually are."""
        return self.video.start_seconds + self.video.duration_seconds

    def seconds(self, frame: int) -> float:
        """When `frame`, 0 .. last, begins."""
        return float(self.begins([frame])[0])

    def begins(self, frames: ArrayLike) -> NDArray[np.float64]:
        """(N,) when `frames` (N,), 0 .. last, begin."""
        numbers = np.asarray(frames, np.int64)
        first = int(numbers.min())
        pts = self._pts(first, int(numbers.max()) + 1)[numbers - first]
        return ((pts - self.video.zero_pts) * self._tick_seconds).astype(np.float64)

    def shown(self, seconds: float) -> int:
        """The frame that is on screen at `seconds`: the last one that has begun; the first one before that."""
        return int(self.shown_at([seconds])[0])

    def shown_at(self, seconds: ArrayLike) -> NDArray[np.int64]:
        """(N,) the frames that are on screen at `seconds` (N,)."""
        first, pts, ticks = self._around(seconds)
        return first + np.searchsorted(pts[1:], ticks, side="right")

    def nearest(self, seconds: ArrayLike) -> NDArray[np.int64]:
        """The frames that begin nearest to `seconds`, the later one of two; any shape."""
        first, pts, ticks = self._around(seconds)
        return first + np.searchsorted((pts[:-1] + pts[1:]) / 2, ticks, side="right")

    def sample(
        self, begins: NDArray[np.int64], steps: NDArray[np.float64], last: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(N, T) the frames nearest to `steps` (T,) seconds behind frames `begins` (N,), none behind `last` (N,); and which of
        those places are behind the time of that last one."""
        moments = self.begins(begins)[:, None] + steps
        half_way_out = self.begins(last) + (self.end - self.seconds(self.last)) / 2
        return np.minimum(self.nearest(moments), last[:, None]), moments >= half_way_out[:, None]

    def latest_start(self, seconds: float, last: NDArray[np.int64]) -> NDArray[np.int64]:
        """(N,) the last frames from which `seconds` pass until `last` (N,) begin."""
        return self.shown_at(self.begins(last) - seconds)

    def _around(self, seconds: ArrayLike) -> tuple[int, NDArray[np.int64], NDArray[np.float64]]:
        """(a frame before all of `seconds`, the pts from it to a frame behind them, `seconds` as pts); as far as there are such."""
        moments = np.asarray(seconds, np.float64) + TOLERANCE_SECONDS
        ticks = moments / self._tick_seconds + self.video.zero_pts
        gops = self.gops
        rows = np.searchsorted(gops.pts, [ticks.min(), ticks.max()], side="right") - 1
        low, high = (int(row) for row in np.maximum(rows, 0))
        first = min(max(int(gops.first_frame[low]) - 1, 0), self.last)
        stop = min(int(gops.first_frame[high] + gops.frames[high]) + 1, self.last + 1)
        return first, self._pts(first, stop), ticks

    def _pts(self, first: int, stop: int) -> NDArray[np.int64]:
        """The pts of the frames first .. stop - 1."""
        gops = self.gops
        # Some frames of a GOP are the leading pictures behind the next keyframe.
        low, high = gops.locate(first), min(gops.locate(stop - 1) + 1, len(gops) - 1)
        packets = gops.packets[int(gops.first_packet[low]) : int(gops.first_packet[high] + gops.num_packets[high])]
        packets = packets[(packets.frame >= first) & (packets.frame < stop)]
        if len(packets) != stop - first:
            raise VideoError(f"{self.video.path}: its GOPs and packets contradict each other; run `trocar index` again")
        return packets.pts[np.argsort(packets.frame, kind="stable")].astype(np.int64)
