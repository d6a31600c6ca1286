"""k-means over rows that no memory holds: passes over the shards, a block at a time.

One pass checks the rows and takes a sample; the sample is clustered in memory; further passes are Lloyd's iterations over all
rows, by the kernel's sums; the last one assigns. Nothing grows with the number of rows but their labels and distances.

Distances come from products, whose rounding grows with what all rows share: the kernel gets rows and centroids less an origin, the
centroids' median: of a mean one far centroid would make an offset of its own.

Over several processes (torch.distributed) each reads its part of the rows; sums, labels and the sample are all-reduced.

Shapes: N rows, C clusters, D values a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels.kmeans_assign import kmeans_assign
from .embeddings import EmbeddingRows
from .processes import add_up, greatest, rank_and_size

BLOCK_ROWS = 32_768
FARTHEST_KEPT = 256

Report = Callable[[int], None]


@dataclass(frozen=True)
class Scan:
    """usable: (N,) rows that can be clustered. not_finite, constant: how many others hold NaN or infinity, or one value
    throughout. sample: (S, D) float32, drawn from the usable ones."""

    usable: NDArray[np.bool_]
    not_finite: int
    constant: int
    sample: NDArray[np.float32]


def scan_rows(rows: EmbeddingRows, sample_rows: int, seed: int, report: Report) -> Scan:
    """One pass: what is usable, and up to `sample_rows` random rows of it."""
    usable = np.zeros(rows.num_rows, dtype=bool)
    count = min(sample_rows, rows.num_rows)
    wanted = np.sort(np.random.default_rng([seed, 0]).choice(rows.num_rows, count, replace=False))
    sample = np.zeros((count, rows.width), dtype=np.float32)
    counts = torch.zeros(2, dtype=torch.int64)
    for start in _my_starts(rows):
        block = rows.read(start, min(start + BLOCK_ROWS, rows.num_rows))
        values = torch.from_numpy(block)
        least, most = values.amin(dim=1), values.amax(dim=1)  # NaN comes through both
        finite = torch.isfinite(least) & torch.isfinite(most)
        same = finite & (least == most)
        good = (finite & ~same).numpy()
        usable[start : start + len(block)] = good
        counts += torch.stack([(~finite).sum(), same.sum()])
        first, stop = np.searchsorted(wanted, [start, start + len(block)])
        chosen = wanted[first:stop] - start
        sample[first:stop][good[chosen]] = block[chosen[good[chosen]]]
        report(start + len(block))
    add_up(counts)
    greatest(torch.from_numpy(usable.view(np.uint8)))
    add_up(torch.from_numpy(sample))  # of each row one process knows the values, the others zeros: the sum is exact
    return Scan(usable, int(counts[0]), int(counts[1]), sample if usable[wanted].all() else sample[usable[wanted]])


@dataclass(frozen=True)
class PassResult:
    """centroids: (C, D) float32, the means of the clusters as they were assigned; empty ones are given the farthest rows.
    inertia: sum of squared distances to the centroids that were handed in. empty: clusters that had no row."""

    centroids: NDArray[np.float32]
    inertia: float
    empty: int


def lloyd_pass(
    rows: EmbeddingRows, usable: NDArray[np.bool_], centroids: NDArray[np.float32], device: torch.device, report: Report
) -> PassResult:
    """One of Lloyd's iterations over all usable rows."""
    sums = torch.zeros(centroids.shape, dtype=torch.float64, device=device)
    counts = torch.zeros(len(centroids), dtype=torch.int64, device=device)
    inertia = torch.zeros((), dtype=torch.float64, device=device)
    far_rows, far_distances = torch.empty(0, rows.width), torch.empty(0)
    origin = np.median(centroids, axis=0).astype(np.float32)
    held = _on_device(centroids, origin, device)
    for _, block in _my_blocks(rows, usable, report):
        values = _on_device(block, origin, device)
        block_sums = torch.zeros(centroids.shape, dtype=torch.float32, device=device)
        _, distances = kmeans_assign(values, held, block_sums, counts)
        sums += block_sums
        inertia += distances.sum(dtype=torch.float64)
        top = distances.topk(min(FARTHEST_KEPT, len(distances)))
        far_rows = torch.cat([far_rows, torch.from_numpy(block)[top.indices.cpu()].float()])
        far_distances = torch.cat([far_distances, top.values.float().cpu()])
        kept = far_distances.topk(min(FARTHEST_KEPT, len(far_distances))).indices
        far_rows, far_distances = far_rows[kept], far_distances[kept]
    far_rows = _sum_up([sums, counts, inertia], far_rows, far_distances)
    means = (sums / counts.clamp(min=1)[:, None] + torch.from_numpy(origin).to(device)).float().cpu().numpy()
    empty = np.flatnonzero(counts.cpu().numpy() == 0)
    means[empty] = centroids[empty]
    moved = min(len(empty), len(far_rows))
    means[empty[:moved]] = far_rows[:moved].numpy()
    return PassResult(means, float(inertia), len(empty))


def assign_pass(
    rows: EmbeddingRows, usable: NDArray[np.bool_], centroids: NDArray[np.float32], device: torch.device, report: Report
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """(N,) the nearest centroid, -1 for unusable rows, and (N,) the distance (not squared), NaN for those."""
    labels = np.full(rows.num_rows, -1, dtype=np.int32)
    distances = np.full(rows.num_rows, np.nan, dtype=np.float32)
    origin = np.median(centroids, axis=0).astype(np.float32)
    held = _on_device(centroids, origin, device)
    for start, block in _my_blocks(rows, usable, report):
        found, squares = kmeans_assign(_on_device(block, origin, device), held)
        chosen = start + np.flatnonzero(usable[start : start + BLOCK_ROWS])
        labels[chosen] = found.cpu().numpy()
        distances[chosen] = squares.sqrt().float().cpu().numpy()
    # Every process knows its part alone; what it does not know is -1.
    np.nan_to_num(distances, copy=False, nan=-1.0)
    greatest(torch.from_numpy(labels))
    greatest(torch.from_numpy(distances))
    distances[labels < 0] = np.nan
    return labels, distances


def _my_blocks(rows: EmbeddingRows, usable: NDArray[np.bool_], report: Report):
    """Yields (number of the first row of the block, its usable rows (n, D) fp16): this process's part of all blocks."""
    for start in _my_starts(rows):
        block = rows.read(start, min(start + BLOCK_ROWS, rows.num_rows))
        good = usable[start : start + len(block)]
        if good.any():
            yield start, block if good.all() else block[good]
        report(start + len(block))


def _my_starts(rows: EmbeddingRows) -> range:
    """Where this process's blocks begin; they lie together, the first process's first."""
    total = math.ceil(rows.num_rows / BLOCK_ROWS)
    rank, ranks = rank_and_size()
    first, stop = (total * part // ranks * BLOCK_ROWS for part in (rank, rank + 1))
    return range(first, min(stop, rows.num_rows), BLOCK_ROWS)


def _sum_up(totals: list[torch.Tensor], far_rows: torch.Tensor, far_distances: torch.Tensor) -> torch.Tensor:
    """Adds the totals over all processes, in place. Returns the rows that are farthest from their centroids, the farthest
    first."""
    for total in totals:
        add_up(total)
    if (ranks := rank_and_size()[1]) > 1:
        everyone: list[tuple[torch.Tensor, torch.Tensor] | None] = [None] * ranks
        torch.distributed.all_gather_object(everyone, (far_rows, far_distances))
        parts = [part for part in everyone if part is not None]
        far_rows, far_distances = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    return far_rows[far_distances.argsort(descending=True, stable=True)]


def _on_device(values: NDArray, origin: NDArray[np.float32], device: torch.device) -> torch.Tensor:
    """Less the origin; half precision on a GPU, whose kernel sums in float32; float32 on a CPU."""
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    centred = torch.from_numpy(values).to(device).float() - torch.from_numpy(origin).to(device)
    return centred.to(dtype)
