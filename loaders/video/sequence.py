"""Frames of a whole video in order, as `trocar pack` wants them: window after window, so that memory stays flat.

Shapes: F wanted frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from .decode import DecodeCount, WindowDecoder
from .video import GopTable, VideoFacts
from .window import WindowReader

# A window may not begin but at a clean keyframe, so one GOP can be longer.
FRAMES_PER_WINDOW = 256


def read_frames(
    video: VideoFacts, gops: GopTable, frames: NDArray[np.int64], count: DecodeCount
) -> Iterator[tuple[int, int, VideoFrame]]:
    """Yields (frame number, pts in the video's ticks, decoded frame).

    frames: (F,) ascending, distinct, 0 .. frames - 1. Adds to `count`. Raises VideoError where the file has changed since it was
    indexed, and at the first window that cannot be read or decoded; frames of it may have been handed out.
    """
    with closing(WindowReader(video)) as windows, closing(WindowDecoder(video)) as decoder:
        for part in _parts(gops, frames):
            window = windows.window(part, gops)
            for index, frame in decoder.frames(window, count):
                yield int(part[index]), int(window.pts[index]), frame


def _parts(gops: GopTable, frames: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The frames, cut at clean keyframes into parts of FRAMES_PER_WINDOW or, where such keyframes are rare, more."""
    starts = gops.first_frame[gops.clean].astype(np.int64)
    begin = 0
    while begin < len(frames):
        later = starts[(starts > frames[begin]) & (starts <= frames[begin] + FRAMES_PER_WINDOW)]
        if not len(later):
            later = starts[starts > frames[begin]][:1]
        end = int(np.searchsorted(frames, later[-1])) if len(later) else len(frames)
        yield frames[begin:end]
        begin = end
