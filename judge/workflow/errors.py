"""Where phases change, in truth and in what is said: how far off, how often missed, from which to which.

Shapes: T frames with a label, K phases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .frame_metrics import VideoResult


@dataclass(frozen=True)
class Boundary:
    """A change of phase at frame `frame`, its first one. error_frames: from it to the nearest change into the same phase that is
    predicted, later is above 0; None where there is none in the video."""

    frame: int
    before: int
    after: int
    error_frames: int | None


def changes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The frames that begin another phase than the one before."""
    return np.flatnonzero(np.diff(labels)) + 1


def boundaries(video: VideoResult) -> list[Boundary]:
    """Of the truth, in order of time."""
    said = changes(video.predicted)
    found = []
    for frame in changes(video.truth).tolist():
        after = int(video.truth[frame])
        same = said[video.predicted[said] == after]
        error = None if not len(same) else int(same[np.abs(same - frame).argmin()]) - frame
        found.append(Boundary(frame, int(video.truth[frame - 1]), after, error))
    return found


def transitions(labels: Sequence[NDArray[np.int64]], phases: int) -> NDArray[np.int64]:
    """(K, K) how often a phase (row) is followed by another (column)."""
    table = np.zeros((phases, phases), np.int64)
    for row in labels:
        places = changes(row)
        np.add.at(table, (row[places - 1], row[places]), 1)
    return table
