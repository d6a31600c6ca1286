"""Sums of rows: against float64, over splits, with places nobody names."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import DTYPES, assert_accurate, nan_memory

from trocar.kernels import row_sums
from trocar.kernels.row_sums import (
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


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_rows_by_index(dtype: torch.dtype, kernels: torch.device) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.randn(60, 70, generator=generator).to(kernels, dtype)
    indices = torch.randint(0, 5, (60,), generator=generator).to(kernels)
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
    torch.library.opcheck(
        _sum_rows_by_index, (torch.randn(6, 4, device=kernels), torch.arange(6, device=kernels) % 3, 4)
    )
