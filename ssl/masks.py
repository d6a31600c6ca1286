"""What is seen and what is predicted.

Shapes: B clips, N tokens of the grid (T', H', W').
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..kernels.mask_sampler import dropped_cells, running_cell_mask, tube_mask, visible_cells


class Masks(NamedTuple):
    """visible: (B, N_visible), masked: (B, N_masked): int64 token indices, ascending, on the model's device.

    counted: (B, N_masked) bool, which predictions enter the loss; all where None.
    """

    visible: torch.Tensor
    masked: torch.Tensor
    counted: torch.Tensor | None = None

    def without(self, ignored: torch.Tensor) -> Masks:
        """The same tokens, of which `ignored`, (B, H' W') bool at every time step, are not counted."""
        counted = ~ignored.gather(1, self.masked % ignored.shape[1])
        return self._replace(counted=counted if self.counted is None else self.counted & counted)


@dataclass(frozen=True)
class TubeMask:
    """VideoMAE's mask: the same cells hidden at every time step.

    grid: (T', H', W') in tokens. ratio: share of the cells hidden, 0 < ratio < 1; ValueError where that hides none or all.
    decoder_ratio: share of all tokens that the decoder drops by VideoMAE V2's running cell mask, 0.25, 0.5 or 0.75; 0 is VideoMAE's
    own decoder. Then `masked` are the kept tokens, and those of them that the encoder sees are not counted.
    """

    grid: tuple[int, int, int]
    ratio: float
    decoder_ratio: float = 0.0

    def __post_init__(self) -> None:
        visible_cells(self.grid[1] * self.grid[2], self.ratio)
        if self.decoder_ratio:
            dropped_cells(self.grid, self.decoder_ratio)

    def __call__(self, seed: int, draws: ArrayLike, views: ArrayLike, device: torch.device | str = "cpu") -> Masks:
        """The masks of these draws: a pure function, whatever the process, batch or device."""
        visible, masked = tube_mask(seed, draws, views, self.grid, self.ratio, device)
        if not self.decoder_ratio:
            return Masks(visible, masked)
        kept = running_cell_mask(seed, draws, views, self.grid, self.decoder_ratio, device)
        hidden = torch.zeros(len(visible), visible.shape[1] + masked.shape[1], dtype=torch.bool, device=visible.device)
        return Masks(visible, kept, hidden.scatter_(1, masked, True).gather(1, kept))

    def ahead(
        self, seed: int, batches: Iterable[NDArray[np.int64]], device: torch.device
    ) -> Iterator[NDArray[np.int64]]:
        """Nothing to do ahead: the masks are drawn on the device."""
        return iter(batches)
