"""Sums of rows: against float64, over splits, with places nobody names."""

# Argument tuples are unpacked into calls here, and gradients are known to be there: what pyright cannot see.
# pyright: reportCallIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false, reportOperatorIssue=false
# pyright: reportReturnType=false

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_accurate, nan_memory, only_program

from trocar.kernels import row_sums
from trocar.kernels.row_sums import (
    _add_rows_by_index,
    _sum_rows_by_index,
    add_rows_by_index,
    sum_rows,
    sum_rows_by_index,
    sum_rows_by_index_reference,
    sum_rows_reference,
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 7, 70), (2, 300, 5)])
def test_sum_rows(shape: tuple[int, int, int], dtype: torch.dtype, kernels: torch.device) -> None:
    rows = torch.randn(shape[0], shape[1] + 2, shape[2], generator=torch.Generator().manual_seed(1)).to(kernels, dtype)
    rows = rows[:, 2:]  # the rows of a clip are dense, the clips need not be
    with nan_memory():
        total = sum_rows(rows)
    assert total.dtype == torch.float32
    assert_accurate(total, sum_rows_reference(rows), sum_rows_reference(rows.double()))


@pytest.mark.interpreter
def test_offsets_are_64_bit(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that lie beyond 2**31 elements: a strided clip, and the last of many rows."""
    apart = 2**31 + 64
    rows = torch.empty(apart + 64, dtype=torch.float16, device=kernels).as_strided((2, 1, 64), (apart, 64, 1))
    rows[0], rows[1] = 1, 2
    assert (sum_rows(rows) == 3).all()
    many = torch.empty(2**25 + 1, 64, dtype=torch.float16, device=kernels)
    many[-1] = 5
    order, starts = torch.tensor([2**25], device=kernels), torch.tensor([0, 1], device=kernels)
    total = torch.zeros(1, 64, device=kernels)
    sizes = dict(ACCUMULATE=False, ROWS=16, COLUMNS=64)
    row_sums.launch(row_sums._sum_by_index_kernel, (1,), many, order, starts, total, total, 64, **sizes)
    assert (total == 5).all()
    places = 2**25 + 1
    totals = torch.empty(places, 64, device=kernels)
    starts = torch.empty(places + 1, dtype=torch.int64, device=kernels)
    starts[-2:] = torch.tensor([0, 1])
    with only_program(places - 1, monkeypatch):
        row_sums.launch(row_sums._sum_by_index_kernel, (1,), many, order, starts, totals, totals, 64, **sizes)
    assert (totals[-1] == 5).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_rows_by_index(dtype: torch.dtype, kernels: torch.device) -> None:
    generator = torch.Generator().manual_seed(2)
    # More than a hundred addends a place: the error of a dozen, half of them exact, is luck, the reference's too.
    rows = torch.randn(600, 70, generator=generator).to(kernels, dtype)
    indices = torch.randint(0, 5, (600,), generator=generator).to(kernels)
    indices[indices == 3] = 6  # place 3 stays empty
    with nan_memory():
        total = sum_rows_by_index(rows, indices, 8)
    oracle = sum_rows_by_index_reference(rows.double(), indices, 8)
    assert_accurate(total, sum_rows_by_index_reference(rows, indices, 8), oracle)
    assert (total[3] == 0).all()
    sums, counts = total.clone(), torch.bincount(indices, minlength=8)
    add_rows_by_index(rows, indices, sums, counts)
    assert_accurate(sums, 2 * sum_rows_by_index_reference(rows, indices, 8), 2 * oracle)
    assert torch.equal(counts, 2 * torch.bincount(indices, minlength=8))


def test_long_sums_are_split(kernels: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_sums, "ROWS_PER_SPLIT", 16)
    rows = torch.randn(5, 9, 20, generator=torch.Generator().manual_seed(3)).to(kernels)
    assert_accurate(sum_rows(rows), sum_rows_reference(rows), sum_rows_reference(rows.double()))


def test_opcheck(kernels: torch.device) -> None:
    rows, places = torch.randn(6, 4, device=kernels), torch.arange(6, device=kernels) % 3
    torch.library.opcheck(_sum_rows_by_index, (rows, places, 4))
    totals = torch.zeros(4, 4, device=kernels), torch.zeros(4, dtype=torch.int64, device=kernels)
    torch.library.opcheck(_add_rows_by_index, (rows, places, *totals))
