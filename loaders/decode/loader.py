"""What all loaders share: order, decoding ahead, replaced clips, reused spans, the failure budget, stalls.

A loader plans a few batches ahead. Planning a batch starts the decoding of those spans in it that were not planned before; a span
gives all its clips at once, and those of later batches wait on the device. So the pool of decoded spans is no more than clips that
wait, and how many wait follows from the order alone (`order.py`).

Shapes: B clips of a batch, S spans of a block, V views, T frames, R x R pixels.
"""

from __future__ import annotations

import logging
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, Protocol, TypedDict, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ..draw.augment import Resize
from ..draw.order import ClipOrder
from .batch import ClipBatch, LoaderCount
from .plan import Block, Plan, Span
from .recipe import ClipSource, CropSource, Recipe, VideoSource
from .span import SpanReader, SpanResult
from .threads import LoaderError

POLL_SECONDS = 0.5
STUCK_PATIENCE = 1.0  # seconds for the other threads, once one is known to be stuck
Value = TypeVar("Value")
log = logging.getLogger("trocar.loaders")


class LoaderOptions(TypedDict, total=False):
    """What every loader takes besides, by keyword; BaseClipLoader says what it means and what is taken where it is not given."""

    resize: Resize
    content_box: bool
    square_pixels: bool
    order: ClipOrder | None
    threads: int | None
    prefetch: int
    failure_budget: float
    failure_floor: int
    stall_seconds: float
    clip_timeout: float | None
    background: bool


class Crew(Protocol):
    """Threads or processes that decode; see `Threads`."""

    def check(self, seconds: float, limit: float | None) -> None: ...
    def close(self, patience: float | None = None) -> set[str]: ...


class BaseClipLoader(ABC, Generic[Block]):
    """Iterates over batches of clips; subclasses say how a block of spans is decoded.

    corpus, sampler, crops: where from, which, how cut; the sampler must be of this corpus. draws: one array of clip numbers per
    batch, in the order wanted; may be endless. resolution: R. content_box, square_pixels: see `Recipe`. order: which draw and view
    of it a number is; where None, number n is draw n. device: where batches and waiting clips are.

    resize: how the CPU resizes, "fast" (swscale's bilinear, antialiased) or "exact" (DALI's antialiased bilinear). threads:
    reading threads, all cores where None. prefetch: batches that are decoded while the caller works on one, at least 1.
    background: let decoding stand back where training shares the cores. failure_budget: share of the
    spans that may fail; a failed one is replaced and reported in the batch's count. stall_seconds: how long a batch may take
    before a warning names the files that are being read. clip_timeout: how long a thread may be at one span before that is a
    LoaderError, as is a thread that dies; for ever where None.

    decoding_range: makes the context in which a span is decoded, for profilers. taken_over: why the CPU decodes a video (its path)
    instead of what this loader is for. Raises VideoError, listing the failures, once the budget is exceeded (never before
    `failure_floor` failures), or where all replacements of a draw fail; a clip that has none is left out of its batch. It closes
    itself at the end and on any error.
    """

    def __init__(
        self,
        corpus: VideoSource,
        sampler: ClipSource,
        crops: CropSource,
        draws: Iterable[ArrayLike],
        *,
        resolution: int,
        device: torch.device | str,
        resize: Resize = "fast",
        content_box: bool = True,
        square_pixels: bool = True,
        order: ClipOrder | None = None,
        threads: int | None = None,
        prefetch: int = 2,
        failure_budget: float = 0.1,
        failure_floor: int = 20,
        stall_seconds: float = 60.0,
        clip_timeout: float | None = 300.0,
        background: bool = False,
    ) -> None:
        if prefetch < 1 or (threads is not None and threads < 1):
            raise ValueError(f"prefetch and threads must be at least 1, got {prefetch} and {threads}")
        self.recipe = Recipe(corpus, sampler, crops, resolution, resize, content_box, square_pixels)
        if sampler.num_videos != len(corpus):
            raise ValueError(f"the sampler knows {sampler.num_videos} videos, the corpus {len(corpus)}")
        self.order = order or ClipOrder()
        self.threads = threads or len(os.sched_getaffinity(0))
        self.prefetch, self.device, self.background = prefetch, torch.device(device), background
        self.failure_budget, self.failure_floor = failure_budget, failure_floor
        self.stall_seconds, self.clip_timeout = stall_seconds, clip_timeout
        self.decoding_range: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.total = LoaderCount()
        self.taken_over: dict[str, str] = {}
        self._numbers = iter(draws)
        self._ahead: deque[Plan[Block]] = deque()
        self._due: dict[int, Span] = {}
        self._local = threading.local()
        self._readers: list[SpanReader] = []
        self._crews: list[Crew] = []
        self._is_stuck = False
        self._process = os.getpid()

    @abstractmethod
    def _start(self, spans: list[Span]) -> Block:
        """Begins to decode spans."""

    @abstractmethod
    def _finish(self, block: Block) -> tuple[torch.Tensor, list[SpanResult]]:
        """Waits for a block: its clips (sum of views, T, R, R, 3) uint8, span by span, and what became of each span."""

    @property
    def _clip_shape(self) -> tuple[int, int, int, int]:
        return self.recipe.sampler.num_frames, self.recipe.resolution, self.recipe.resolution, 3

    def _look_ahead(self, block: Block) -> None:
        """Does what can be done already for the block that comes next, without waiting."""
        return

    def wait_until_ready(self) -> None:
        """Until decoding has begun to work, for those who measure it."""
        return

    def __iter__(self) -> Iterator[ClipBatch]:
        return self

    def __next__(self) -> ClipBatch:
        if self._process != os.getpid():
            raise LoaderError(
                "a clip loader is used in another process than it was made in, as in workers of a DataLoader, each of which "
                "would load every clip, without the threads that decode; make it there, or set num_workers=0"
            )
        try:
            while len(self._ahead) <= self.prefetch and (numbers := next(self._numbers, None)) is not None:
                self._ahead.append(self._plan(np.asarray(numbers, dtype=np.int64)))
            if not self._ahead:
                raise StopIteration
            batch = self._batch(self._ahead.popleft())
            if self._ahead:
                self._look_ahead(self._ahead[0].block)
            return batch
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> BaseClipLoader[Block]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops the threads and closes the files. Batches decoded ahead are dropped, and there are no further ones."""
        self._numbers = iter(())
        self._ahead.clear()
        self._due.clear()
        busy: set[str] = set()
        for crew in self._crews:
            busy |= crew.close(STUCK_PATIENCE if self._is_stuck else None)
        while self._readers:
            reader = self._readers.pop()
            if reader.thread not in busy:  # what a stuck thread is at cannot be closed under it
                reader.close()

    def _plan(self, numbers: NDArray[np.int64]) -> Plan[Block]:
        spans: list[Span] = []
        clips: list[tuple[Span, int]] = []
        draws, views = self.order.clips(numbers)
        for draw, view in zip(draws.tolist(), views.tolist(), strict=True):
            span = self._due.get(draw)
            if span is None:
                # Views before this one were served before the run was interrupted.
                views_per_span = self.order.views_per_span
                span = self._due[draw] = Span(draw, tuple(range(views_per_span)), views_per_span - view)
                spans.append(span)
            span.due -= 1
            if not span.due:
                del self._due[draw]
            clips.append((span, view))
        return Plan(numbers, spans, self._start(spans), clips)

    def _batch(self, plan: Plan[Block]) -> ClipBatch:
        frames, results = self._finish(plan.block)
        count = LoaderCount()
        for span, result in zip(plan.spans, results, strict=True):
            span.result = result
            count.add(result.count)
        count.clips = len(plan.clips)
        self.total.add(count)
        spares = self.recipe.sampler.max_spares if any(result.is_lost for result in results) else 0
        self.total.check_failures(self.failure_budget, self.failure_floor, spares)
        frames = self._gather(plan, frames)
        picked = [(span.result, view) for span, view in plan.clips if span.result is not None]
        kept = [row for row, (result, _) in enumerate(picked) if not result.is_lost]
        if len(kept) < len(picked):
            frames, picked = frames[kept], [picked[row] for row in kept]
        clips = [result.clips[index] for result, index in picked]
        return ClipBatch(
            frames=frames,
            numbers=plan.numbers[kept],
            draws=np.array([clip.draw for clip in clips], dtype=np.int64),
            views=np.array([clip.view for clip in clips], dtype=np.int64),
            videos=np.array([clip.video for clip in clips], dtype=np.int64),
            frame_numbers=np.array([clip.frames for clip in clips], dtype=np.int64),
            pts_seconds=np.array([result.pts_seconds[index] for result, index in picked], dtype=np.float64),
            labels=[clip.label for clip in clips],
            count=count,
        )

    def _gather(self, plan: Plan[Block], frames: torch.Tensor) -> torch.Tensor:
        """The batch's clips, of this block and of earlier ones; the rest of the block waits."""
        if [(span, view) for span in plan.spans for view in span.views] == plan.clips:
            return frames.to(self.device, non_blocking=True)
        first_views = {id(span): view for span, view in reversed(plan.clips)}
        rows = iter(frames)
        for span in plan.spans:
            for view in span.views:
                clip = next(rows)
                if view >= first_views[id(span)]:
                    # Copies, so that a clip that waits does not hold its whole block.
                    span.frames[view] = clip.to(self.device, non_blocking=True, copy=True)
        return torch.stack([span.frames.pop(view) for span, view in plan.clips])

    def _reader(self) -> SpanReader:
        """This thread's."""
        if not hasattr(self._local, "reader"):
            self._local.reader = SpanReader(self.recipe)
            self._readers.append(self._local.reader)
        return self._local.reader

    def _wait(self, future: Future[Value]) -> Value:
        """The future's result. Raises LoaderError."""

        def is_there(seconds: float) -> bool | None:
            try:
                future.result(timeout=seconds)
            except FutureTimeoutError:
                return future.done() or None  # since then, or the work itself raised it
            return True

        self._wait_for(is_there)
        return future.result()

    def _wait_for(self, ask: Callable[[float], Value | None]) -> Value:
        """What `ask` returns in the end; None: not within so many seconds. A warning names what is being read whenever it takes
        long. Raises LoaderError."""
        waited, pause = 0.0, min(POLL_SECONDS, self.stall_seconds)
        while (found := ask(pause)) is None:
            waited += pause
            try:
                for crew in self._crews:
                    crew.check(pause, self.clip_timeout)
            except LoaderError:
                self._is_stuck = True
                raise
            if waited >= self.stall_seconds:
                waited = 0.0
                reading = sorted(self._reading())
                log.warning(
                    "no batch for %g seconds; %s",
                    self.stall_seconds,
                    f"still reading {', '.join(reading)}" if reading else "decoding is slow",
                )
        return found

    def _reading(self) -> set[str]:
        """The paths of the videos that are being read."""
        return {reader.reading for reader in self._readers} - {""}

    def _account(self, thread: str) -> str:
        """Which clip a reading thread is at."""
        clip = next((reader.clip for reader in self._readers if reader.thread == thread), None)
        if clip is None:
            return "between two clips"
        spare = f", replacement {clip.spare}" if clip.spare else ""
        return f"draw {clip.draw}{spare}, from frame {clip.frames[0]} on of {self.recipe.videos.video_path(clip.video)}"
