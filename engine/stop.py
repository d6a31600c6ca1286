"""Asked to stop: by SIGTERM, before a cluster takes a machine away, or SIGUSR1, which Slurm sends before a time limit.

The signal only leaves a mark. The mark travels with the step's sums to all ranks, so that all of them stop after the same step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# EX_TEMPFAIL of sysexits.h: not finished, start the same command again.
REQUEUE_STATUS = 75


class StopRequest:
    """While open, `is_asked` says whether a signal has come. Outside the main thread signals stay as they are."""

    def __init__(self) -> None:
        self.is_asked = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._mark) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _mark(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
