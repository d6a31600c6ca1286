"""Masks drawn in a thread while earlier steps compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .packing import BlockMasks, pinned, to_device

MOST_WAITING = 256  # batches


class HostMasks(Protocol):
    def draw(self, seed: int, draws: ArrayLike, views: ArrayLike) -> BlockMasks: ...


class DrawnAhead:
    """A MaskSource of masks that are drawn in host memory.

    A batch that came through `ahead` has its masks drawn, and pinned where they go to a GPU, by the time it is asked for; any other
    is drawn when asked for. They are the same: masks are a pure function of clip numbers.
    """

    def __init__(self, source: HostMasks) -> None:
        self.source = source
        self._drawn: dict[tuple, Future[BlockMasks]] = {}

    def __call__(self, seed: int, draws: ArrayLike, views: ArrayLike, device: torch.device | str = "cpu") -> BlockMasks:
        drawn = self._drawn.pop(_key(seed, draws), None) if np.array_equal(views, 0) else None
        return to_device(drawn.result() if drawn else self.source.draw(seed, draws, views), torch.device(device))

    def ahead(
        self, seed: int, batches: Iterable[NDArray[np.int64]], device: torch.device
    ) -> Iterator[NDArray[np.int64]]:
        with ThreadPoolExecutor(1, thread_name_prefix="masks") as pool:
            for numbers in batches:
                while len(self._drawn) >= MOST_WAITING:  # a batch that lost a clip asks for other masks
                    self._drawn.pop(next(iter(self._drawn)))
                self._drawn[_key(seed, numbers)] = pool.submit(self._draw, seed, numbers, device)
                yield numbers

    def _draw(self, seed: int, numbers: NDArray[np.int64], device: torch.device) -> BlockMasks:
        masks = self.source.draw(seed, numbers, 0)
        return pinned(masks) if device.type == "cuda" else masks


def _key(seed: int, draws: ArrayLike) -> tuple:
    return seed, np.asarray(draws, dtype=np.int64).tobytes()
