"""How long the GPU works on a step, to be set against how long the step takes: what it idles for, nobody else tells.

Two events around a step measure the time that passes on the device, and where the host launches kernels too slowly, the gaps
between these as well. So a stretch of a step counts only if all of its work was queued before the device began it. Where the device
is behind, that happens by itself; where it is ahead, the stretches of a step now and then are held back on the device, until the
host has launched them. The host waits for nothing: events are read with the step's other numbers, when they are long past.

A driver queues some 1,000 kernels; of a stretch that has more, the gaps between the others count as work.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch

# Steps between two that are held back: what it costs, at most one step's launching, stays below half a percent.
HELD_BACK_EVERY = 250
FIRST_STEPS = 8  # compile, allocate, choose algorithms
LONGEST_HOLD_SECONDS = 2.0
CYCLES_PER_SECOND = 2e9  # at least a GPU's: a hold is then long enough


@dataclass
class StepWork:
    """A step's stretches on the device. shape: of its clips. pairs: events around each. is_held: they were held back. is_whole:
    none began before all of it was queued."""

    shape: tuple[int, ...] = ()
    pairs: list[tuple[Any, Any]] = field(default_factory=list)
    is_held: bool = False
    is_whole: bool = True

    def seconds(self) -> float:
        """Of all stretches, once they are past."""
        return sum(start.elapsed_time(end) for start, end in self.pairs) / 1000


class DeviceTime:
    """The steps' work on a GPU; on a CPU there is nothing to tell.

    begin: a stretch begins, of clips that have come or of the same ones; it ends the one before. end: the last kernel of a stretch
    has been launched. finish: the step's last; what to read later.
    """

    def __init__(self) -> None:
        self._work = StepWork()
        self._since = HELD_BACK_EVERY - FIRST_STEPS
        self._launching: dict[int, float] = {}
        self._began = 0.0
        self._own: dict[tuple[int, ...], float] = {}

    def begin(self, clips: torch.Tensor) -> None:
        if not clips.is_cuda:
            return
        self.end()
        work = self._work
        work.shape = tuple(clips.shape)
        work.is_held = self._since >= HELD_BACK_EVERY
        if work.is_held:
            seconds = min(self._launching.get(len(work.pairs), 0.0), LONGEST_HOLD_SECONDS)
            torch.cuda._sleep(int(CYCLES_PER_SECOND * seconds))
        work.pairs.append((_event(), None))
        self._began = time.perf_counter()

    def end(self) -> None:
        work = self._work
        if not work.pairs or work.pairs[-1][1] is not None:
            return
        start, _ = work.pairs[-1]
        work.is_whole &= not start.query()
        work.pairs[-1] = (start, _event())
        if not work.is_held:  # a full queue makes the host wait
            self._launching[len(work.pairs) - 1] = time.perf_counter() - self._began

    def finish(self) -> StepWork | None:
        """Of the step that has been launched; None on a CPU."""
        self.end()
        work, self._work = self._work, StepWork()
        self._since = 0 if work.is_held or (work.is_whole and self._own) else self._since + 1
        return work if work.pairs else None

    def own_seconds(self, work: StepWork) -> float | None:
        """How long the device works on such a step, as last measured; None where it has not been yet."""
        if work.is_held or work.is_whole:
            self._own[work.shape] = work.seconds()
        return self._own.get(work.shape)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def shares(seconds: float, own: float, waited: float) -> dict[str, float]:
    """A step's seconds in percent. gpu_busy_percent: in which the device worked. host_bound_percent: in which it did not, although
    the clips were there: the host had launched nothing."""
    idle = max(0.0, seconds - own)
    return {
        "gpu_busy_percent": 100 * (1 - idle / seconds),
        "host_bound_percent": 100 * (idle - min(idle, waited)) / seconds,
    }


def held_up_by(row: dict[str, Any]) -> str:
    """In words, of a step's metrics: what it would have to do less of to be faster."""
    waits = row["data_wait_percent"]
    if "gpu_busy_percent" not in row:  # on a CPU, which computes while it does not wait
        return "decoding" if waits > 50 else "computing"
    busy, host = row["gpu_busy_percent"], row["host_bound_percent"]
    found = {"computing": busy, "the host launches too slowly": host, "decoding": 100 - busy - host}
    return max(found, key=lambda name: found[name])
