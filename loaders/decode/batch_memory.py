"""Memory for batches that decoding processes write into and the training reads: a ring of buffers, each of which comes round again.

A batch on the CPU is handed out where it lies; its buffer is free once nobody holds a tensor of it any more. Who keeps more batches
than the ring has to spare gets copies. For a GPU buffers are pinned, and free when they are copied.

The memory has no name, only descriptors: neither does a system's limit for /dev/shm count for it, nor is anything left of it
however its processes end.

Shapes: B clips of a batch, T frames, R x R pixels.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# A caller's batch and the one before it, which goes when the next one has come.
HANDED_OUT = 2
log = logging.getLogger("trocar.loaders")


def _cuda() -> Any:
    return torch.cuda.cudart()


class _Buffer:
    """number: in the ring. It grows to what is asked for, and shrinks where that is less than half of it."""

    def __init__(self, number: int, is_pinned: bool) -> None:
        self.number, self.is_pinned = number, is_pinned
        self.descriptor = os.memfd_create(f"trocar_batch_{number}")
        self.bytes: NDArray[np.uint8] = np.zeros(0, np.uint8)

    def fit(self, size: int) -> None:
        if not size <= len(self.bytes) <= 2 * size:
            self.unpin()
            self.bytes = np.zeros(0, np.uint8)
            os.ftruncate(self.descriptor, size)
            self.bytes = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
            if self.is_pinned:
                error = int(_cuda().cudaHostRegister(self.bytes.ctypes.data, size, 0))
                if error:
                    self.is_pinned = False
                    log.warning("batches cannot be pinned (CUDA error %d): copies to the GPU hold up the host", error)

    def unpin(self) -> None:
        if self.is_pinned and len(self.bytes):
            _cuda().cudaHostUnregister(self.bytes.ctypes.data)


class BatchMemory:
    """Buffers for `ahead` batches that are being decoded, and those that callers hold. clip_shape: (T, R, R, 3) of uint8. Dropped
    or closed, it lets go of its own; what callers hold stays."""

    def __init__(self, ahead: int, clip_shape: Sequence[int], *, is_pinned: bool) -> None:
        self._shape = tuple(clip_shape)
        self._buffers = [_Buffer(number, is_pinned) for number in range(ahead + HANDED_OUT)]
        self._free = deque(self._buffers)
        self._copied: deque[tuple[_Buffer, torch.cuda.Event]] = deque()
        self._end = weakref.finalize(self, _end, self._buffers)

    @property
    def descriptors(self) -> list[int]:
        return [buffer.descriptor for buffer in self._buffers]

    def take(self, clips: int) -> int:
        """The number of a buffer that has room for so many clips, taken until it is handed out."""
        while self._copied and (not self._free or self._copied[0][1].query()):
            buffer, event = self._copied.popleft()
            event.synchronize()
            self._free.append(buffer)
        buffer = self._free.popleft()
        buffer.fit(max(clips, 1) * math.prod(self._shape))
        return buffer.number

    def clips(self, number: int, clips: int) -> torch.Tensor:
        """(B, T, R, R, 3), the memory itself."""
        return torch.from_numpy(self._array(number, clips))

    def hand_out(self, number: int, clips: int) -> torch.Tensor:
        """(B, T, R, R, 3), to be kept for as long as anybody likes."""
        if not self._free:
            copy = self.clips(number, clips).clone()
            self._free.append(self._buffers[number])
            return copy
        array = self._array(number, clips)
        # PyTorch holds this very array for as long as there are tensors of it.
        weakref.finalize(array, self._free.append, self._buffers[number]).atexit = False
        return torch.from_numpy(array)

    def copied(self, number: int, event: torch.cuda.Event) -> None:
        """The buffer is free once `event` has happened."""
        self._copied.append((self._buffers[number], event))

    def _array(self, number: int, clips: int) -> NDArray[np.uint8]:
        return self._buffers[number].bytes[: clips * math.prod(self._shape)].reshape(clips, *self._shape)

    def close(self) -> None:
        for _, event in self._copied:
            event.synchronize()
        self._end()


def _end(buffers: Sequence[_Buffer]) -> None:
    for buffer in buffers:
        buffer.unpin()
        buffer.bytes = np.zeros(0, np.uint8)
        os.close(buffer.descriptor)
