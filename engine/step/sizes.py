"""Runs whose clips grow on the way (data.sizes): the loaders of their phases one after another, and their masks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ...loaders.decode.batch import ClipBatch, LoaderCount
from ...loaders.decode.loader import BaseClipLoader
from ...ssl.packing import BlockMasks
from ..config.settings import Config
from ..draws.phases import Phase, phase_at


class PhasedMasks:
    """The masks of clips whose grid follows from their number. masks: a source for each phase."""

    def __init__(self, found: list[Phase], masks: Sequence[Any]) -> None:
        self.phases, self.masks = found, masks

    def __call__(self, seed: int, draws: ArrayLike, views: ArrayLike, device: torch.device | str = "cpu") -> Any:
        return self._source(draws)(seed, draws, views, device)

    def draw(self, seed: int, draws: ArrayLike, views: ArrayLike) -> BlockMasks:
        """In host memory, of sources that draw there."""
        return self._source(draws).draw(seed, draws, views)

    def ahead(
        self, seed: int, batches: Iterable[NDArray[np.int64]], device: torch.device
    ) -> Iterator[NDArray[np.int64]]:
        return iter(batches)

    def _source(self, draws: ArrayLike) -> Any:
        return self.masks[phase_at(self.phases, int(np.asarray(draws).min()))]


class PhasedLoader:
    """The loaders of all phases, one after another, as one. open_loader: makes the loader of a phase for these clip numbers."""

    def __init__(
        self,
        found: list[Phase],
        numbers: Iterable[NDArray[np.int64]],
        open_loader: Callable[[Config, Iterator[NDArray[np.int64]]], BaseClipLoader[Any]],
    ) -> None:
        self.phases, self.open_loader = found, open_loader
        self._numbers, self._next = iter(numbers), None
        self._stack = ExitStack()
        self._loader: BaseClipLoader[Any] | None = None
        self.total = LoaderCount()
        self.decoding_range: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __enter__(self) -> PhasedLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> PhasedLoader:
        return self

    def __next__(self) -> ClipBatch:
        while True:
            if self._loader is None:
                self._open()
            assert self._loader is not None
            try:
                batch = next(self._loader)
            except StopIteration:
                self._take_failures()
                self._stack.close()
                self._loader = None
                continue
            except BaseException:
                self._take_failures()  # what made it fail is to be written down
                raise
            self._take_failures()
            self.total.add(dataclasses.replace(batch.count, failures=[]))
            return batch

    def _open(self) -> None:
        """The loader of the phase that comes next. Raises StopIteration where no clip is left."""
        self._next = next(self._numbers) if self._next is None else self._next
        phase = phase_at(self.phases, int(self._next[0]))
        self._seen = 0
        self._loader = self._stack.enter_context(
            self.open_loader(self.phases[phase].config, self._until_the_next(phase))
        )
        self._loader.decoding_range = self.decoding_range

    def _until_the_next(self, phase: int) -> Iterator[NDArray[np.int64]]:
        while self._next is not None and phase_at(self.phases, int(self._next[0])) == phase:
            numbers, self._next = self._next, next(self._numbers, None)
            yield numbers

    def _take_failures(self) -> None:
        if self._loader is not None:
            failures = self._loader.total.failures
            self.total.failures += failures[self._seen :]
            self._seen = len(failures)
