"""ClipLoader that shares its draws between loaders, for where neither the CPU nor the GPU's decoder alone feeds the training.

A span goes to whoever is free: each loader has a few in hand and takes the next one when its oldest is done, so each decodes in
proportion to how fast it is, with whatever else the machine does. Batches come in the order of the draws. A loader that fails is
left out, and its spans are the others'.

Which clips come, of which frames, cut how, does not depend on who decodes what. Where loaders differ in the last bit, as DALI and
FFmpeg do, pictures do, and a run that is repeated has them from others.

Shapes: S spans of a block, V views, T frames, R x R pixels.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import torch
from numpy.typing import ArrayLike

from .decode.loader import STUCK_PATIENCE, BaseClipLoader
from .decode.plan import Span
from .decode.span import SpanResult
from .decode.threads import LoaderError
from .decode.uploads import Upload

SESSIONS = 16  # decoders that DALI has on a GPU where nobody says how many
log = logging.getLogger("trocar.loaders")


@dataclass(frozen=True)
class _Decoded:
    """clips: (V, T, R, R, 3) of a span."""

    result: SpanResult
    clips: Upload


@dataclass(frozen=True, eq=False)
class _Job:
    number: int
    span: Span
    decoded: Future[_Decoded]


@dataclass
class _Shared:
    """What the threads of the loaders have in common. waiting: spans that nobody has in hand, in order. serving: how many loaders
    do. spans: how many each has decoded. make_range: the context of a decoded span."""

    serving: int
    spans: list[int]
    make_range: Callable[[], AbstractContextManager[Any]] = nullcontext
    waiting: deque[_Job] = field(default_factory=deque)
    is_closed: bool = False
    error: Exception | None = None
    change: threading.Condition = field(default_factory=threading.Condition)

    def add(self, jobs: Sequence[_Job]) -> None:
        with self.change:
            if self.error is not None:
                raise self.error
            self.waiting.extend(jobs)
            self.change.notify_all()

    def take(self, is_idle: bool) -> _Job | None:
        """The next span; None where there is none and the loader has others to see to, or at the end."""
        with self.change:
            while is_idle and not self.waiting and not self.is_closed:
                self.change.wait()
            return None if self.is_closed or not self.waiting else self.waiting.popleft()

    def give_back(self, jobs: Sequence[_Job], error: Exception) -> None:
        """Of a loader that has failed: its spans are the next ones that the others take. After the last one's, nothing comes any
        more."""
        with self.change:
            self.serving -= 1
            self.waiting = deque(sorted([*jobs, *self.waiting], key=lambda job: job.number))
            if not self.serving:
                self.error = error
                while self.waiting:
                    self.waiting.popleft().decoded.set_exception(error)
            self.change.notify_all()

    def stop(self) -> None:
        with self.change:
            self.is_closed = True
            self.waiting.clear()
            self.change.notify_all()


class _Stop:
    """A crew that ends the waiting of a loader's thread when all are to end."""

    def __init__(self, shared: _Shared) -> None:
        self._shared = shared

    def check(self, seconds: float, limit: float | None) -> None:
        if self._shared.is_closed:
            raise LoaderError("the loader is closed")

    def close(self, patience: float | None = None) -> set[str]:
        return set()


class ClipLoader(BaseClipLoader[list[_Job]]):
    """Iterates over batches of clips, `ClipBatch`, decoded by several loaders.

    loaders: at least one, of the same videos, clips, crops, order and device, made without draws of their own; they are this one's
    from now on. The `prefetch` of each says how many spans it has in hand besides its oldest: about as many as it decodes at once,
    so that it is never idle. draws, prefetch: as for every loader; more spans have to be ahead than the loaders have in hand
    together. Failure budget, stall_seconds and decoding range are the first one's. Raises ValueError where the loaders differ.
    """

    def __init__(
        self, loaders: Sequence[BaseClipLoader[Any]], draws: Iterable[ArrayLike], *, prefetch: int = 2
    ) -> None:
        first = loaders[0]
        for other in loaders[1:]:
            if _what_it_loads(other) != _what_it_loads(first):
                raise ValueError(
                    "loaders that share draws must have the same videos, clips, crops, resolution, order and device; got "
                    f"{_what_it_loads(first)} and {_what_it_loads(other)}"
                )
        recipe = first.recipe
        super().__init__(
            recipe.videos,
            recipe.sampler,
            recipe.crops,
            draws,
            resolution=recipe.resolution,
            device=first.device,
            resize=recipe.resize,
            content_box=recipe.content_box,
            square_pixels=recipe.square_pixels,
            order=first.order,
            prefetch=prefetch,
            failure_budget=first.failure_budget,
            failure_floor=first.failure_floor,
            stall_seconds=first.stall_seconds,
            clip_timeout=first.clip_timeout,
        )
        self._loaders = list(loaders)
        self._shared = _Shared(len(loaders), [0] * len(loaders))
        self._serving: list[threading.Thread] = []
        for loader in loaders:
            loader.stall_seconds = float("inf")  # said once, here
            loader.taken_over = self.taken_over
            loader._crews.append(_Stop(self._shared))
        self._handed_in = count()
        weakref.finalize(self, self._shared.stop)

    @property
    def spans_by_loader(self) -> list[int]:
        """How many spans each has decoded so far."""
        return list(self._shared.spans)

    def wait_until_ready(self) -> None:
        if not self._serving:
            for loader in self._loaders:
                loader.wait_until_ready()

    def _start(self, spans: list[Span]) -> list[_Job]:
        self._shared.make_range = self.decoding_range
        if not self._serving:
            for number, loader in enumerate(self._loaders):
                thread = threading.Thread(
                    target=_serve, args=(self._shared, number, loader), name=f"share_{number}", daemon=True
                )
                self._serving.append(thread)
                thread.start()
        jobs = [_Job(next(self._handed_in), span, Future()) for span in spans]
        self._shared.add(jobs)
        return jobs

    def _finish(self, block: list[_Job]) -> tuple[torch.Tensor, list[SpanResult]]:
        decoded = [self._wait(job.decoded) for job in block]
        if not decoded:
            return torch.empty((0, *self._clip_shape), dtype=torch.uint8, device=self.device), []
        return torch.cat([each.clips.arrived() for each in decoded]), [each.result for each in decoded]

    def _reading(self) -> set[str]:
        return {path for loader in self._loaders for path in loader._reading()}

    def close(self) -> None:
        super().close()
        self._shared.stop()
        for thread in self._serving:
            thread.join(STUCK_PATIENCE if self._is_stuck else None)
        if not self._serving:
            for loader in self._loaders:
                loader.close()


def _what_it_loads(loader: BaseClipLoader[Any]) -> tuple[Any, ...]:
    recipe = loader.recipe
    cut = (recipe.crops, recipe.resolution, recipe.content_box, recipe.square_pixels)
    return recipe.videos, recipe.sampler, *cut, loader.order, loader.device.type


def _serve(shared: _Shared, number: int, loader: BaseClipLoader[Any]) -> None:
    """In a thread of its own: hands a loader spans, as many as it can have in hand, and theirs on to those who wait for them."""
    in_hand: deque[tuple[_Job, Any]] = deque()
    stream = torch.cuda.Stream(loader.device) if loader.device.type == "cuda" else None
    try:
        while True:
            while len(in_hand) <= loader.prefetch and (job := shared.take(not in_hand)) is not None:
                in_hand.append((job, None))
                loader.decoding_range = shared.make_range
                in_hand[-1] = job, loader._start([job.span])
            if shared.is_closed:
                return
            job, block = in_hand[0]
            decoded = _finished(loader, block, stream)
            in_hand.popleft()
            shared.spans[number] += 1
            job.decoded.set_result(decoded)
    except BaseException as error:  # noqa: BLE001  (whatever ends a loader, the others go on without it)
        if shared.is_closed:
            return
        told = error if isinstance(error, Exception) else LoaderError(f"a loader ended with {error!r}")
        shared.give_back([job for job, _ in in_hand], told)
        left = "the others go on without it" if shared.serving else "none is left"
        log.warning("one of the loaders that share the draws has failed, %s: %s", left, told)
    finally:
        loader.close()


def _finished(loader: BaseClipLoader[Any], block: Any, stream: torch.cuda.Stream | None) -> _Decoded:
    """The one span of a block, decoded, on a GPU in `stream`."""
    if stream is None:
        frames, results = loader._finish(block)
        return _Decoded(results[0], Upload(frames, None))
    with torch.cuda.stream(stream):
        frames, results = loader._finish(block)
    done = torch.cuda.Event()
    done.record(stream)
    return _Decoded(results[0], Upload(frames, done))


def open_both(
    make: Callable[..., BaseClipLoader[Any]], workers: int, options: Mapping[str, Any], numbers: Any, **more: Any
) -> ClipLoader:
    """The CPU's loader and DALI's together. make: of a loader's name, numbers and options. workers: the CPU's processes. options:
    of both loaders; more: what else there is to them."""
    threads = options.get("threads") or len(os.sched_getaffinity(0))
    cpu = make("cpu", (), **{**more, "prefetch": workers or threads})
    sessions = SESSIONS if cpu.device.type == "cuda" else threads
    try:
        dali = make("dali", (), **{**more, "prefetch": options.get("decoders") or sessions})
    except BaseException:
        cpu.close()
        raise
    return ClipLoader([cpu, dali], numbers, prefetch=more.get("prefetch", options.get("prefetch", 2)))
