"""How the frames of a video follow each other in time: rate, pauses, duration."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

# A gap between two frames is a pause if it is longer than this, and than so many usual gaps.
PAUSE_SECONDS, PAUSE_GAPS = 1.0, 3


@dataclass(frozen=True)
class FrameRate:
    """How a video's frames follow each other. fps: pauses left out. pauses: the frames behind one."""

    fps: Fraction
    duration_seconds: float
    is_variable: bool
    pauses: tuple[int, ...]


def frame_rate(frame_pts: NDArray[np.int64], time_base: Fraction, declared_fps: Fraction | None) -> FrameRate:
    """frame_pts: (N,) int64 in units of time_base, ascending, two or more. declared_fps: the container's, taken where it is within
    a hundredth of what the frames say."""
    gaps = np.diff(frame_pts)
    typical_gap = float(np.median(gaps))
    tolerance_ticks = max(1.5, 0.0015 / float(time_base))
    uneven = np.abs(gaps - typical_gap) > tolerance_ticks
    # Many gaps that are a little off, or frames that are missing in few.
    irregular = max(np.count_nonzero(uneven), np.abs(gaps[uneven] / typical_gap - 1).sum())
    longest_gap = max(PAUSE_SECONDS, PAUSE_GAPS * typical_gap * float(time_base))
    pauses = np.flatnonzero(gaps * float(time_base) > longest_gap) + 1
    recorded_ticks = int(np.delete(gaps, pauses - 1).sum())
    fps = Fraction(len(gaps) - len(pauses)) / (recorded_ticks * time_base)
    if declared_fps and abs(float(declared_fps / fps) - 1) < 0.01:
        fps = declared_fps
    return FrameRate(
        fps=fps.limit_denominator(1_000_000),
        duration_seconds=float((frame_pts[-1] - frame_pts[0] + typical_gap) * time_base),
        is_variable=bool(len(pauses) or irregular > max(3, len(frame_pts) // 1000)),
        pauses=tuple(pauses.tolist()),
    )
