"""Whose work is what in a trace: the stage of a kernel, kernels and operators by time, and calls that wait for the GPU.

Work on a GPU belongs to the stage in which it was started. The autograd engine starts the backward pass's kernels on threads of its
own: those belong to the stage of the training thread at that moment, as do NCCL's. What other threads start on streams that the
training never uses is decoding.

A piece is (start, end, stage) of the training thread; pieces are in order and leave no gap.
"""

from __future__ import annotations

import bisect
from collections import Counter as Counts
from collections import defaultdict
from dataclasses import dataclass

from .trace import WAITING_CALLS, DeviceWork, Event, Trace, innermost

Piece = tuple[int, int, str]
BETWEEN = "between steps"
NANO = 1e-9


@dataclass(frozen=True)
class Part:
    """A kernel or an operator, seconds and calls a step, and the stage with most of it."""

    name: str
    stage: str
    seconds: float
    calls: float


class Owners:
    """The stage of a piece of work."""

    def __init__(self, trace: Trace, pieces: list[Piece], thread: int) -> None:
        self._pieces, self._thread = pieces, thread
        self._starts = [piece[0] for piece in pieces]
        others: dict[int, list[Event]] = defaultdict(list)
        for event in trace.ranges:
            if event.thread != thread:
                others[event.thread].append(event)
        self._others = {number: innermost(events) for number, events in others.items()}
        self._streams = {item.stream for item in trace.device if item.call is not None and item.call.thread == thread}

    def at(self, time: int) -> str:
        place = bisect.bisect_right(self._starts, time) - 1
        return self._pieces[place][2] if place >= 0 and time < self._pieces[place][1] else BETWEEN

    def of(self, item: DeviceWork) -> str:
        call = item.call
        if call is None:
            return self.at(item.start)
        if call.thread == self._thread:
            return self.at(call.start)
        for start, end, event in self._others.get(call.thread, ()):
            if start <= call.start < end:
                return event.name
        is_training = item.stream in self._streams or "nccl" in item.name.lower()
        return self.at(call.start) if is_training else "decode"


def kernels(work: list[tuple[DeviceWork, str]], steps: int) -> list[Part]:
    seconds: dict[str, Counts[str]] = defaultdict(Counts)
    calls: Counts[str] = Counts()
    for item, stage in work:
        seconds[item.name][stage] += item.duration
        calls[item.name] += 1
    return _ranked(seconds, calls, steps)


def operators(trace: Trace, pieces: list[Piece], thread: int, steps: int) -> tuple[Counts[str], list[Part]]:
    """Of the training thread's operators: nanoseconds inside them by stage, and each by its own time, without what is inside it."""
    begin, end = pieces[0][0], pieces[-1][1]
    mine = [event for event in trace.operators if event.thread == thread and begin <= event.start < end]
    starts = [piece[0] for piece in pieces]
    seconds: dict[str, Counts[str]] = defaultdict(Counts)
    inside: Counts[str] = Counts()
    for start, stop, event in innermost(mine):
        stage = pieces[bisect.bisect_right(starts, start) - 1][2]
        seconds[event.name][stage] += stop - start
        inside[stage] += stop - start
    return inside, _ranked(seconds, Counts(event.name for event in mine), steps)


def _ranked(seconds: dict[str, Counts[str]], calls: Counts[str], steps: int) -> list[Part]:
    parts = [
        Part(name, by_stage.most_common(1)[0][0], by_stage.total() * NANO / steps, calls[name] / steps)
        for name, by_stage in seconds.items()
    ]
    return sorted(parts, key=lambda part: -part.seconds)


def host_syncs(
    trace: Trace, pieces: list[Piece], thread: int, steps: int
) -> dict[tuple[str, str], tuple[float, float]]:
    """Calls of the training thread that wait for the GPU, and its copies from or to memory that is not page-locked.

    (what, stage) -> calls and seconds a step.
    """
    owners = Owners(trace, pieces, thread)
    found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    copies = {
        id(item.call): f"{item.copy} copy of pageable memory"
        for item in trace.device
        if item.copy and not item.is_pinned
    }
    for call in trace.calls:
        if call.thread != thread or not pieces[0][0] <= call.start < pieces[-1][1]:
            continue
        name = copies.get(id(call), call.name if call.name.startswith(WAITING_CALLS) else "")
        if name:
            entry = found[name, owners.at(call.start)]
            entry[0] += 1 / steps
            entry[1] += call.duration * NANO / steps
    return {key: (count, seconds) for key, (count, seconds) in found.items()}
