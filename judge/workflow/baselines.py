"""What needs no encoder: scores that a table of phases has to be read beside.

Shapes: T frames, K phases, V videos.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 100  # of relative time
NAMES = {
    "majority": "the commonest class of the training videos",
    "prior by time": "its commonest class at the same share of a video's length, which is known at a video's end alone",
    "copy last frame": "the truth of the frame before: what is reached without seeing a change of phase",
}


def baseline_scores(
    name: str, train: Sequence[NDArray], truth: NDArray, known: NDArray[np.bool_], phases: int
) -> NDArray[np.float64]:
    """(T, K) what a baseline says of a video. name: of NAMES. train: (T', K) bool of training frames that have a label, a video
    each, with the share of its length at which each stands, as `at_shares` has them. truth: (T, K) bool, known: (T,)."""
    if name == "copy last frame":
        found = np.tile(_shares(train), (len(truth), 1))
        last = np.maximum.accumulate(np.where(known, np.arange(len(truth)), -1))
        before = np.concatenate([[-1], last[:-1]]) if len(last) else last
        found[before >= 0] = truth[before[before >= 0]]
        return found
    if name == "majority":
        return np.tile(_shares(train), (len(truth), 1))
    table = prior_by_time(train, phases)
    return table[np.minimum((relative_times(len(truth)) * BINS).astype(int), BINS - 1)]


def at_shares(truth: NDArray, known: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(T', 1 + K) the share of the video's length at which each frame with a label stands, and its labels."""
    return np.concatenate([relative_times(len(truth))[:, None], truth.astype(float)], axis=1)[known]


def relative_times(frames: int) -> NDArray[np.float64]:
    """(T,) the middle of each frame as a share of the video."""
    return (np.arange(frames) + 0.5) / max(frames, 1)


def prior_by_time(train: Sequence[NDArray], phases: int) -> NDArray[np.float64]:
    """(BINS, K) shares of the classes at relative times; of the whole split where no frame stands."""
    rows = np.concatenate(list(train))
    bins = np.minimum((rows[:, 0] * BINS).astype(int), BINS - 1)
    sums = np.zeros((BINS, phases))
    np.add.at(sums, bins, rows[:, 1:])
    counts = np.bincount(bins, minlength=BINS)[:, None]
    return np.where(counts > 0, sums / np.maximum(counts, 1), _shares(train))


def _shares(train: Sequence[NDArray]) -> NDArray[np.float64]:
    return np.concatenate(list(train))[:, 1:].mean(axis=0)
