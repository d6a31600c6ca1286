"""What every loader hands out: batches of clips, with what they cost and what had to be replaced.

Shapes: B clips, T frames, R x R pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from operator import iadd
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..video.video import VideoError

if TYPE_CHECKING:  # decoding processes, which count and fail as well, do without
    import torch

LISTED_FAILURES = 20


@dataclass(frozen=True)
class Failure:
    """A clip that could not be read: its draw, which replacement of it (0 is the draw itself), the video's path, and why."""

    draw: int
    spare: int
    path: str
    reason: str


@dataclass
class LoaderCount:
    """What a batch cost.

    spans: windows that were decoded for it. clips: clips in it, several of a span where spans are reused. frames_used: distinct
    frames of the spans that clips show. repeated_frames: positions in clips that show the frame before them again.
    """

    packets_decoded: int = 0
    frames_decoded: int = 0
    frames_used: int = 0
    repeated_frames: int = 0
    bytes_read: int = 0
    spans: int = 0
    clips: int = 0
    failures: list[Failure] = field(default_factory=list)

    def add(self, other: LoaderCount) -> None:
        for item in fields(self):  # the list grows in place: whoever writes failures down holds it
            setattr(self, item.name, iadd(getattr(self, item.name), getattr(other, item.name)))

    @property
    def amplification(self) -> float:
        """Packets fed to decoders for each frame used."""
        return self.packets_decoded / max(self.frames_used, 1)

    def check_failures(self, budget: float, floor: int, lost_spares: int) -> None:
        """Raises VideoError, listing the failures, where more than `floor` and than this share of the spans have failed, or where
        a draw did with all its replacements, `lost_spares` of them; 0: there was none, or nothing to replace it with."""
        if not lost_spares and len(self.failures) <= max(floor, budget * self.spans):
            return
        if self.spans == 1 and len(self.failures) == 1:
            raise VideoError(self.failures[0].reason)
        videos = {failure.path: failure.reason for failure in self.failures}
        listed = "\n".join(f"  {reason}" for reason in list(videos.values())[:LISTED_FAILURES])
        verdict = f"above the budget of {budget:.0%}"
        if lost_spares:
            verdict = f"a draw and its {lost_spares} replacements failed"
        raise VideoError(
            f"{len(self.failures)} failures in {self.spans} draws, {verdict}, in {len(videos)} videos:\n"
            f"{listed}\nmend them and run `trocar index` again where they are of a corpus, of proxies `trocar pack`; or leave "
            "them out (data.exclude), or raise failure_budget"
        )


@dataclass(frozen=True)
class ClipBatch:
    """B clips.

    frames: uint8 (B, T, R, R, 3) on the loader's device. numbers: (B,) int64, the clips' places in the run. draws, views: (B,)
    int64, what the sampler was asked for. videos: (B,) int64, rows of the corpus. frame_numbers: (B, T) int64, in display order.
    pts_seconds: (B, T) float64, as a player shows them (`timeline.py`). labels: whatever came with each clip. count: what the
    batch cost.
    """

    frames: torch.Tensor
    numbers: NDArray[np.int64]
    draws: NDArray[np.int64]
    views: NDArray[np.int64]
    videos: NDArray[np.int64]
    frame_numbers: NDArray[np.int64]
    pts_seconds: NDArray[np.float64]
    labels: list[Any]
    count: LoaderCount

    def to(self, device: torch.device | str) -> ClipBatch:
        """The same batch with its frames on `device`."""
        return replace(self, frames=self.frames.to(device, non_blocking=True))
