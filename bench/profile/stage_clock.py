"""Stages of some steps by the host's clock alone: no operators, no device, and next to nothing that slows the steps down.

What `trocar plan` is fed with and checked against. On a GPU a stage's host time is how long its work took to start, so there only
waiting and whole steps say something.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...engine.config.settings import Config
from ...engine.pretrain import pretrain
from ...engine.record.profiler import recorded_by
from .stages import StepProfile, analyse
from .trace import PREFIX, Event, Trace, TraceError


@dataclass
class StageClock:
    """Records ranges of all threads while it is on."""

    events: list[Event] = field(default_factory=list)
    is_on: bool = False

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            if self.is_on:
                thread = threading.get_native_id()
                self.events.append(Event(name.removeprefix(PREFIX), start, time.perf_counter_ns(), thread))


@dataclass
class ProcessorClock:
    """What threads did in the steps `first` .. `last` - 1, by the system's account (/proc, Linux; elsewhere all is 0).

    spans: (seconds, of them on a core, of them ready to run without a core) of every span that was decoded; what is left its thread
    waited for something, such as storage. training_queue: seconds a step in which the training thread was ready to compute and had
    no core, because of other work on the machine. decode_queue: the same of all decoding threads, also between spans.
    """

    first: int
    last: int
    spans: list[tuple[float, float, float]] = field(default_factory=list)
    training_queue: float = 0.0
    decode_queue: float = 0.0
    _waiting: float = 0.0
    _queues: dict[int, tuple[float, float]] = field(default_factory=dict)
    _is_on: bool = False

    def around(
        self, recorder: Callable[[str], AbstractContextManager[Any]]
    ) -> Callable[[str], AbstractContextManager[Any]]:
        """The same recorder of ranges, with an account of those of decoding and waiting."""

        def accounted(name: str) -> AbstractContextManager[Any]:
            if name.removeprefix(PREFIX) not in ("decode", "wait"):
                return recorder(name)
            return self._account(name.removeprefix(PREFIX), recorder(name))

        return accounted

    @contextmanager
    def _account(self, name: str, inner: AbstractContextManager[Any]) -> Iterator[None]:
        began, (core, queue) = time.perf_counter(), account_of_this_thread()
        with inner:
            yield
        core_now, queue_now = account_of_this_thread()
        if not self._is_on:
            return
        if name == "wait":
            self._waiting += queue_now - queue
        else:
            self.spans.append((time.perf_counter() - began, core_now - core, queue_now - queue))
            number = threading.get_ident()
            self._queues[number] = self._queues.get(number, (queue, queue))[0], queue_now

    def on_step(self, steps_done: int) -> None:
        """To be called on the training thread with the number of steps done, before the first and after each."""
        if steps_done == self.first:
            self._before, self._is_on = account_of_this_thread()[1], True
        elif steps_done == self.last:
            queue = account_of_this_thread()[1] - self._before - self._waiting
            self.training_queue, self._is_on = queue / (self.last - self.first), False
            self.decode_queue = sum(end - start for start, end in self._queues.values()) / (self.last - self.first)


def account_of_this_thread() -> tuple[float, float]:
    """Seconds on a core, and ready without one, since the thread began."""
    try:
        core, queue, _ = Path("/proc/thread-self/schedstat").read_text().split()
    except OSError:  # not Linux, or without the account
        return 0.0, 0.0
    return int(core) * 1e-9, int(queue) * 1e-9


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

    with recorded_by(processor.around(clock)):
        pretrain(config, progress=False, on_step=on_step, listen=False)
    if clock.is_on or not clock.events:
        raise TraceError(f"{config.run.dir}: the run ended before step {last}")
    return analyse(Trace("stage clock", config.run.dir, ranges=clock.events)), processor
