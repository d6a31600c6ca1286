"""What stands on top of a video all through it: text, logos, clocks; and pictures in the picture.

Text keeps its edges where all else moves: a cell of the mask is covered where an edge is in nearly every one of several samples
that otherwise show different things. Where nothing moves, nothing can be told, and nothing is claimed.

Shapes: H W = 144 x 192 pixels of samples; the mask has the same cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from .pictures import HEIGHT, LUMA, WIDTH, Sample, changed_share

EDGE = 28.0  # of luma over two pixels
PERSISTENT = 0.85  # share of the samples that have an edge near
MOVED = 0.3  # share of the blocks in which a sample differs from the one before that counts
GROUP, STEP, FEWEST, MOST_GROUPS = 10, 5, 6, 24  # samples that are held together: a logo may drift
CLOSING = 4  # pixels between letters
THINNEST, LARGEST_SHARE, LEAST_FILL = 4, 0.4, 0.4
WIDENED = 2  # pixels by which edges reach beyond what they are of
STEADY_DEVIATION = 14.0  # of what an edge encloses
INSET_SIDES = (0.18, 0.6)  # of the picture's
# Of luma, from pixel to pixel: the most that counts, and what is enough in one sample and in each of two.
INSET_STEP, INSET_ALONE, INSET_TWICE = 40.0, 10.0, 4.0

Mask = NDArray[np.bool_]


def overlay_mask(samples: Sequence[Sample]) -> Mask:
    """(H, W) where text and logos stand. samples: of one video, in order; empty where too few of them differ."""
    counted: list[Sample] = []
    for sample in samples:
        if not counted or changed_share(counted[-1].thumbnail, sample.thumbnail) > MOVED:
            counted.append(sample)
    covered = np.zeros((HEIGHT, WIDTH), bool)
    if len(counted) < FEWEST:
        return covered
    last = max(len(counted) - GROUP, 0)
    for first in np.unique(np.linspace(0, last, min(last // STEP + 2, MOST_GROUPS)).round().astype(int)).tolist():
        lumas = np.stack([(sample.pixels @ LUMA).astype(np.float32) for sample in counted[first : first + GROUP]])
        edges = np.stack([dilated(_edges(luma), 1) for luma in lumas])
        covered |= _covered(edges.mean(axis=0) >= PERSISTENT, lumas.std(axis=0))
    return covered


def _edges(luma: NDArray[np.float32]) -> Mask:
    across, down = np.zeros_like(luma), np.zeros_like(luma)
    across[:, 1:-1] = np.abs(luma[:, 2:] - luma[:, :-2])
    down[1:-1] = np.abs(luma[2:] - luma[:-2])
    return np.maximum(across, down) > EDGE


def _covered(persistent: Mask, deviation: NDArray[np.float32]) -> Mask:
    """The boxes of what hangs together of persistent edges and is no mere line, as the border of a picture is one."""
    # Room around it: text near the picture's edge does not reach it.
    closed = eroded(dilated(np.pad(persistent, CLOSING), CLOSING), CLOSING)[CLOSING:-CLOSING, CLOSING:-CLOSING]
    enclosed = ~_reached(~closed) & (deviation < STEADY_DEVIATION)
    whole = eroded(dilated(closed | enclosed, 1), 1)
    labels = _components(whole)
    covered = np.zeros_like(persistent)
    for label in np.unique(labels[whole]).tolist():
        rows, columns = np.nonzero(labels == label)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        height, width = covered[box].shape
        is_line = min(height, width) < THINNEST
        if not is_line and height * width < LARGEST_SHARE * covered.size and len(rows) > LEAST_FILL * height * width:
            covered[box] = True
    return eroded(covered, WIDENED)


def dilated(mask: Mask, radius: int) -> Mask:
    """Every cell within `radius` of a covered one, in rows and columns."""
    for axis in (0, 1):
        padded = np.pad(mask, [(radius, radius) if axis == other else (0, 0) for other in (0, 1)])
        size = mask.shape[axis]
        parts = [np.take(padded, range(shift, shift + size), axis) for shift in range(2 * radius + 1)]
        mask = np.logical_or.reduce(parts)
    return mask


def eroded(mask: Mask, radius: int) -> Mask:
    """What is left of `mask` where cells within `radius` of an uncovered one go; beyond the picture all is covered."""
    return ~dilated(~mask, radius)


def _reached(free: Mask) -> Mask:
    """Which free cells can be come to from the picture's edge."""
    reached = np.zeros_like(free)
    reached[[0, -1]], reached[:, [0, -1]] = free[[0, -1]], free[:, [0, -1]]
    while True:
        further = dilated(reached, 1) & free
        if np.array_equal(further, reached):
            return reached
        reached = further


def _components(mask: Mask) -> NDArray[np.int64]:
    """(H, W) a number that cells of one component have in common: the largest index among them."""
    labels = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        padded = np.pad(labels, 1)
        shifts = [padded[1 + down : 1 + down + mask.shape[0], 1 + right : 1 + right + mask.shape[1]]
                  for down in (-1, 0, 1) for right in (-1, 0, 1)]  # fmt: skip
        spread = np.where(mask, np.maximum.reduce(shifts), 0)
        if np.array_equal(spread, labels):
            return labels
        labels = spread


def insets(samples: Sequence[Sample], covered: Mask) -> NDArray[np.bool_]:
    """(S,) in which samples a smaller picture stands in a corner: a straight vertical and a straight horizontal edge, as long as a
    picture's sides may be, from two sides of the picture to where they meet. Clear edges count in one sample alone, faint ones
    where they are in two, one after the other, for all else moves. What is covered (H, W) by text and logos does not count."""
    hidden, found = dilated(covered, 3), np.zeros(len(samples), bool)
    before: NDArray[np.floating] | None = None
    for index, sample in enumerate(samples):
        scores = _inset_scores((sample.pixels @ LUMA).astype(np.float32), hidden)
        found[index] |= scores.max() >= INSET_ALONE
        if before is not None and np.minimum(before, scores).max() >= INSET_TWICE:
            found[index - 1 : index + 1] = True
        before = scores
    return found


def _inset_scores(luma: NDArray[np.float32], hidden: Mask) -> NDArray[np.floating]:
    """(4, heights, widths): for each corner of the picture and each size of a smaller one in it, by how much luma steps at its
    edges, on average along the weaker one, more than beside them."""
    across, down = np.abs(np.diff(luma, axis=1)), np.abs(np.diff(luma, axis=0))
    across[hidden[:, 1:] | hidden[:, :-1]] = 0
    down[hidden[1:] | hidden[:-1]] = 0
    across, down = np.minimum(across, INSET_STEP), np.minimum(down, INSET_STEP)  # a short bright edge is no long one
    heights, widths = (np.arange(*(int(share * side) for share in INSET_SIDES)) for side in luma.shape)
    found = []
    for rows, columns in product((1, -1), (1, -1)):
        upright = np.cumsum(across[::rows, ::columns], axis=0)[heights - 1] / heights[:, None].astype(np.float32)
        level = (np.cumsum(down[::rows, ::columns], axis=1)[:, widths - 1] / widths.astype(np.float32)).T
        found.append(np.minimum(_beyond_others(upright)[:, widths - 1], _beyond_others(level)[:, heights - 1].T))
    return np.stack(found)


def _beyond_others(steps: NDArray[np.floating]) -> NDArray[np.floating]:
    """Steps less the largest of those two and three places beside them along the second axis."""
    padded = np.pad(steps, ((0, 0), (3, 3)), mode="edge")
    size = steps.shape[1]
    return steps - np.maximum.reduce([padded[:, shift : shift + size] for shift in (0, 1, 5, 6)])
