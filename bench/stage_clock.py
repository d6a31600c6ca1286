"""Stages of some steps by the host's clock alone: no operators, no device, and next to nothing that slows the steps down.

What `trocar plan` is fed with and checked against. On a GPU a stage's host time is how long its work took to start, so there only
waiting and whole steps say something.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..engine.config import Config
from ..engine.pretrain import pretrain
from ..engine.profiler import recorded_by
from .stages import StepProfile, analyse
from .trace import PREFIX, Event, Trace, TraceError


@dataclass
class StageClock:
    """Records ranges of all threads while it is on."""

    events: list[Event] = field(default_factory=list)
    is_on: bool = False

    def __call__(self, name: str) -> _Range:
        return _Range(self, name)


class _Range:
    def __init__(self, clock: StageClock, name: str) -> None:
        self._clock, self._name = clock, name

    def __enter__(self) -> None:
        self._start = time.perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        if self._clock.is_on:
            name = self._name.removeprefix(PREFIX)
            self._clock.events.append(Event(name, self._start, time.perf_counter_ns(), threading.get_ident()))


@dataclass
class ProcessorClock:
    """What the threads of this process did in the steps `first` .. `last` - 1, seconds a step.

    training_queue: the training thread was ready to run and had no core, because of other work on the machine. queue, core: of all
    other threads together, the same, and on a core; what is left of a decoding thread's time it waited for something else, such as
    storage. OpenMP's threads count too where there are several. All 0 where the system does not say (/proc, Linux).
    """

    first: int
    last: int
    training_queue: float = 0.0
    core: float = 0.0
    queue: float = 0.0

    def on_step(self, steps_done: int) -> None:
        """To be called on the training thread with the number of steps done, before the first and after each."""
        if steps_done == self.first:
            self._before = _threads()
        elif steps_done == self.last:
            per_step = 1e-9 / (self.last - self.first)
            for number, (core, queue) in _threads().items():
                core_before, queue_before = self._before.get(number, (0, 0))
                if number == threading.get_native_id():
                    self.training_queue = (queue - queue_before) * per_step
                else:
                    self.core += (core - core_before) * per_step
                    self.queue += (queue - queue_before) * per_step


def _threads() -> dict[int, tuple[int, int]]:
    """Thread -> nanoseconds on a core, and ready without one."""
    found = {}
    for folder in Path("/proc/self/task").glob("*"):
        try:
            core, queue, _ = (folder / "schedstat").read_text().split()
        except OSError:  # it has ended
            continue
        found[int(folder.name)] = int(core), int(queue)
    return found


def clock_stages(config: Config, first: int, last: int) -> tuple[StepProfile, ProcessorClock]:
    """Trains as `config` says, whose steps must go beyond `last`, and times the steps first .. last - 1.

    Raises TraceError where the run ends before.
    """
    clock, processor = StageClock(), ProcessorClock(first, last)

    def on_step(steps_done: int) -> None:
        if steps_done in (first, last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            clock.is_on = steps_done == first
        processor.on_step(steps_done)

    with recorded_by(clock):
        pretrain(config, progress=False, on_step=on_step)
    if clock.is_on or not clock.events:
        raise TraceError(f"{config.run.dir}: the run ended before step {last}")
    return analyse(Trace("stage clock", config.run.dir, ranges=clock.events)), processor
