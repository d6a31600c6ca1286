"""Threads that decode: one that dies or hangs is an error within seconds, and none holds up the end of the process.

The standard library's executor hands a SystemExit on to whoever asks for the result, keeps waiting where a thread is gone, and is
joined when the interpreter ends, however long a read of a network disk hangs. These threads are daemons that say what they are at.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeVar

from ..video.error import TrocarError

Result = TypeVar("Result")
# What a thread is at, given its name.
Account = Callable[[str], str]
PATIENCE_AT_EXIT = 5.0
NICENESS = 5  # of decoding that stands back


def stand_back() -> None:
    """Makes this thread nicer by NICENESS than it is, whatever that is: to be less nice only the superuser may ask for."""
    if sys.platform == "linux":  # elsewhere the call would mean the whole process
        os.nice(NICENESS)


class LoaderError(TrocarError):
    """A thread of a loader died, or is at one clip for too long; the message names the clip."""


@dataclass
class Watched:
    """A thread or a process that does one job after another. held: seconds that the present one, number `seen`, was seen to
    take."""

    seen: int = field(default=-1, init=False)
    held: float = field(default=0.0, init=False)

    def watch(
        self, who: str, job: int, seconds: float, limit: float | None, at: Callable[[], str], *, busy: bool
    ) -> None:
        """To be called every `seconds`. job: the number of the latest one that it has begun; busy: it is at it. at: what that is,
        in words. Raises LoaderError where it has been at it for longer than `limit` seconds."""
        self.held, self.seen = self.held + seconds if busy and job == self.seen else 0.0, job
        if limit is not None and self.held > limit:
            raise LoaderError(
                f"the {who} does not come on for {limit:g} s (clip_timeout){at()}; see whether its storage answers, leave the "
                "video out (data.exclude), or raise clip_timeout"
            )


@dataclass
class _Worker(Watched):
    """account: of its present job, None between two. jobs: how many it has begun. reason: why it ended, "" while it has not."""

    thread: threading.Thread = field(init=False)
    account: Account | None = None
    jobs: int = 0
    reason: str = ""


class Threads:
    """`count` threads, which take jobs in the order in which they are handed in.

    name: theirs, a number follows. initializer: called first in each. Dropped or closed, it ends its threads; jobs that have not
    begun are cancelled then.
    """

    def __init__(self, count: int, name: str, initializer: Callable[[], None] | None = None) -> None:
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        self._workers = [_Worker() for _ in range(count)]
        for number, worker in enumerate(self._workers):
            worker.thread = threading.Thread(
                target=_work, args=(self._jobs, worker, initializer), name=f"{name}_{number}", daemon=True
            )
            worker.thread.start()
        # A thread that finds the mark puts it back for the next one. It holds no reference to this object.
        weakref.finalize(self, self._jobs.put, None).atexit = False
        _open.add(self)

    def submit(self, account: Account, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """The result to come. account: says what the job is at, where it takes too long or its thread dies."""
        future: Future[Result] = Future()
        self._jobs.put((future, account, function, arguments))
        return future

    def come_on(self) -> None:
        """Said by a job in its thread: what it does next counts as another job."""
        for worker in self._workers:
            if worker.thread is threading.current_thread():
                worker.jobs += 1

    def check(self, seconds: float, limit: float | None) -> None:
        """Raises LoaderError where a thread has died, or was at one job for longer than `limit` seconds.

        To be called every `seconds` while somebody waits: time in which the whole process is stopped does not count.
        """
        for worker in self._workers:
            if not worker.thread.is_alive():
                raise LoaderError(f"the thread {worker.thread.name} {worker.reason or 'is gone'}{_at(worker)}")
            who, busy = f"thread {worker.thread.name}", worker.account is not None
            worker.watch(who, worker.jobs, seconds, limit, partial(_at, worker), busy=busy)

    def close(self, patience: float | None = None) -> set[str]:
        """Waits for the threads to end, for jobs that are under way at most `patience` seconds. Returns the names of the others."""
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                break
            if job is not None:
                job[0].cancel()
        self._jobs.put(None)
        deadline = None if patience is None else time.monotonic() + patience
        for worker in self._workers:
            worker.thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return {worker.thread.name for worker in self._workers if worker.thread.is_alive()}


def _at(worker: _Worker) -> str:
    account = worker.account
    return f": {account(worker.thread.name)}" if account else ""


def _work(jobs: SimpleQueue[Any], worker: _Worker, initializer: Callable[[], None] | None) -> None:
    try:
        if initializer is not None:
            initializer()
        while _one(jobs, worker):
            pass
    except BaseException as error:  # noqa: BLE001  (whatever ends it is told to those who wait)
        worker.reason = f"ended with {error!r}"


def _one(jobs: SimpleQueue[Any], worker: _Worker) -> bool:
    """Does the next job; False after the last. In a function of its own, so that a thread that waits holds no result."""
    job = jobs.get()
    if job is None:
        jobs.put(None)
        return False
    future, account, function, arguments = job
    if future.set_running_or_notify_cancel():
        worker.jobs, worker.account = worker.jobs + 1, account
        try:
            result = function(*arguments)
        except Exception as error:  # noqa: BLE001  (raised where the result is asked for)
            future.set_exception(error)
        else:
            future.set_result(result)
        # A BaseException, such as SystemExit, ends the thread, which keeps the account: `check` tells it.
        worker.account = None
    return True


_open: weakref.WeakSet[Threads] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Decoders are not to be inside a codec when the process takes itself apart."""
    for threads in list(_open):
        threads.close(PATIENCE_AT_EXIT)
