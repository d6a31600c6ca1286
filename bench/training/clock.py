"""Steps of the engine, timed one after another as they follow in training.

On a GPU events between the steps are read when all are done, so nothing waits that would not in training; on a CPU a step is over
when the call returns.

Shapes: S timed steps.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Generic, TypeVar

import torch

from ...engine.pretrain import train_step
from ...engine.record.readback import ReadBack, StepReport
from ...engine.step.run import Run
from ...loaders.decode.batch import ClipBatch, LoaderCount
from ..rows.timing import wait

Clock = Callable[[], float]
Item = TypeVar("Item")


@dataclass(frozen=True)
class StepTimes:
    """seconds: (S,) of each step. waited: seconds of them in which the host waited for batches. losses: (S,). count: what the
    timed batches cost this rank."""

    seconds: tuple[float, ...]
    waited: float
    losses: tuple[float, ...]
    count: LoaderCount

    @property
    def clips_per_second(self) -> float:
        """Of this rank, over all of the time: a loader's bursts level out, which a median of steps would hide."""
        return self.count.clips / sum(self.seconds)

    @property
    def data_wait_percent(self) -> float:
        return 100 * self.waited / sum(self.seconds)


@dataclass
class Waited(Generic[Item]):
    """Items on their way into the step, and the seconds that they were waited for."""

    items: Iterator[Item]
    clock: Clock = time.perf_counter
    waited: float = 0.0

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        asked = self.clock()
        try:
            return next(self.items)
        finally:
            self.waited += self.clock() - asked


@dataclass
class Fed(Waited[ClipBatch]):
    """Batches, with what they cost besides."""

    count: LoaderCount = field(default_factory=LoaderCount)

    def __next__(self) -> ClipBatch:
        batch = super().__next__()
        self.count.add(batch.count)
        return batch

    def restart(self) -> None:
        self.waited, self.count = 0.0, LoaderCount()


def time_steps(
    run: Run,
    batches: Iterator[ClipBatch],
    steps: int,
    *,
    warmup: int,
    first_step: int = 0,
    clock: Clock = time.perf_counter,
    step: Callable[[Run, int, Iterator[ClipBatch]], StepReport] = train_step,
) -> StepTimes:
    """Takes `warmup` steps and then `steps`, which are timed. batches: of `first_step` and those after it. step: what a step is."""
    device = run.world.device
    fed, read_back = Fed(batches, clock), ReadBack(device)
    losses: list[float] = []

    def take(number: int, everything: bool) -> None:
        read_back.push(step(run, number, fed))
        losses.extend(report.row["loss"] for report in read_back.arrived(everything=everything))

    for number in range(first_step, first_step + warmup):
        take(number, number == first_step + warmup - 1)
    losses.clear()
    fed.restart()
    marks = [_mark(device, clock)]
    for number in range(first_step + warmup, first_step + warmup + steps):
        take(number, False)
        marks.append(_mark(device, clock))
    losses.extend(report.row["loss"] for report in read_back.arrived(everything=True))
    wait(device)
    seconds = tuple(_between(start, end) for start, end in pairwise(marks))
    return StepTimes(seconds, fed.waited, tuple(losses), fed.count)


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def peak_memory(device: torch.device) -> int:
    """Bytes: of tensors on a GPU since its peak was reset; of the whole process since its start on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _mark(device: torch.device, clock: Clock) -> torch.cuda.Event | float:
    if device.type != "cuda":
        return clock()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    assert isinstance(start, torch.cuda.Event)
    assert isinstance(end, torch.cuda.Event)
    return start.elapsed_time(end) / 1e3
