"""Near-duplicate spans: how near each span is to another of its leaf (SemDeDup's idea, Abbas et al. 2023, arXiv 2303.09540).

The spans of a leaf stand in the order of their distance from its centroid, the farthest first; each one's duplicate distance is
the least to any before it. Leaving out all spans below a threshold then keeps, of every group of near-duplicates, the one
farthest from the centroid; and the threshold may be chosen when the clips are drawn.

Shapes: N spans, D values a row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from .embeddings import EmbeddingRows

MEASURED_ROWS = 200_000
BLOCK = 2048
THRESHOLDS = (0.05, 0.1, 0.2)  # of the rows' root mean square distance from their leaves' centroids


def duplicate_distances(
    rows: EmbeddingRows, labels: NDArray[np.int32], distances: NDArray[np.float32], *, everything: bool, seed: int
) -> tuple[NDArray[np.float32], int, dict[str, float]]:
    """(N,) duplicate distances, NaN where not measured; how many were; the share of those within some distances.

    everything: all leaves, else a random part of them with about 200,000 spans where there are more.
    """
    result = np.full(len(labels), np.nan, dtype=np.float32)
    order = np.lexsort((-distances, labels))
    order = order[np.searchsorted(labels[order], 0) :]
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    leaves = np.arange(len(starts))
    bounds = np.append(starts, len(order))
    if not everything and len(order) > MEASURED_ROWS:
        leaves = np.random.default_rng([seed, 7]).permutation(leaves)
        sizes = np.diff(bounds)[leaves]
        leaves = leaves[: max(1, int(np.searchsorted(np.cumsum(sizes), MEASURED_ROWS)))]
    for leaf in leaves.tolist():
        members = order[bounds[leaf] : bounds[leaf + 1]]
        result[members] = _nearest_before(rows.take(members))
    measured = result[~np.isnan(result)]
    scale = float(np.sqrt(np.mean(distances[labels >= 0].astype(np.float64) ** 2)))
    shares = {
        f"{share:g} x {scale:.3g} = {share * scale:.3g}": float((measured < share * scale).mean())
        for share in THRESHOLDS
    }
    return result, len(measured), shares


def _nearest_before(values: NDArray[np.float16]) -> NDArray[np.float32]:
    """(n,) the least Euclidean distance of each row to any before it; infinite for the first.

    `cdist` takes it from products of rows, |a|**2 - 2 a . b + |b|**2, whose rounding grows with what all rows share: their mean is
    taken off first, and what is left of the rounding is some thousandths of the rows' distance from it.
    """
    rows = torch.from_numpy(values).float()
    rows -= rows.mean(dim=0)
    nearest = torch.full((len(rows),), float("inf"))
    for start in range(0, len(rows), BLOCK):
        block, mine = rows[start : start + BLOCK], nearest[start : start + BLOCK]
        own = torch.cdist(block, block).masked_fill_(torch.ones(len(block), len(block)).triu().bool(), float("inf"))
        torch.minimum(mine, own.amin(dim=1), out=mine)
        for other in range(0, start, BLOCK):
            torch.minimum(mine, torch.cdist(block, rows[other : other + BLOCK]).amin(dim=1), out=mine)
    return nearest.numpy()
