"""What a profiler saw of some training steps, whichever it was: ranges, calls, work on the device, samples of its counters.

Times are integer nanoseconds on the trace's own clock. Readers: `trace_torch`, `trace_nsys`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...loaders.video.error import TrocarError

PREFIX = "trocar/"  # of stage names, engine/record/profiler.py
# CUDA calls that keep the host waiting for the device, by the beginning of their names.
WAITING_CALLS = (
    "cudaDeviceSynchronize", "cudaStreamSynchronize", "cudaEventSynchronize", "cuCtxSynchronize", "cuStreamSynchronize",
    "cuEventSynchronize", "cudaFree", "cudaMalloc", "cudaHostAlloc",
)  # fmt: skip


class TraceError(TrocarError):
    """A trace that cannot be read, or holds no steps."""


@dataclass(frozen=True)
class Event:
    """Something with a name on a thread of the host: a stage (without its prefix), an operator or a CUDA call."""

    name: str
    start: int
    end: int
    thread: int

    @property
    def duration(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class DeviceWork:
    """A kernel or a copy on a GPU. call: what started it on the host, None where the trace does not say. copy: "" for kernels, else
    "HtoD", "DtoH", "DtoD". is_pinned: whether the host's side of a copy is page-locked; a copy from or to other memory waits."""

    name: str
    start: int
    end: int
    stream: int
    call: Event | None = None
    copy: str = ""
    bytes: int = 0
    is_pinned: bool = True

    @property
    def duration(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Counter:
    """Samples of one of the GPU's counters: times, and values in percent of its peak."""

    name: str
    times: list[int]
    values: list[float]


@dataclass
class Trace:
    """tool: what recorded it. file: where. ranges: stages, of all threads. operators: PyTorch's, CPU only. calls: CUDA calls.
    notes: what the trace cannot show, and why."""

    tool: str
    file: str
    ranges: list[Event] = field(default_factory=list)
    operators: list[Event] = field(default_factory=list)
    calls: list[Event] = field(default_factory=list)
    device: list[DeviceWork] = field(default_factory=list)
    counters: list[Counter] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def steps(self) -> list[Event]:
        """The optimizer steps, in order. Raises TraceError where there is none."""
        found = sorted((event for event in self.ranges if event.name == "step"), key=lambda event: event.start)
        if not found:
            raise TraceError(
                f"{self.file}: holds no range {PREFIX}step; the run ended before the steps asked for, or ranges were off"
            )
        return found


def innermost(events: list[Event]) -> list[tuple[int, int, Event]]:
    """(start, end, event) pieces of one thread's time in ascending order, each of the innermost event there.

    Events of one thread nest; where clocks round, an inner one is cut to its outer one. Time in no event has no piece.
    """
    pieces: list[tuple[int, int, Event]] = []
    stack: list[tuple[Event, int]] = []  # an open event, and where its next own piece starts

    def close(until: int) -> None:
        while stack and stack[-1][0].end <= until:
            event, since = stack.pop()
            if event.end > since:
                pieces.append((since, event.end, event))
            if stack:
                outer, outer_since = stack[-1]
                stack[-1] = (outer, max(outer_since, event.end))

    for event in sorted(events, key=lambda event: (event.start, -event.end)):
        close(event.start)
        if stack:
            outer, since = stack[-1]
            if event.start > since:
                pieces.append((since, event.start, outer))
            stack[-1] = (outer, event.start)
            if event.end > outer.end:
                event = Event(event.name, event.start, outer.end, event.thread)
        stack.append((event, event.start))
    close(max((event.end for event in events), default=0))
    return sorted(pieces, key=lambda piece: piece[0])


def busy(intervals: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The union of intervals, as disjoint ones in ascending order."""
    union: list[tuple[int, int]] = []
    for start, end in sorted(intervals):
        if union and start <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        elif end > start:
            union.append((start, end))
    return union
