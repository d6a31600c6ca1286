"""What a loader and its decoding processes have in common: the spans to decode, in order, and what each process is at.

It lies in memory that has no name and is handed on as a descriptor, so that nothing is left of it however its processes end. Who
takes a job holds a lock that the system releases with its holder: a process that is killed at any moment has taken a job, and is
its owner, or has not.

All numbers are 64 bits wide: two of the board, a row of JOB a job, in a ring, and a row of PLACE a process.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

CAPACITY = 1 << 16
HANDED_IN, TAKEN, HEAD = 0, 1, 2
NOTHING = -1


class Job(NamedTuple):
    """A span to decode. draw: which. buffer, clips: the batch that it is for, of so many clips. first: its first clip in there."""

    draw: int
    buffer: int
    clips: int
    first: int


class Place(NamedTuple):
    """Where a process is. job: NOTHING between two. spare, video, frame: of the clip that it is at. begun: jobs so far."""

    job: int
    spare: int
    video: int
    frame: int
    begun: int


OWNER, JOB, PLACE = len(Job._fields), len(Job._fields) + 1, len(Place._fields)


class JobBoard:
    """The board behind `descriptor`, or a new one for `processes` where that is None."""

    def __init__(self, processes: int, descriptor: int | None = None) -> None:
        size = 8 * (HEAD + CAPACITY * JOB + processes * PLACE)
        self.descriptor = os.memfd_create("trocar_jobs") if descriptor is None else descriptor
        if descriptor is None:
            os.ftruncate(self.descriptor, size)
        self._memory = mmap.mmap(self.descriptor, size)
        self._numbers = memoryview(self._memory).cast("q")
        self._places = HEAD + CAPACITY * JOB
        if descriptor is None:
            for process in range(processes):
                self.come_to(process, Place(NOTHING, 0, 0, 0, 0))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def hand_in(self, jobs: Sequence[Job]) -> range:
        """Their numbers. At most CAPACITY may be unfinished."""
        first = self._numbers[HANDED_IN]
        with self._locked():
            for number, job in enumerate(jobs, start=first):
                struct.pack_into(f"{JOB}q", self._memory, 8 * self._row(number), *job, NOTHING)
            self._numbers[HANDED_IN] = first + len(jobs)
        return range(first, first + len(jobs))

    def take(self, owner: int) -> int | None:
        """The number of the next job, which is `owner`'s now; None where there is none."""
        with self._locked():
            number = self._numbers[TAKEN]
            if number == self._numbers[HANDED_IN]:
                return None
            self._numbers[self._row(number) + OWNER] = owner
            self._numbers[TAKEN] = number + 1
            return number

    def job(self, number: int) -> Job:
        return Job(*self._numbers[self._row(number) : self._row(number) + OWNER])

    def taken_by(self, owner: int, unfinished: Sequence[int]) -> int | None:
        """Which of the unfinished jobs `owner` has taken."""
        with self._locked():
            taken = self._numbers[TAKEN]
            owned = (number for number in unfinished if self._numbers[self._row(number) + OWNER] == owner)
            return next((number for number in owned if number < taken), None)

    def give(self, number: int, owner: int) -> None:
        """Makes a job that was taken another's."""
        self._numbers[self._row(number) + OWNER] = owner

    def come_to(self, process: int, place: Place) -> None:
        """Writes down where a process is."""
        struct.pack_into(f"{PLACE}q", self._memory, 8 * (self._places + process * PLACE), *place)

    def place(self, process: int) -> Place:
        start = self._places + process * PLACE
        return Place(*self._numbers[start : start + PLACE])

    def close(self) -> None:
        """Lets go of the memory. The descriptor is the caller's."""
        self._numbers.release()
        self._memory.close()

    @staticmethod
    def _row(number: int) -> int:
        return HEAD + number % CAPACITY * JOB
