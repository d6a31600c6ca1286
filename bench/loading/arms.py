"""What an arm of `trocar bench loading` is: one library that delivers given clips, the way its users would have it.

An arm lives in a process of its own (`worker.py`), which imports little beside NumPy and the arm's library: decord, PyAV
and torchcodec bring an FFmpeg each, and do not all bear each other.

Shapes: B clips, T frames, R x R pixels.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

OPEN_DECODERS_PER_THREAD = 8
Item = TypeVar("Item")


class UnavailableError(Exception):
    """An arm that cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Request:
    """One clip to deliver. row: its video's in the corpus. frames: (T,) frame numbers in display order, ascending."""

    row: int
    path: str
    frames: NDArray[np.int64]


@dataclass(frozen=True)
class Job:
    """What all arms have to do: deliver `requests` in batches of B = `batch`, each picture whole, squeezed to R = `resolution`.

    corpus: the folder of the index that rows count in. stride: from one frame of a clip to the next. cores: what an arm may use.
    """

    corpus: str
    requests: tuple[Request, ...]
    batch: int
    resolution: int
    stride: int
    cores: int

    def split(self, clips: Sequence[Item]) -> list[Sequence[Item]]:
        """The batches of a sequence that has an item per clip; the last one may be smaller."""
        return [clips[start : start + self.batch] for start in range(0, len(clips), self.batch)]


class Arm(ABC):
    """One library under test. Raises UnavailableError on construction where it cannot run.

    Attributes:
        ways: names of the ways in which users employ it; the fastest one is measured.
        library: its name and version, with what it decodes by.
        cost: of the latest delivery, as far as the library tells: amplification, bytes_per_clip.
    """

    ways: Sequence[str] = ("",)
    library = ""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.cost: dict[str, float] = {}

    @abstractmethod
    def batches(self, way: str, requests: Sequence[Request]) -> Iterator[Any]:
        """Delivers the clips of `requests`, in order, as uint8 (B, T, R, R, 3) arrays or tensors, RGB.

        What is set up before the iterator is returned is not timed; all decoding is.
        """

    def settle(self, way: str) -> None:
        """Only `way` is used from now on."""
        self.ways = (way,)


class PooledArm(Arm):
    """A library that decodes a clip a call: a pool of threads with a decoder each, or one decoder with threads of its own.

    Decoders stay open for later clips of their video, and all clips are asked for at once.
    """

    ways = ("a decoder of one thread per core", "one decoder, its own threads")

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self._pools: dict[str, ThreadPoolExecutor] = {}
        self._local = threading.local()

    @abstractmethod
    def open(self, path: str, threads: int) -> Any:
        """A decoder; threads: 1, or 0 where the library decides."""

    @abstractmethod
    def read(self, decoder: Any, frames: NDArray[np.int64]) -> Any:
        """The frames, (T, R, R, 3)."""

    def stack(self, clips: list[Any]) -> Any:
        """B clips as one batch, ready for use."""
        return np.stack(clips)

    def batches(self, way: str, requests: Sequence[Request]) -> Iterator[Any]:
        is_pool = way == type(self).ways[0]
        if way not in self._pools:
            self._pools[way] = ThreadPoolExecutor(self.job.cores if is_pool else 1)
        futures = [self._pools[way].submit(self._clip, request, int(is_pool)) for request in requests]
        for batch in self.job.split(futures):
            yield self.stack([future.result() for future in batch])

    def _clip(self, request: Request, threads: int) -> Any:
        if not hasattr(self._local, "decoders"):
            self._local.decoders = OrderedDict()
        decoders: OrderedDict[str, Any] = self._local.decoders
        if request.path not in decoders:
            decoders[request.path] = self.open(request.path, threads)
            if len(decoders) > OPEN_DECODERS_PER_THREAD:
                decoders.popitem(last=False)
        decoders.move_to_end(request.path)
        return self.read(decoders[request.path], request.frames)

    def settle(self, way: str) -> None:
        super().settle(way)
        for other in [name for name in self._pools if name != way]:
            self._pools.pop(other).shutdown()
