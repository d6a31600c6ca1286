"""Tube masks: count, order, tubes, purity, uniformity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trocar.kernels.mask_sampler import tube_mask
from trocar.ssl.masks import TubeMask


def test_a_mask_is_a_partition_into_tubes() -> None:
    visible, masked = tube_mask(3, np.arange(5), 0, (8, 14, 14), 0.9)
    assert visible.shape == (5, 8 * 20)
    assert masked.shape == (5, 8 * 176)  # VideoMAE masks int(0.9 * 196) cells
    for seen, hidden in zip(visible, masked, strict=True):
        assert torch.equal(torch.cat([seen, hidden]).sort().values, torch.arange(8 * 196))
        assert torch.equal(seen, seen.sort().values)
        cells = seen.reshape(8, 20) - torch.arange(8)[:, None] * 196
        assert (cells == cells[0]).all()


def test_a_mask_belongs_to_its_draw_and_view() -> None:
    grid = (4, 6, 6)
    together, _ = tube_mask(3, [5, 9, 9], [0, 0, 1], grid, 0.75)
    alone, _ = tube_mask(3, [9], [0], grid, 0.75)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(together[1], together[0])
    assert not torch.equal(together[1], together[2])
    assert not torch.equal(alone, tube_mask(4, [9], [0], grid, 0.75)[0])


def test_every_cell_is_masked_equally_often() -> None:
    visible, _ = tube_mask(0, np.arange(20_000), 0, (1, 4, 4), 0.75)
    counts = np.bincount(visible.numpy().ravel(), minlength=16)
    assert ((counts - 5000) ** 2 / (5000 * 0.75)).sum() * 15 / 16 < 37.7  # chi-square, 15 degrees of freedom, 0.1 %


@pytest.mark.parametrize("ratio", [0.0, 0.01, 1.0, -1.0])
def test_refuses_a_mask_of_nothing_or_everything(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask ratio"):
        TubeMask((2, 4, 4), ratio)
