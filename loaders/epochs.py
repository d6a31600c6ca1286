"""ClipLoaders as a training loop wants them: an iterable with a length, an epoch per iteration, shared among ranks, resumable.

Clips are numbered through over all epochs and ranks. Batches of all ranks are consecutive numbers, of which each rank reads its
share, so where a run stands is one integer, whatever the number of ranks.

Shapes: B clips of one rank's batch, R ranks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import tee

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from .choose import LoaderChoice
from .decode.batch import ClipBatch, LoaderCount
from .decode.loader import BaseClipLoader
from .decode.threads import LoaderError
from .draw.order import ClipOrder


class EpochLoader:
    """Iterates over `ClipBatch`es; every `iter` opens a loader, and closes it at the end or when it is left early.

    open_loader: a loader of these batches of clip numbers. clips_per_epoch: of all ranks. batch: B. rank, ranks: which of how many
    processes this is. epochs: passes of one iteration; None: endless. drop_last: leave out a last batch that is not full on every
    rank. is_repeated: every iteration is the same, as evaluation wants it; else the next iteration goes on with the next epoch.
    first_number: where the first iteration starts. choice: which loader `open_loader` opens, and why, for those who ask.

    number: the integer to resume from: the first clip number behind the latest batch. total: the cost of all batches so far.
    Raises ValueError where an epoch holds no batch, LoaderError where it is iterated in a worker of a DataLoader.
    """

    def __init__(
        self,
        open_loader: Callable[[Iterator[NDArray[np.int64]]], BaseClipLoader],
        *,
        clips_per_epoch: int,
        order: ClipOrder,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        epochs: int | None = 1,
        drop_last: bool = False,
        is_repeated: bool = False,
        first_number: int = 0,
        choice: LoaderChoice | None = None,
    ) -> None:
        for name, value, least in (("batch", batch, 1), ("epochs", epochs, 1), ("first_number", first_number, 0)):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if ranks > 1 and batch % order.views_per_span:
            raise ValueError(
                f"batch is {batch}; with {ranks} ranks it must be a multiple of the {order.views_per_span} views of a draw, which "
                "stay together"
            )
        if drop_last and clips_per_epoch < batch * ranks:
            raise ValueError(
                f"an epoch has {clips_per_epoch} clips, fewer than {ranks} rank(s) x batch {batch}: no batch would be full; set a "
                "smaller batch or drop_last=False"
            )
        order.share([], rank, ranks)  # refuses impossible ranks
        self._open_loader, self._order = open_loader, order
        self.clips_per_epoch, self.batch, self.rank, self.ranks = clips_per_epoch, batch, rank, ranks
        self.epochs, self.drop_last, self.is_repeated = epochs, drop_last, is_repeated
        self.number = self._start = first_number
        self.choice = choice
        self.total = LoaderCount()
        self._process = os.getpid()

    def __len__(self) -> int:
        """The batches of one whole iteration. Raises TypeError where it is endless."""
        if self.epochs is None:
            raise TypeError("an endless loader has no length; set epochs")
        full, rest = divmod(self.clips_per_epoch, self.batch * self.ranks)
        last = self._share(self.clips_per_epoch - rest, self.clips_per_epoch)
        return self.epochs * (full + (len(last) > 0 and not self.drop_last))

    def __iter__(self) -> Iterator[ClipBatch]:
        self._check_process()
        epoch = self._start // self.clips_per_epoch
        stop_epoch = None if self.epochs is None else (epoch // self.epochs + 1) * self.epochs
        plan, ends = tee(self._batches(self._start, stop_epoch))
        if stop_epoch is not None:
            self._start = 0 if self.is_repeated else stop_epoch * self.clips_per_epoch
        with self._open_loader(numbers for numbers, _ in plan) as loader:
            for batch, (_, end) in zip(loader, ends, strict=True):
                self.number = end
                if stop_epoch is None:
                    self._start = end
                self.total.add(batch.count)
                if len(batch.frames):  # not where no clip of it could be read
                    yield batch

    def _check_process(self) -> None:
        """Raises LoaderError in a DataLoader's worker: every worker has a copy, which would load all clips once more, and neither
        its place nor its epoch finds the way back. One that was made in the worker, for its share, is no such copy."""
        worker = get_worker_info()
        if worker is None or (self._process == os.getpid() and self.ranks >= worker.num_workers):
            return
        raise LoaderError(
            f"a clip loader is iterated in worker {worker.id} of a DataLoader with num_workers={worker.num_workers}: each of them "
            "would load every clip, and none could be resumed; set num_workers=0 (the loader has threads of its own), or "
            "make it inside the worker with rank=worker.id, ranks=worker.num_workers"
        )

    def _batches(self, start: int, stop_epoch: int | None) -> Iterator[tuple[NDArray[np.int64], int]]:
        """(this rank's clip numbers, the number to resume from behind them), batch by batch from clip `start` on."""
        size, whole = self.batch * self.ranks, self.clips_per_epoch
        epoch = start // whole
        while epoch != stop_epoch:
            stop = (epoch + 1) * whole
            for first in range(start, stop, size):
                end = min(first + size, stop)
                if self.drop_last and end - first < size:
                    break
                numbers = self._share(first, end)
                if len(numbers):
                    yield numbers, stop if self.drop_last and stop - end < size else end
            epoch, start = epoch + 1, stop

    def _share(self, first: int, stop: int) -> NDArray[np.int64]:
        """This rank's of the clips first .. stop - 1."""
        return self._order.share(np.arange(first, stop), self.rank, self.ranks)

    def state_dict(self) -> dict[str, int]:
        """{"number": the integer to resume from}."""
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next iteration go on where `state_dict` was taken."""
        self.number = self._start = state["number"]
