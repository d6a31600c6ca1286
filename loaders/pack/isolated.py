"""Long jobs in parallel, each alone in its process: whatever a broken file does to that process, only its own job is lost."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, TypeVar

Result = TypeVar("Result")
SPAWN = get_context("spawn")


class ProcessDied(Exception):  # noqa: N818
    """A job ended its process, or the system did."""


_number = 0


def worker_number() -> int:
    """Of the process that asks, among those of its `run_isolated`: 0 .. workers - 1, whichever job it is at; 0 elsewhere."""
    return _number


class _Slot:
    """A process that does one job at a time and ends with its parent, even if that is killed."""

    def __init__(self, number: int) -> None:
        self.number = number
        # The other end is closed by `stop`, or by the system when this process ends.
        watched, self._held = SPAWN.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(1, mp_context=SPAWN, initializer=_begin, initargs=(watched, number))

    def submit(self, function: Callable[..., Result], arguments: tuple[Any, ...]) -> Future[Result]:
        return self._pool.submit(function, *arguments)

    def stop(self) -> None:
        self._held.close()
        self._pool.shutdown(wait=True, cancel_futures=True)


def _begin(watched: Connection, number: int) -> None:
    """Of a worker, which ends with its parent."""
    global _number
    _number = number
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its children

    def wait_for_the_end() -> None:
        try:
            watched.recv()
        except (EOFError, OSError):
            os._exit(1)

    threading.Thread(target=wait_for_the_end, daemon=True).start()


def run_isolated(
    function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], workers: int
) -> Generator[tuple[tuple[Any, ...], Result | Exception], None, None]:
    """Calls `function(*job)` for every job and yields (job, what it returned or raised) as they end, in any order.

    A job that ends its process yields ProcessDied. workers: processes, at least 1. Whoever stops iterating ends the jobs in flight
    at once.
    """
    left = iter(jobs)
    idle = [_Slot(number) for number in reversed(range(workers))]
    running: dict[Future[Result], tuple[_Slot, tuple[Any, ...]]] = {}

    def start() -> None:
        while idle and (job := next(left, None)) is not None:
            slot = idle.pop()
            try:
                future = slot.submit(function, job)
            except BrokenProcessPool:  # something ended it between two jobs
                slot.stop()
                slot = _Slot(slot.number)
                future = slot.submit(function, job)
            running[future] = (slot, job)

    try:
        start()
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, job = running.pop(future)
                error = future.exception()
                if isinstance(error, BrokenProcessPool):
                    slot.stop()
                    slot, error = _Slot(slot.number), ProcessDied()
                idle.append(slot)
                start()
                if error is None:
                    yield job, future.result()
                elif isinstance(error, Exception):
                    yield job, error
                else:
                    raise error
    finally:
        for slot in [*idle, *(slot for slot, _ in running.values())]:
            slot.stop()
