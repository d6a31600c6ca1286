"""Sums of rows, in a fixed order: what the gradients of broadcast and gathered vectors come down to.

    sum_rows:           total[d] = sum over b, r of rows[b, r, d]
    sum_rows_by_index:  total[n, d] = sum over i with indices[i] = n of rows[i, d]

No atomics: the order of every addition is fixed by the shapes (and, by index, by a stable sort), so steps repeat exactly.

Shapes: B clips, R rows a clip, L = B * R rows, N places, D width. Sums are float32.
"""

from __future__ import annotations

import torch

from .launch import ceil_div, directly, jit, launch, power_of_two, takes_triton, tl

ROWS, COLUMNS = 16, 64
ROWS_PER_SPLIT = 256


def sum_rows_reference(rows: torch.Tensor) -> torch.Tensor:
    """PyTorch version of `sum_rows`."""
    return rows.sum(dim=(0, 1), dtype=torch.promote_types(rows.dtype, torch.float32))


def sum_rows_by_index_reference(rows: torch.Tensor, indices: torch.Tensor, places: int) -> torch.Tensor:
    """PyTorch version of `sum_rows_by_index`."""
    total = rows.new_zeros(places, rows.shape[1], dtype=torch.promote_types(rows.dtype, torch.float32))
    return total.index_add_(0, indices, rows.to(total.dtype))


@jit
def _sum_rows_kernel(
    rows, totals, num_rows, rows_per_clip, clip_stride, width, rows_per_split, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    split, column = tl.program_id(0), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    first = split * rows_per_split
    for start in range(first, tl.minimum(first + rows_per_split, num_rows), ROWS):
        row = start + tl.arange(0, ROWS)
        place = (row // rows_per_clip).to(tl.int64) * clip_stride + (row % rows_per_clip).to(tl.int64) * width
        inside = (row < num_rows)[:, None] & (column < width)[None, :]
        total += tl.load(rows + place[:, None] + column[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(totals + split.to(tl.int64) * width + column, tl.sum(total, axis=0), mask=column < width)


@jit
def _sum_by_index_kernel(
    rows, order, starts, totals, counts, width, ACCUMULATE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    place, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    start, end = tl.load(starts + place), tl.load(starts + place + 1)
    for first in range(start, end, ROWS):
        position = first + tl.arange(0, ROWS)
        row = tl.load(order + position, mask=position < end, other=0)
        inside = (position < end)[:, None] & (column < width)[None, :]
        total += tl.load(rows + row[:, None] * width + column[None, :], mask=inside, other=0.0).to(tl.float32)
    result, target = tl.sum(total, axis=0), totals + place * width + column
    if ACCUMULATE:
        result += tl.load(target, mask=column < width, other=0.0)
        if tl.program_id(1) == 0:
            tl.store(counts + place, tl.load(counts + place) + (end - start))
    tl.store(target, result, mask=column < width)


def sum_rows(rows: torch.Tensor) -> torch.Tensor:
    """rows: (B, R, D), the R rows of a clip dense. Returns (D,) in float32 (float64 for float64)."""
    if not takes_triton(rows):
        return sum_rows_reference(rows)
    clips, rows_per_clip, width = rows.shape
    num_rows = clips * rows_per_clip
    splits = ceil_div(num_rows, ROWS_PER_SPLIT)
    partial = rows.new_empty(splits, width, dtype=torch.float32)
    columns = ceil_div(width, COLUMNS)
    launch(
        _sum_rows_kernel,
        (splits, columns),
        *(rows, partial, num_rows, rows_per_clip, rows.stride(0), width, ROWS_PER_SPLIT),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    total = rows.new_empty(width, dtype=torch.float32)
    launch(
        _sum_rows_kernel,
        (1, columns),
        *(partial, total, splits, splits, 0, width, power_of_two(splits)),
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    return total


def segments(indices: torch.Tensor, places: int) -> tuple[torch.Tensor, torch.Tensor]:
    """order: (L,) row numbers, those of place 0 first, ascending. starts: (N + 1,), where each place's rows begin in it."""
    ordered, order = torch.sort(indices.long(), stable=True)
    starts = torch.searchsorted(ordered, torch.arange(places + 1, device=indices.device))
    return order, starts


@torch.library.custom_op("trocar::sum_rows_by_index", mutates_args=())
def _sum_rows_by_index(rows: torch.Tensor, indices: torch.Tensor, places: int) -> torch.Tensor:
    total = rows.new_empty(places, rows.shape[1], dtype=torch.float32)
    order, starts = segments(indices, places)
    launch(
        _sum_by_index_kernel,
        (places, ceil_div(rows.shape[1], COLUMNS)),
        *(rows, order, starts, total, total, rows.shape[1]),
        ACCUMULATE=False,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )
    return total


@_sum_rows_by_index.register_fake
def _(rows, indices, places):
    return rows.new_empty(places, rows.shape[1], dtype=torch.float32)


def sum_rows_by_index(rows: torch.Tensor, indices: torch.Tensor, places: int) -> torch.Tensor:
    """rows: (L, D) contiguous. indices: (L,) in 0 .. places - 1; on a device others are left out. Returns (places, D) float32."""
    if not takes_triton(rows):
        return sum_rows_by_index_reference(rows, indices, places)
    return directly(_sum_rows_by_index, rows, indices, places)


@torch.library.custom_op("trocar::add_rows_by_index_", mutates_args=("sums", "counts"))
def _add_rows_by_index(rows: torch.Tensor, indices: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> None:
    order, starts = segments(indices, len(sums))
    launch(
        _sum_by_index_kernel,
        (len(sums), ceil_div(rows.shape[1], COLUMNS)),
        *(rows, order, starts, sums, counts, rows.shape[1]),
        ACCUMULATE=True,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
    )


@_add_rows_by_index.register_fake
def _(rows, indices, sums, counts):
    return None


def add_rows_by_index(rows: torch.Tensor, indices: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> None:
    """Adds rows (L, D) to sums (places, D) float32 and their numbers to counts (places,) int64, in place."""
    if takes_triton(rows, sums):
        directly(_add_rows_by_index, rows, indices, sums, counts, changed=(sums, counts))
        return
    sums.index_add_(0, indices.long(), rows.to(sums.dtype))
    counts += torch.bincount(indices.long(), minlength=len(counts))
