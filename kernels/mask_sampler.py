"""Masks of a fixed count, drawn from integers: which tokens are visible and which are to be predicted.

Tube mask (VideoMAE, arXiv 2203.12602): one spatial mask for all time steps. Of the S spatial cells, the S - int(ratio * S) with the
smallest (Philox key, index) stay visible; the same cells at every step.

Shapes: B clips, T' time steps, H' x W' cells, S = H' * W', N = T' * S tokens; token n = t * S + s.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .philox import Stream, random_words


def visible_cells(num_cells: int, ratio: float) -> int:
    """Cells of one time step that stay visible. Raises ValueError where nothing or everything would be masked."""
    masked = int(ratio * num_cells)
    if not 0 < masked < num_cells:
        raise ValueError(f"mask ratio {ratio} masks {masked} of {num_cells} cells; 1 .. {num_cells - 1} can be masked")
    return num_cells - masked


def tube_mask_reference(
    seed: int, draws: ArrayLike, views: ArrayLike, grid: tuple[int, int, int], ratio: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """NumPy version of `tube_mask`: (B, N_visible) and (B, N_masked) int64, ascending."""
    steps, rows, columns = grid
    num_cells = rows * columns
    keep = visible_cells(num_cells, ratio)
    keys = random_words(seed, draws, views, Stream.MASK, num_cells)
    order = np.argsort(keys, axis=-1, kind="stable")
    starts = np.arange(steps, dtype=np.int64)[:, None] * num_cells

    def tokens(cells: NDArray[np.int64]) -> NDArray[np.int64]:
        cells = np.sort(cells, axis=-1)
        return (starts + cells[:, None, :]).reshape(len(cells), -1)

    return tokens(order[:, :keep]), tokens(order[:, keep:])


def tube_mask(
    seed: int,
    draws: ArrayLike,
    views: ArrayLike,
    grid: tuple[int, int, int],
    ratio: float,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tube masks of a batch.

    seed: 0 .. 2**64 - 1. draws, views: (B,) integers. grid: (T', H', W') in tokens. ratio: share of the cells to mask,
    0 < ratio < 1. Returns visible (B, N_visible) and masked (B, N_masked), int64, ascending, on `device`. Raises ValueError
    as `visible_cells` does.
    """
    visible, masked = tube_mask_reference(seed, draws, views, grid, ratio)
    return torch.from_numpy(visible).to(device), torch.from_numpy(masked).to(device)
