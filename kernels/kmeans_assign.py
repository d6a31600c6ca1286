"""Nearest centroid of every row, without the N x C matrix of distances; sums and counts of the clusters, accumulated.

    label[n] = argmin over c of |x[n] - c|**2 = |c|**2 - 2 x[n] . c + |x[n]|**2,   the lowest c of equals
    distance[n] = that minimum, at least 0 (squared Euclidean)

Rows and centroids enter the matrix units in half precision, their products are summed in float32 and the minimum over each block
of centroids stays in registers. The cluster sums follow in a second pass, by a stable sort of the labels: no float atomics, so
equal rows give equal centroids, bit for bit. Rows come in chunks of any size; sums and counts carry over.

Shapes: N rows, C centroids, D width.
"""

from __future__ import annotations

import torch

from .launch import FLOAT_DTYPES, by_layout, ceil_div, directly, jit, launch, require, takes_triton, tl
from .row_sums import add_rows_by_index

# On the CPU: rows whose distances to all centroids are made at once, and the bytes that those may take.
CPU_BLOCK_BYTES = 64 << 20
HALF_TILE = dict(ROWS=128, CENTROIDS=128, VALUES=64, num_warps=8, num_stages=3)
FLOAT_TILE = dict(ROWS=32, CENTROIDS=64, VALUES=16, num_warps=4, num_stages=3)  # 2 spill on sm_100


def kmeans_assign_reference(rows: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """PyTorch version of `kmeans_assign`, by the N x C matrix of distances."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    rows, centroids = rows.to(dtype), centroids.to(dtype)
    squares = centroids.square().sum(dim=1) - 2 * rows @ centroids.T
    least, labels = squares.min(dim=1)
    return labels, (least + rows.square().sum(dim=1)).clamp(min=0)


def _assign_on_cpu(rows: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference, block by block: the distances of a block stay in one buffer, whatever the number of rows."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    wide = centroids.to(dtype)
    squares, transposed = wide.square().sum(dim=1), wide.T.contiguous()
    block = max(1, min(CPU_BLOCK_BYTES // (len(centroids) * dtype.itemsize), len(rows)))
    buffer = rows.new_empty(block, len(centroids), dtype=dtype)
    labels = rows.new_empty(len(rows), dtype=torch.int64)
    distances = rows.new_empty(len(rows), dtype=dtype)
    for start in range(0, len(rows), block):
        part = rows[start : start + block].to(dtype)
        candidates = buffer[: len(part)]
        torch.addmm(squares, part, transposed, alpha=-2, out=candidates)
        least, nearest = candidates.min(dim=1)
        labels[start : start + block] = nearest
        distances[start : start + block] = (least + part.square().sum(dim=1)).clamp_(min=0)
    return labels, distances


@jit
def _row_squares_kernel(rows, squares, num_rows, width, ROWS: tl.constexpr, VALUES: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros((ROWS, VALUES), dtype=tl.float32)
    for first in range(0, width, VALUES):
        value = first + tl.arange(0, VALUES)
        inside = (row < num_rows)[:, None] & (value < width)[None, :]
        part = tl.load(rows + row[:, None] * width + value[None, :], mask=inside, other=0.0).to(tl.float32)
        total += part * part
    tl.store(squares + row, tl.sum(total, axis=1), mask=row < num_rows)


@jit
def _assign_kernel(
    rows,
    centroids,
    row_squares,
    centroid_squares,
    labels,
    distances,
    num_rows,
    num_centroids,
    width,
    ROWS: tl.constexpr,
    CENTROIDS: tl.constexpr,
    VALUES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    best = tl.full((ROWS,), float("inf"), dtype=tl.float32)
    label = tl.zeros((ROWS,), dtype=tl.int32)
    for start in range(0, num_centroids, CENTROIDS):
        centroid = start + tl.arange(0, CENTROIDS)
        products = tl.zeros((ROWS, CENTROIDS), dtype=tl.float32)
        for first in range(0, width, VALUES):
            value = first + tl.arange(0, VALUES)
            inside = (row < num_rows)[:, None] & (value < width)[None, :]
            left = tl.load(rows + row[:, None] * width + value[None, :], mask=inside, other=0.0)
            inside = (value < width)[:, None] & (centroid < num_centroids)[None, :]
            place = centroid.to(tl.int64)[None, :] * width + value[:, None]
            right = tl.load(centroids + place, mask=inside, other=0.0)
            products = tl.dot(left, right, products, input_precision="ieee")
        squares = tl.load(centroid_squares + centroid, mask=centroid < num_centroids, other=float("inf"))
        candidates = squares[None, :] - 2.0 * products
        least, nearest = tl.min(candidates, axis=1, return_indices=True)
        label = tl.where(least < best, start + nearest, label)
        best = tl.minimum(least, best)
    distance = tl.maximum(best + tl.load(row_squares + row, mask=row < num_rows, other=0.0), 0.0)
    tl.store(labels + row, label.to(tl.int64), mask=row < num_rows)
    tl.store(distances + row, distance, mask=row < num_rows)


def _squares(rows: torch.Tensor) -> torch.Tensor:
    squares = rows.new_empty(len(rows), dtype=torch.float32)
    launch(_row_squares_kernel, (ceil_div(len(rows), 16),), rows, squares, *rows.shape, ROWS=16, VALUES=128)
    return squares


@torch.library.custom_op("trocar::kmeans_assign", mutates_args=())
def _kmeans_assign(rows: torch.Tensor, centroids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    labels = rows.new_empty(len(rows), dtype=torch.int64)
    distances = rows.new_empty(len(rows), dtype=torch.float32)
    tile = FLOAT_TILE if rows.dtype == torch.float32 else HALF_TILE
    launch(
        _assign_kernel,
        (ceil_div(len(rows), tile["ROWS"]),),
        *(rows, centroids, _squares(rows), _squares(centroids), labels, distances),
        *(len(rows), len(centroids), rows.shape[1]),
        **tile,
    )
    return labels, distances


@_kmeans_assign.register_fake
def _(rows, centroids):
    return rows.new_empty(rows.shape[0], dtype=torch.int64), rows.new_empty(rows.shape[0], dtype=torch.float32)


@by_layout
def _check(rows: torch.Tensor, centroids: torch.Tensor, sums: torch.Tensor | None, counts: torch.Tensor | None) -> None:
    """Raises as `kmeans_assign` does."""
    require("rows", rows, dtypes=FLOAT_DTYPES, shape=(None, None), like=rows)
    require("centroids", centroids, dtypes=(rows.dtype,), shape=(None, rows.shape[1]), like=rows)
    if (sums is None) != (counts is None):
        raise ValueError("sums and counts must be given together")
    if sums is not None and counts is not None:
        dtype = torch.promote_types(rows.dtype, torch.float32)
        require("sums", sums, dtypes=(dtype,), shape=tuple(centroids.shape), like=rows)
        require("counts", counts, dtypes=(torch.int64,), shape=(len(centroids),), like=rows)


@torch.no_grad()
def kmeans_assign(
    rows: torch.Tensor,
    centroids: torch.Tensor,
    sums: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Assigns rows to their nearest centroids.

    rows: (N, D), centroids: (C, D), of one floating dtype. sums: (C, D) float32 (float64 for float64), counts: (C,) int64; given
    together, the rows of each cluster and their number are added to them. Returns labels (N,) int64 and squared distances (N,)
    float32 at least. Raises ValueError on arguments of another dtype, shape, device or layout.
    """
    _check(rows, centroids, sums, counts)
    if takes_triton(rows):
        labels, distances = directly(_kmeans_assign, rows, centroids)
    else:
        labels, distances = (kmeans_assign_reference if rows.is_cuda else _assign_on_cpu)(rows, centroids)
    if sums is not None and counts is not None:
        add_rows_by_index(rows, labels, sums, counts)
    return labels, distances
