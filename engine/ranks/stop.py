"""Asked to stop: by Ctrl-C, by SIGTERM, before a cluster takes a machine away, or SIGUSR1, which Slurm sends before a time limit.

The signal leaves a mark and says that it was heard. The mark travels with the step's sums to all ranks, so that all of them stop
after the same step; where a step has several parts, a vote beside them lets all ranks stop between the same two.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# EX_TEMPFAIL of sysexits.h: not finished, start the same command again.
REQUEUE_STATUS = 75
INTERRUPTED_STATUS = 130  # as shells have it for Ctrl-C, so that a loop that requeues ends too
# torchrun hands on a Ctrl-C that its ranks got from the terminal already.
SAME_INTERRUPT_SECONDS = 1.0


class StoppedBetweenPartsError(Exception):
    """All ranks leave the step that is under way between the same two of its parts."""


class StopRequest:
    """While open, `is_asked` says whether a signal has come; a second Ctrl-C raises KeyboardInterrupt. Outside the main thread, and
    without `listen`, signals stay as they are."""

    def __init__(self, listen: bool = True) -> None:
        self.listen = listen
        self.is_asked = self.is_interrupted = False
        self._interrupted_at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if self.listen and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._mark) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _mark(self, number: int, frame: FrameType | None) -> None:
        is_interrupt, now = number == signal.SIGINT, time.monotonic()
        if is_interrupt and self.is_interrupted:
            if now - self._interrupted_at > SAME_INTERRUPT_SECONDS:
                raise KeyboardInterrupt
            return
        if is_interrupt:
            self.is_interrupted, self._interrupted_at = True, now
        name = "Ctrl-C" if is_interrupt else signal.Signals(number).name
        rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
        again = "; Ctrl-C again stops at once, without saving" if is_interrupt else ""
        self.is_asked = True
        # Not print: the signal may have come in the middle of one.
        os.write(
            sys.__stderr__.fileno() if sys.__stderr__ else 2,
            f"trocar: {rank}{name} heard: saving, then stopping{again}\n".encode(),
        )


class StopVote:
    """Whether any rank was asked to stop, told to all ranks alike between the parts of a step, at the next part at the latest.

    Nothing waits: the answer to what is asked before one part is looked at before the next.
    """

    def __init__(self, request: StopRequest, ranks: int, parts: int) -> None:
        self.request, self.ranks = request, ranks
        self._group: Any = dist.new_group(backend="gloo") if ranks > 1 and parts > 1 else None
        self._asked = torch.zeros(())
        self._answer: dist.Work | None = None

    def check(self) -> None:
        """Before every part. Raises StoppedBetweenPartsError on all ranks before the same part, or on none."""
        if self.ranks == 1:
            if self.request.is_asked:
                raise StoppedBetweenPartsError
            return
        if self._group is None:
            return
        if self._answer is not None:
            self._answer.wait()
            if self._asked > 0:
                raise StoppedBetweenPartsError
        self._asked = torch.tensor(float(self.request.is_asked))
        self._answer = dist.all_reduce(self._asked, dist.ReduceOp.MAX, self._group, async_op=True)
