"""Did an arm deliver the frames it was asked for? Compared with ours and with their neighbours in time.

Libraries scale and convert a little differently, so equal frames differ by a level or two. What tells a frame from its neighbours
is not how large that difference is but that a neighbour's is larger, wherever the picture moves.

Shapes: N clips, T frames, R x R pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]

# In levels of 255, averaged over a frame. Between two frames that differ by less than the first nothing is decided. Above the
# second colours or view are wrong, which neighbours do not show: docs/performance.md, "Loading", has what was measured.
LEAST_MOTION = 0.5
LARGEST_DIFFERENCE = 4.0


@dataclass(frozen=True)
class Reference:
    """The clips as we decode them, and what stands `gap` frames before and behind each frame; (N, T, R, R, 3) each."""

    same: Frames
    before: Frames
    behind: Frames
    gap: int


@dataclass(frozen=True)
class Verdict:
    """How an arm's frames compare.

    difference: mean over all frames of the mean absolute difference to ours, in levels of 255. to_neighbours: the same to the
    nearer neighbour, over frames that move. moving_share: of all frames. wrong: (clip, position) of the first wrong frame, None
    where all are right. reason: why it is wrong.
    """

    difference: float
    to_neighbours: float
    moving_share: float
    wrong: tuple[int, int] | None
    reason: str


def judge(frames: Frames, reference: Reference) -> Verdict:
    """A frame is wrong where a neighbour that differs from it is as near, or where it differs by more than LARGEST_DIFFERENCE."""
    if frames.shape != reference.same.shape:
        return Verdict(float("inf"), float("inf"), 0.0, (0, 0), f"shape {frames.shape}, not {reference.same.shape}")
    difference = _difference(frames, reference.same)
    neighbours = np.stack([reference.before, reference.behind])
    motion = np.stack([_difference(reference.same, neighbour) for neighbour in neighbours])
    to_neighbours = np.stack([_difference(frames, neighbour) for neighbour in neighbours])
    to_neighbours[motion < LEAST_MOTION] = np.inf
    nearest = to_neighbours.min(axis=0)
    is_moving = np.isfinite(nearest)
    places = np.argwhere((difference > LARGEST_DIFFERENCE) | (is_moving & (nearest <= difference)))
    wrong, reason = None, ""
    if len(places):
        wrong = (int(places[0, 0]), int(places[0, 1]))
        reason = f"differs from ours by {difference[wrong]:.1f} of 255"
        if nearest[wrong] <= difference[wrong]:
            which = "before" if to_neighbours[0][wrong] <= to_neighbours[1][wrong] else "behind"
            reason += f", from ours {reference.gap} {which} it by {nearest[wrong]:.1f}"
        reason += f" ({len(places)} of {difference.size} frames are wrong)"
    moving = float(nearest[is_moving].mean()) if is_moving.any() else 0.0
    return Verdict(float(difference.mean()), moving, float(is_moving.mean()), wrong, reason)


def _difference(left: Frames, right: Frames) -> NDArray[np.float64]:
    """(N, T), the mean absolute difference of each frame."""
    pairs = zip(left, right, strict=True)  # clip by clip, for the sake of memory
    return np.stack([np.abs(one.astype(np.int16) - other).mean(axis=(1, 2, 3)) for one, other in pairs])
