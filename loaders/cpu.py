"""ClipLoader on the CPU: PyAV threads decode, crop and resize; batches come out in order.

The default where there is no GPU, and the fallback for what a GPU decoder cannot read.

Shapes: S spans of a block, V views, T frames, R x R pixels after the crop; frames are uint8, RGB.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .augment import Resize
from .loader import BaseClipLoader, Span
from .order import ClipOrder
from .span import ClipSource, CropSource, Recipe, SpanResult, VideoSource
from .threads import Threads


@dataclass(frozen=True)
class _CpuBlock:
    frames: torch.Tensor
    work: list[Future[SpanResult]]


class ClipLoader(BaseClipLoader[_CpuBlock]):
    """Iterates over batches of clips, `ClipBatch`.

    corpus, sampler, crops: where from, which, how cut; the sampler must be of this corpus. draws: one array of clip numbers per
    batch, in the order wanted; may be endless. content_box, square_pixels: see `Recipe`. order: which draw and view of it a number
    is; where None, number n is draw n. resolution: R. resize: "fast" (swscale's bilinear, antialiased) or "exact" (DALI's
    antialiased bilinear). background: let the decoding threads stand back where training shares the cores. For everything else see
    BaseClipLoader.
    """

    def __init__(
        self,
        corpus: VideoSource,
        sampler: ClipSource,
        crops: CropSource,
        draws: Iterable[ArrayLike],
        *,
        resolution: int,
        resize: Resize = "fast",
        content_box: bool = True,
        square_pixels: bool = True,
        order: ClipOrder | None = None,
        threads: int | None = None,
        prefetch: int = 2,
        device: torch.device | str = "cpu",
        failure_budget: float = 0.1,
        failure_floor: int = 20,
        stall_seconds: float = 60.0,
        clip_timeout: float | None = 300.0,
        background: bool = False,
    ) -> None:
        super().__init__(
            Recipe(corpus, sampler, crops, resolution, resize, content_box, square_pixels),
            draws,
            order=order,
            threads=threads,
            prefetch=prefetch,
            device=device,
            failure_budget=failure_budget,
            failure_floor=failure_floor,
            stall_seconds=stall_seconds,
            clip_timeout=clip_timeout,
        )
        self._pool = Threads(self.threads, "decode", _lower_priority if background else None)
        self._threads = [self._pool]

    def _start(self, spans: list[Span]) -> _CpuBlock:
        rows = [len(span.views) for span in spans]
        shape = (sum(rows), self.recipe.sampler.num_frames, self.recipe.resolution, self.recipe.resolution, 3)
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        outputs, stops = frames.numpy(), np.cumsum(rows)
        parts = [outputs[stop - count : stop] for stop, count in zip(stops, rows, strict=True)]
        pairs = zip(spans, parts, strict=True)
        return _CpuBlock(frames, [self._pool.submit(self._account, self._read, *pair) for pair in pairs])

    def _finish(self, block: _CpuBlock) -> tuple[torch.Tensor, list[SpanResult]]:
        return block.frames, [self._wait(future) for future in block.work]

    def _read(self, span: Span, output: NDArray[np.uint8]) -> SpanResult:
        with self.decoding_range():
            return self._reader().read(span.draw, span.views, output)


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere the call would mean the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 5)
