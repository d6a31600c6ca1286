"""Does decoding take Python's interpreter from the training thread? Its stages beside decoding against the same stages alone.

Threads that decode hold the interpreter for some milliseconds a clip; the training thread gives it up at every operator and waits
to get it back. A profile shows stages that are slow, not that they would not be, so a run that is profiled goes on for a few steps:
some while decoding goes on, and a last one, when nothing is left to decode. Time in which the thread was ready and had no core is
left out: that is other work's.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from .stage_clock import account_of_this_thread
from .trace import PREFIX

BESIDE_STEPS = 3
MULTIPLE = 2.0
LEAST_SECONDS = 1e-3
# What waits for others anyway, and what only holds other stages.
NOT_LOOKED_AT = ("wait", "save", "step", "forward")


class ContentionClock:
    """Of a run of `steps` steps. last: how many of them are profiled or come before."""

    def __init__(self, last: int, steps: int) -> None:
        self._beside, self._alone = range(last, last + BESIDE_STEPS), steps - 1
        self._step, self._thread = -1, 0
        self._spans = 0
        self._seconds: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def on_step(self, steps_done: int) -> None:
        """To be called on the training thread with the number of steps done, before the first and after each."""
        self._step, self._thread = steps_done, threading.get_ident()

    def around(
        self, recorder: Callable[[str], AbstractContextManager[Any]]
    ) -> Callable[[str], AbstractContextManager[Any]]:
        """The same recorder of ranges; the training thread's are timed in the steps that count."""

        def clocked(name: str) -> AbstractContextManager[Any]:
            stage = name.removeprefix(PREFIX)
            if self._step not in self._beside and self._step != self._alone:
                return recorder(name)
            if stage == "decode":
                self._spans += self._step != self._alone
            elif stage not in NOT_LOOKED_AT and threading.get_ident() == self._thread:
                return self._clock(self._step, stage, recorder(name))
            return recorder(name)

        return clocked

    @contextmanager
    def _clock(self, step: int, stage: str, inner: AbstractContextManager[Any]) -> Iterator[None]:
        began, queued = time.perf_counter(), account_of_this_thread()[1]
        try:
            with inner:
                yield
        finally:
            waited = account_of_this_thread()[1] - queued
            self._seconds[step][stage] += time.perf_counter() - began - waited

    def found(self) -> dict[str, tuple[float, float]]:
        """Stages that take a multiple of their time alone: seconds a step beside decoding (the least of the steps) and alone, the
        largest difference first."""
        alone, beside = self._seconds[self._alone], [self._seconds[step] for step in self._beside]
        least = {stage: min(step.get(stage, 0.0) for step in beside) for stage in alone}
        slowed = {
            stage: (seconds, alone[stage])
            for stage, seconds in least.items()
            if self._spans and seconds > MULTIPLE * alone[stage] and seconds - alone[stage] > LEAST_SECONDS
        }
        return dict(sorted(slowed.items(), key=lambda item: item[1][1] - item[1][0]))

    def write(self, path: Path) -> None:
        """For a process that is not the one that trained; `read` reads it."""
        path.write_text(json.dumps(self.found()), encoding="utf-8")


def read(path: Path) -> dict[str, tuple[float, float]]:
    """What `ContentionClock.write` wrote; the file is removed. Nothing where there is none."""
    if not path.exists():
        return {}
    found = {stage: (beside, alone) for stage, (beside, alone) in json.loads(path.read_text(encoding="utf-8")).items()}
    path.unlink()
    return found


def told(found: dict[str, tuple[float, float]]) -> list[str]:
    """In words, one note or none."""
    if not found:
        return []
    stage, (beside, alone) = next(iter(found.items()))
    others = f", and so {', '.join(list(found)[1:])}" if len(found) > 1 else ""
    return [
        f"the interpreter is contended: {stage} takes {1000 * beside:.1f} ms of the host beside decoding threads, "
        f"{1000 * alone:.1f} ms without them ({beside / alone:.1f} times){others}; decode in processes (data.workers)"
    ]
