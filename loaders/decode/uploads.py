"""What is on its way to, or made on, a GPU in a stream of its own; batches are copied while it computes, one batch ahead.

Shapes: any.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Upload:
    """frames: on the device. done: when they are there; None on a CPU."""

    frames: torch.Tensor
    done: torch.cuda.Event | None

    def arrived(self) -> torch.Tensor:
        """The frames, for the current stream, which waits for them; the host does not."""
        if self.done is not None:
            current = torch.cuda.current_stream(self.frames.device)
            current.wait_event(self.done)
            self.frames.record_stream(current)
        return self.frames


def numbered(device: torch.device) -> torch.device:
    """With the number of this thread's GPU, where none is named: the threads that decode have another."""
    is_open = device.type == "cuda" and device.index is None
    return torch.device("cuda", torch.cuda.current_device()) if is_open else device


class Uploader:
    """Copies to `device`, one after another."""

    def __init__(self, device: torch.device) -> None:
        self.device, self._stream = device, torch.cuda.Stream(device)

    def start(self, frames: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor] | None = None) -> Upload:
        """frames: in pinned memory, which has to stay as it is until the upload is done. make: what becomes of them there."""
        with torch.cuda.stream(self._stream):
            copied = frames.to(self.device, non_blocking=True)
            if make is not None:
                copied = make(copied)
            done = torch.cuda.Event()
            done.record(self._stream)
        return Upload(copied, done)
