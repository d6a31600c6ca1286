"""ClipLoader on the CPU: PyAV decodes, crops and resizes, in threads or in processes; batches come out in order.

Threads share the interpreter with the training: the default where there is no GPU. Beside a GPU, processes decode into memory
that they share (`workers.py`, `batch_memory.py`), and batches are copied on a stream of their own (`uploads.py`). The clips are the
same.

Shapes: S spans of a block, V views, T frames, R x R pixels after the crop; frames are uint8, RGB.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .decode.batch_memory import BatchMemory
from .decode.job_board import Job
from .decode.loader import BaseClipLoader, LoaderOptions
from .decode.plan import Span
from .decode.planes import PlaneCuts
from .decode.recipe import ClipSource, CropSource, VideoSource
from .decode.span import SpanResult
from .decode.threads import Threads, stand_back
from .decode.uploads import Upload, Uploader
from .decode.workers import Workers
from .video.video import Kind

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass
class _CpuBlock:
    """clips: how many. work, frames: of threads, the spans' results to come, and their memory. jobs, buffer: of processes, the
    spans' numbers, and the buffer's. results: theirs, once all are known. upload: under way to the GPU."""

    clips: int
    work: Sequence[Future[SpanResult]] = ()
    frames: torch.Tensor | None = None
    jobs: Sequence[int] = ()
    buffer: int = -1
    results: Sequence[SpanResult] = ()
    upload: Upload | None = None


class ClipLoader(BaseClipLoader[_CpuBlock]):
    """Iterates over batches of clips, `ClipBatch`.

    workers: decoding processes; 0 decodes in `threads` of this one. planes: they leave what the crops need of the decoded planes,
    where it fits into the clips' memory, and a kernel on the device makes the clips (`kernels/yuv_clips.py`, the way of
    resize="exact"); but not of kinds of video in on_cpu. For everything else, options too, see BaseClipLoader. Raises
    LoaderError where what is to be loaded cannot be sent to processes.
    """

    def __init__(
        self,
        corpus: VideoSource,
        sampler: ClipSource,
        crops: CropSource,
        draws: Iterable[ArrayLike],
        *,
        resolution: int,
        device: torch.device | str = "cpu",
        workers: int = 0,
        planes: bool = False,
        on_cpu: Iterable[Kind] = (),
        **options: Unpack[LoaderOptions],
    ) -> None:
        super().__init__(corpus, sampler, crops, draws, resolution=resolution, device=device, **options)
        if workers < 0 or (planes and not workers):
            least = "1, as planes=True is of decoding processes" if planes else "0"
            raise ValueError(f"workers must be at least {least}, got {workers}")
        self.recipe = replace(self.recipe, planes=planes, rgb_kinds=frozenset(on_cpu))
        is_cuda = self.device.type == "cuda"
        self._uploader = Uploader(self.device) if is_cuda else None
        self._workers: Workers | None = None
        if workers:
            self._memory = BatchMemory(self.prefetch + 1, self._clip_shape, is_pinned=is_cuda)
            views, buffers = self.order.views_per_span, self._memory.descriptors
            self._workers = Workers(self.recipe, workers, views=views, buffers=buffers, is_background=self.background)
            self._crews = [self._workers]
        else:
            self._pool = Threads(self.threads, "decode", stand_back if self.background else None)
            self._crews = [self._pool]

    def wait_until_ready(self) -> None:
        """Until all processes have begun to work, seconds at most: for those who measure. Threads are ready at once."""
        if self._workers is not None:
            self._wait_for(self._workers.ready)

    def _start(self, spans: list[Span]) -> _CpuBlock:
        rows = [len(span.views) for span in spans]
        clips, firsts = sum(rows), np.cumsum([0, *rows]).tolist()
        if self._workers is not None:
            buffer = self._memory.take(clips)
            jobs = [Job(span.draw, buffer, clips, first) for span, first in zip(spans, firsts, strict=False)]
            return _CpuBlock(clips, jobs=self._workers.submit(jobs), buffer=buffer)
        frames = torch.empty((clips, *self._clip_shape), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        outputs = frames.numpy()
        parts = [outputs[first : first + count] for first, count in zip(firsts, rows, strict=False)]
        pairs = zip(spans, parts, strict=True)
        return _CpuBlock(clips, [self._pool.submit(self._account, self._read, *pair) for pair in pairs], frames)

    def _finish(self, block: _CpuBlock) -> tuple[torch.Tensor, list[SpanResult]]:
        if self._workers is None:
            results = [self._wait(future) for future in block.work]
        else:
            block.results = results = self._wait_for(partial(self._workers.results, block.jobs))
        if self._uploader is not None:
            return self._upload(block).arrived(), results
        frames = self._memory.hand_out(block.buffer, block.clips) if block.frames is None else block.frames
        return self._made(block, frames), results

    def _look_ahead(self, block: _CpuBlock) -> None:
        if self._uploader is None:
            return
        if self._workers is None:
            is_decoded = all(future.done() for future in block.work)
        else:
            block.results = self._workers.peek(block.jobs) or ()
            is_decoded = len(block.results) == len(block.jobs)
        if is_decoded:
            self._upload(block)

    def _made(self, block: _CpuBlock, frames: torch.Tensor) -> torch.Tensor:
        """The clips, of memory in which some may lie as planes."""
        cuts = PlaneCuts.of_batch([result.cuts for result in block.results], self.order.views_per_span)
        if cuts is None:
            return frames
        from ..kernels.yuv_clips import yuv_clips  # only here: it imports Triton

        return yuv_clips(frames, torch.from_numpy(cuts.integers), torch.from_numpy(cuts.factors))

    def _upload(self, block: _CpuBlock) -> Upload:
        if block.upload is None:
            assert self._uploader is not None
            if block.frames is not None:
                block.upload = self._uploader.start(block.frames)
            else:
                frames = self._memory.clips(block.buffer, block.clips)
                block.upload = self._uploader.start(frames, partial(self._made, block))
                assert block.upload.done is not None, "an uploader has a stream"
                self._memory.copied(block.buffer, block.upload.done)
        return block.upload

    def _reading(self) -> set[str]:
        return super()._reading() if self._workers is None else self._workers.reading()

    def close(self) -> None:
        super().close()
        if self._workers is not None:
            self._memory.close()

    def _read(self, span: Span, output: NDArray[np.uint8]) -> SpanResult:
        with self.decoding_range():
            return self._reader().read(span.draw, span.views, output)
