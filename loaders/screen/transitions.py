"""Where a picture goes over into another one gradually: fades, dissolves and wipes, by colours alone.

A camera that moves leaves colours nearly as they are; in a transition those of one side go and those of the other come, and between
them stand colours that are of neither side. Pictures some time apart name the place, by a high threshold, and a low one finds its
ends, as in the twin comparison of Zhang, Kankanhalli and Smoliar (1993), which adds differences up from frame to frame instead.

Shapes: F scanned frames, 64 colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SCANNED = 2  # every how many frames one is looked at
COLOUR_CHANGE = 0.35  # Hellinger's distance of both sides, at least
HALF_SECONDS = (1.0, 3.0)  # from the middle of a transition to what is certainly of one side
CORE, FADED = 0.2, 0.07  # distance to both sides, of that between them: certainly in a transition, and to its ends
BESIDE = 4  # scanned frames on each side that are averaged
SHORTEST = 5  # frames


def transitions_in(roots: NDArray[np.float32], frames: NDArray[np.int64], fps: float) -> NDArray[np.int64]:
    """(T, 2) first frames of transitions and those behind their last, ascending.

    roots: (F, 64) square roots of the shares of colours, as of `colours`. frames: (F,) their numbers, every `SCANNED`-th of a
    shot. None is shorter than `SHORTEST` frames; one longer than 2.4 seconds may be told in two parts, its middle left out.
    """
    found: list[tuple[int, int]] = []
    for seconds in HALF_SECONDS:
        half = max(2, round(seconds * fps / SCANNED))
        if len(frames) <= 2 * half:
            continue
        apart = _distance(roots[: -2 * half], roots[2 * half :])
        for place in np.argsort(-apart).tolist():
            if apart[place] <= COLOUR_CHANGE:
                break
            middle = place + half
            if any(low - half < middle < high + half for low, high in found):
                continue
            ends = _ends(roots, middle - half, middle + half)
            if ends is not None and not any(low <= ends[1] and ends[0] <= high for low, high in found):
                found.append(ends)
    around = SCANNED // 2
    told = [(int(frames[low]) - around, int(frames[high]) + around + 1) for low, high in sorted(found)]
    longest = 2 * HALF_SECONDS[-1] * fps
    return np.array([(a, b) for a, b in told if SHORTEST <= b - a <= longest], np.int64).reshape(-1, 2)


def _ends(roots: NDArray[np.float32], before: int, behind: int) -> tuple[int, int] | None:
    """The first and the last scanned frame of what lies between `before` and `behind`; None where the change is sudden, or
    reaches an end. The sides are looked at anew beside what was found, so that what moves counts little."""
    low, high, first, last = before, behind, before, behind
    for limit in (CORE, FADED, FADED):
        one, other = _mean(roots[max(low - BESIDE, 0) : low + 1]), _mean(roots[high : high + BESIDE + 1])
        apart = float(_distance(one, other))
        if apart <= COLOUR_CHANGE:
            return None
        unlike = np.minimum(_distance(roots, one), _distance(roots, other)) > limit * apart
        nearer_other = _distance(roots, one) > _distance(roots, other)
        inside = np.flatnonzero(unlike[low + 1 : high]) + low + 1
        if not len(inside):
            return None
        # Where the one side's colours give way to the other's.
        turn = inside[np.abs(inside - (low + 1 + int(np.argmax(nearer_other[low + 1 : high + 1])))).argmin()]
        first, last = int(turn), int(turn)
        while first > 0 and unlike[first - 1]:
            first -= 1
        while last < len(roots) - 1 and unlike[last + 1]:
            last += 1
        if first == 0 or last == len(roots) - 1:
            return None
        low, high = max(first - BESIDE, 0), min(last + BESIDE, len(roots) - 1)
    return first, last


def _mean(roots: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.sqrt((roots**2).mean(axis=0))


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Hellinger's, 0 .. 1, over the last axis."""
    return np.sqrt(np.maximum(1.0 - (one * other).sum(axis=-1), 0.0))
