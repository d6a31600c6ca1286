"""Probing many files ahead, in a pool that survives what a broken file does to it."""

from __future__ import annotations

import signal
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from typing import TypeAlias

from ..video.probe import probe_video
from ..video.video import GopTable, VideoError, VideoFacts

ProbeResult: TypeAlias = str | tuple[VideoFacts, GopTable]
Probing: TypeAlias = Future[tuple[VideoFacts, GopTable]]


class Probers:
    """Probes files ahead in a pool; survives the death of a prober, and finds out which file killed it."""

    def __init__(self, workers: int, content_box: bool, checksum: bool, verify: bool | None, track: int | None) -> None:
        self.limit = 4 * workers
        self.pending = 0
        self._workers = workers
        self._probe = partial(probe_video, content_box=content_box, checksum=checksum, verify=verify, track=track)
        self._pool: Executor | None = None
        self._alone: Executor | None = None

    def __enter__(self) -> Probers:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._pool, self._alone):
            if pool is not None:
                pool.shutdown(cancel_futures=True)

    def submit(self, path: str) -> Probing:
        self.pending += 1
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1) if self._workers == 1 else _process_pool(self._workers)
        try:
            return self._pool.submit(self._probe, path)
        except BrokenProcessPool:
            self._pool = _process_pool(self._workers)
            return self._pool.submit(self._probe, path)

    def result(self, path: str, future: Probing) -> ProbeResult:
        """Waits for a probe; any failure of it becomes the reason why the file is left out."""
        self.pending -= 1
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            # The death of one process fails every file in flight: only alone does the guilty one show.
            self._alone = self._alone or _process_pool(1)
            future = self._alone.submit(self._probe, path)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                self._alone = None
                return f"{path}: reading it kills the prober process; re-encode it elsewhere or leave it out"
        if error is None:
            return future.result()
        return str(error) if isinstance(error, VideoError) else f"{path}: {type(error).__name__}: {error}"


def _process_pool(workers: int) -> ProcessPoolExecutor:
    # Probers leave Ctrl-C to the parent, which ends them in order.
    ignore = (signal.SIGINT, signal.SIG_IGN)
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=signal.signal, initargs=ignore)
