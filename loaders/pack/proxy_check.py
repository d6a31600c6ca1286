"""A proxy read again: is every frame there, where it belongs, and does it show what it was made from?

Shapes: F frames, S x S blocks of a thumbnail.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..video.decode import DecodeCount
from ..video.probe import probe_video
from ..video.sequence import read_frames
from ..video.video import VideoError
from .settings import PackSettings

THUMBNAIL_SIDE = 16
# In levels of 255, averaged over a thumbnail. docs/performance.md, "Proxies", says what was measured: at the coarsest accepted
# quality a frame differs from its source by less than the first, and is nearer to a neighbour's by less than the second.
LARGEST_ERROR = 4.0
ORDER_MARGIN = 0.75


@dataclass(frozen=True)
class Expected:
    """What a proxy has to hold: its size in pixels, the frames' times in ticks (F,), the tick, and thumbnails (F, S, S) uint8."""

    width: int
    height: int
    ticks: NDArray[np.int64]
    time_base: Fraction
    thumbnails: NDArray[np.uint8]


def thumbnail(frame: VideoFrame) -> NDArray[np.uint8]:
    """Mean luma of S x S blocks of a planar YUV frame, (S, S)."""
    plane = frame.planes[0]
    luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[: frame.height, : frame.width]
    rows, columns = (np.arange(THUMBNAIL_SIDE) * side // THUMBNAIL_SIDE for side in luma.shape)
    sums = np.add.reduceat(np.add.reduceat(luma, rows, axis=0, dtype=np.uint32), columns, axis=1)
    heights, widths = np.diff(rows, append=luma.shape[0]), np.diff(columns, append=luma.shape[1])
    return np.round(sums / (heights[:, None] * widths)).astype(np.uint8)


def check_proxy(path: Path, expected: Expected, settings: PackSettings) -> None:
    """Decodes the whole file and compares it with what went into it.

    Raises VideoError, naming the first difference, where the number of frames, their size or times, the place or kind of a
    keyframe, or what a frame shows is not as expected.
    """
    facts, gops = probe_video(path, content_box=False)
    num_frames = len(expected.ticks)

    def require(condition: bool, found: str) -> None:
        if not condition:
            raise VideoError(
                f"{path}: the proxy is not what was encoded: {found}; pack again, with another codec if it repeats"
            )

    require(facts.health == "ok", facts.health)
    require(facts.frames == num_frames, f"it holds {facts.frames} frames, not {num_frames}")
    size = (facts.width, facts.height)
    require(size == (expected.width, expected.height), f"{size} pixels, not {(expected.width, expected.height)}")
    keyframes = np.arange(0, num_frames, settings.keyframe_interval)
    require(
        np.array_equal(gops.first_frame, keyframes), f"keyframes at {gops.first_frame[:20]}, not at {keyframes[:20]}"
    )
    require(bool(gops.idr.all() and gops.clean.all()), "a keyframe is not a clean start")
    require(facts.reorder_depth == 0, f"pictures are reordered by {facts.reorder_depth}")
    tick = Fraction(facts.time_base_numerator, facts.time_base_denominator)
    thumbnails = expected.thumbnails.astype(np.int16)
    for number, pts, frame in read_frames(facts, gops, np.arange(num_frames), DecodeCount()):
        late = (pts - facts.start_pts) * tick - int(expected.ticks[number]) * expected.time_base
        require(abs(late) <= tick, f"frame {number} is shown {float(late):.4f} seconds late")
        near = thumbnails[max(number - 1, 0) : number + 2]
        errors = np.abs(near - thumbnail(frame)).mean(axis=(1, 2))
        own = float(errors[min(number, 1)])
        require(own <= LARGEST_ERROR, f"frame {number} differs from its source by {own:.1f} of 255")
        require(own <= errors.min() + ORDER_MARGIN, f"frame {number} shows one of its neighbours")
