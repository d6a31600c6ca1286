"""What every loader hands out: batches of clips, with what they cost and what had to be replaced.

Shapes: B clips, T frames, R x R pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Failure:
    """A clip that could not be read: its draw, which replacement of it (0 is the draw itself), the video's path, and why."""

    draw: int
    spare: int
    path: str
    reason: str


@dataclass
class LoaderCount:
    """What a batch cost. frames_used counts distinct frames; repeated_frames the positions that repeat a short video's last one."""

    packets_decoded: int = 0
    frames_decoded: int = 0
    frames_used: int = 0
    repeated_frames: int = 0
    bytes_read: int = 0
    clips: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: LoaderCount) -> None:
        self.packets_decoded += other.packets_decoded
        self.frames_decoded += other.frames_decoded
        self.frames_used += other.frames_used
        self.repeated_frames += other.repeated_frames
        self.bytes_read += other.bytes_read
        self.clips += other.clips
        self.failures += other.failures

    @property
    def amplification(self) -> float:
        """Packets fed to decoders for each frame used."""
        return self.packets_decoded / max(self.frames_used, 1)


@dataclass(frozen=True)
class ClipBatch:
    """frames: uint8 (B, T, R, R, 3) on the loader's device. draws: (B,) int64. videos: (B,) rows of the corpus, int64.
    frame_numbers: (B, T) int64, in display order. pts_seconds: (B, T) float64, from the start of each video. count: its cost."""

    frames: torch.Tensor
    draws: NDArray[np.int64]
    videos: NDArray[np.int64]
    frame_numbers: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    count: LoaderCount
