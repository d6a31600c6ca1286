"""Processes that decode: the loader's side of `worker.py`.

Threads that decode share one interpreter with the training, which gives it up at every operator and then waits for it: a step
beside sixteen of them takes ten to thirty times as long. These processes take nothing from it. They are plain subprocesses, so the
program that trains is not imported again, and needs no `__main__` guard; no thread serves them here: whoever waits for a batch
takes their messages in.

A process may be killed at any moment, from outside or by the file that it reads. Another one takes its place and its span. A span
that ends two of them in the same clip is what ended them: that clip has failed, like one that cannot be decoded.

Shapes: V views.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from .job_board import CAPACITY, NOTHING, Job, JobBoard, Place
from .messages import LENGTH, NOBODY, PIPE_BYTES, unpacked, widen
from .recipe import Recipe
from .shared_recipe import share_recipe
from .span import SpanResult
from .threads import LoaderError, Watched
from .worker import Task

DEATHS_OF_A_CLIP = 2
# Before it has begun to read anything: nothing that it could be blamed on.
DEATHS_AT_NOTHING = 10
# Each has one thread; libraries that start more when they are imported are told not to.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass
class _Process(Watched):
    """One of them. owner: its name on the board. pipe: where its messages come from; arrived: of those, what is not whole yet.
    is_ready: it has said that it can work."""

    process: subprocess.Popen[bytes]
    owner: int
    pipe: int
    arrived: bytearray = field(default_factory=bytearray)
    is_ready: bool = False


class Workers:
    """`count` processes that decode spans of `recipe`, V views each, into `buffers`: descriptors of memory for clips.

    is_background: they stand back behind others. Raises LoaderError where the recipe cannot be sent. Dropped or closed, it kills
    them: they hold nothing.
    """

    def __init__(self, recipe: Recipe, count: int, *, views: int, buffers: Sequence[int], is_background: bool) -> None:
        shared, sizes = share_recipe(recipe)
        self._recipe = recipe
        self._board = JobBoard(count)
        self._wake_from, self._wake = os.pipe()
        widen(self._wake)
        os.set_blocking(self._wake, False)
        self._task = Task(
            number=0,
            owner=0,
            processes=count,
            jobs=self._board.descriptor,
            wake=self._wake_from,
            told=0,
            buffers=tuple(buffers),
            recipe=shared,
            recipe_bytes=sizes,
            views=views,
            is_background=is_background,
            parent=os.getpid(),
        )
        self._owners = 0
        self._unfinished: dict[int, None] = {}
        self._results: dict[int, Any] = {}
        self._missing: set[int] = set()
        # Of jobs: how often a process died at which spare, and how, where that spare is given up.
        self._deaths: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._deadly: defaultdict[int, dict[int, int]] = defaultdict(dict)
        self._deaths_at_nothing = Counter[int]()
        self._poll = select.poll()
        self._processes: list[_Process] = []
        self._by_pipe: dict[int, int] = {}
        descriptors = [self._board.descriptor, self._wake_from, self._wake, shared]
        self._end = weakref.finalize(self, _end, os.getpid(), self._processes, descriptors)
        for number in range(count):
            self._processes.append(self._start(number))

    def submit(self, jobs: Sequence[Job]) -> range:
        """Their numbers, by which the results are asked for."""
        if len(self._unfinished) + len(jobs) > CAPACITY:
            raise ValueError(f"more than {CAPACITY} spans at a time; set a smaller batch or less prefetch")
        numbers = self._board.hand_in(jobs)
        self._unfinished.update(dict.fromkeys(numbers))
        self._wake_up(len(jobs))
        return numbers

    def results(self, numbers: Sequence[int], seconds: float) -> list[SpanResult] | None:
        """What became of jobs, once; None where not all of it is known within so many seconds. Raises what they raised,
        LoaderError."""
        deadline = time.monotonic() + seconds
        self._missing = {number for number in numbers if number not in self._results}
        while self._missing:
            if not self._receive(max(0.0, deadline - time.monotonic())):
                return None
        found = [self._results.pop(number) for number in numbers]
        for result in found:
            if isinstance(result, Exception):
                raise result
        return found

    def peek(self, numbers: Sequence[int]) -> list[SpanResult] | None:
        """What became of jobs, to be asked for again; None where not all of it is known, or some raised."""
        while self._receive(0.0):
            pass
        known = (self._results.get(number) for number in numbers)
        found = [result for result in known if isinstance(result, SpanResult)]
        return found if len(found) == len(numbers) else None

    def ready(self, seconds: float) -> bool | None:
        """True once all of them have begun to work; None where they have not within so many seconds."""
        deadline = time.monotonic() + seconds
        while not all(process.is_ready for process in self._processes):
            if not self._receive(max(0.0, deadline - time.monotonic())):
                return None
        return True

    def reading(self) -> set[str]:
        """The paths of the videos that are being read."""
        places = [self._board.place(number) for number in range(len(self._processes))]
        return {
            self._recipe.videos.video_path(place.video)
            for place in places
            if place.job != NOTHING and place.video != NOTHING
        }

    def check(self, seconds: float, limit: float | None) -> None:
        """As `Threads.check`; and replaces processes that have ended unnoticed."""
        for number, process in enumerate(list(self._processes)):
            if process.process.poll() is not None:
                while process is self._processes[number] and self._read(number):
                    pass
                if process is self._processes[number]:  # a fork of this process holds the other end of its pipe
                    self._replace(number)
                continue
            place = self._board.place(number)
            who, busy = f"process decode_{number}", place.job != NOTHING
            process.watch(who, place.begun, seconds, limit, partial(self._at, place), busy=busy)

    def close(self, patience: float | None = None) -> set[str]:
        """Ends them at once; what they are at is dropped. Returns no names, as `Threads.close` does of those that go on."""
        if self._end.alive:
            self._end()
            self._board.close()
        return set()

    def _receive(self, seconds: float) -> bool:
        """Takes in the messages that are there, or come within so many seconds; whether there were any."""
        ready = self._poll.poll(1000 * seconds)
        for pipe, _ in ready:
            self._read(self._by_pipe[pipe])
        return bool(ready)

    def _read(self, number: int) -> bool:
        """Takes in what a process has said; False where that is nothing. One that has ended is replaced."""
        process = self._processes[number]
        try:
            found = os.read(process.pipe, PIPE_BYTES)
        except BlockingIOError:
            return False
        if not found:
            self._replace(number)
            return False
        process.arrived += found
        start = 0
        while len(process.arrived) >= start + LENGTH.size:
            (size,) = LENGTH.unpack_from(process.arrived, start)
            stop = start + LENGTH.size + size
            if len(process.arrived) < stop:
                break
            self._take_in(number, *unpacked(bytes(process.arrived[start + LENGTH.size : stop])))
            start = stop
        del process.arrived[:start]
        return True

    def _take_in(self, number: int, job: int, result: Any) -> None:
        if job != NOBODY:
            self._results[job] = result
            self._missing.discard(job)
            self._unfinished.pop(job)
            self._deaths.pop(job, None)
            self._deadly.pop(job, None)
        elif result is None:
            self._processes[number].is_ready = True
            self._deaths_at_nothing[number] = 0
        else:
            raise LoaderError(
                "a decoding process cannot take over what it is to load; classes of your own have to stand in a module that it "
                f"can import, not in a notebook or in the script itself; or set workers=0, for threads:\n{result}"
            )

    def _start(self, number: int, first: int = NOTHING, deadly: dict[int, int] | None = None) -> _Process:
        """A new process in place `number`."""
        self._owners += 1
        self._board.come_to(number, Place(NOTHING, 0, 0, 0, 0))
        if first != NOTHING:
            self._board.give(first, self._owners)
        pipe, told = os.pipe()
        os.set_blocking(pipe, False)
        widen(told)
        task = replace(
            self._task, number=number, owner=self._owners, told=told, first=first, deadly=tuple((deadly or {}).items())
        )
        program = f"import sys; sys.path[:] = sys.argv[2:]; from {__package__}.worker import run; run(sys.argv[1])"
        try:
            started = subprocess.Popen(
                [sys.executable, "-c", program, json.dumps(asdict(task)), *(path or os.getcwd() for path in sys.path)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **ONE_THREAD},
                pass_fds=(task.jobs, task.wake, task.told, task.recipe, *task.buffers),
                start_new_session=True,  # a Ctrl-C is for the loader's process
            )
        except BaseException:
            os.close(pipe)
            raise
        finally:
            os.close(told)
        self._poll.register(pipe, select.POLLIN)
        self._by_pipe[pipe] = number
        return _Process(started, self._owners, pipe)

    def _replace(self, number: int) -> None:
        """Of a process that has ended: what it was at is the next one's."""
        ended = self._processes[number]
        self._poll.unregister(ended.pipe)
        del self._by_pipe[ended.pipe]
        os.close(ended.pipe)
        ended.pipe = NOTHING
        ended.process.kill()  # it may have closed the pipe alone
        status = ended.process.wait()
        if not ended.is_ready and status >= 0:
            raise LoaderError(
                f"a decoding process ended with status {status} before it could work; it says why on stderr"
            )
        place, job = self._board.place(number), self._board.taken_by(ended.owner, list(self._unfinished))
        spare = place.spare if job is not None and place.job == job else NOTHING
        if spare == NOTHING:
            self._deaths_at_nothing[number] += 1
            if self._deaths_at_nothing[number] >= DEATHS_AT_NOTHING:
                how = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
                raise LoaderError(
                    f"a decoding process ended {DEATHS_AT_NOTHING} times before it read anything, at last with {how}; see whether "
                    "the machine has memory left, or set workers=0, for threads"
                )
        elif job is not None:
            self._deaths[job][spare] += 1
            if self._deaths[job][spare] == DEATHS_OF_A_CLIP:
                self._deadly[job][spare] = status
        deadly = self._deadly.get(job) if job is not None else None
        self._processes[number] = self._start(number, NOTHING if job is None else job, deadly)
        self._wake_up(1)  # it may have been woken up for a job that it did not take

    def _wake_up(self, times: int) -> None:
        os.write(self._wake, bytes(times))

    def _at(self, place: Place) -> str:
        draw = self._board.job(place.job).draw
        if place.video == NOTHING:
            return f": draw {draw}"
        spare = f", replacement {place.spare}" if place.spare else ""
        return f": draw {draw}{spare}, from frame {place.frame} on of {self._recipe.videos.video_path(place.video)}"


def _end(owner: int, processes: list[_Process], descriptors: list[int]) -> None:
    if os.getpid() != owner:  # a fork of it ends, to whom they do not belong
        return
    for process in processes:
        process.process.kill()
    for process in processes:
        process.process.wait()
        if process.pipe != NOTHING:
            os.close(process.pipe)
    for descriptor in descriptors:
        os.close(descriptor)
