"""One arm of `trocar bench loading` in a process of its own, which waits while the others run.

The process answers one order at a time. Whatever ends it, an exception of the library or a crash, the parent reports with the last
line it wrote to stderr.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .arms import Arm, Job, Request, UnavailableError

TRIAL_SHARE, LEAST_TRIAL_CLIPS = 0.25, 2  # of the clips: what the ways of an arm are tried on
TRIALS = 2
ANSWER_SECONDS = 1800.0
Answer = TypeVar("Answer")


class ArmError(Exception):
    """An arm that cannot run, or broke while it ran; the message says why."""


@dataclass(frozen=True)
class Ready:
    """library: as the arm names it. seconds_by_way: what the trial clips took, the best of TRIALS. way: the fastest."""

    library: str
    seconds_by_way: dict[str, float]
    way: str


@dataclass(frozen=True)
class Delivery:
    """What delivering all clips once took: seconds on the clock, seconds of all cores, and what the library tells of its work."""

    seconds: float
    cpu_seconds: float
    cost: dict[str, float]


class Worker:
    """The parent's side of an arm. `ready`, `frames` and `deliver` are to be called in this order; each raises ArmError."""

    def __init__(self, name: str, arm: type[Arm], job: Job, folder: Path) -> None:
        self.name = name
        self._log = folder / f"{name.replace(' ', '_')}.log"
        self._connection, theirs = Pipe()
        # Not multiprocessing's own processes: those begin by importing what their parent runs, here the command line with PyTorch.
        call = f"from {__name__} import serve; serve({theirs.fileno()})"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", call],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdout=log,
                stderr=log,
            )
        theirs.close()
        self._connection.send((arm, job))

    def ready(self) -> Ready:
        """Waits until the arm has found its fastest way."""
        return self._receive(Ready)

    def frames(self) -> NDArray[np.uint8]:
        """All clips, (clips, T, R, R, 3)."""
        self._send("frames")
        return self._receive(np.ndarray)

    def deliver(self) -> Delivery:
        """Delivers all clips once, timed."""
        self._send("deliver")
        return self._receive(Delivery)

    def close(self) -> None:
        """Ends the process. How it ends does not matter: some libraries crash while they unload."""
        self._connection.close()
        self._status()

    def _send(self, order: str) -> None:
        try:
            self._connection.send(order)
        except OSError as error:
            raise ArmError(self._epitaph()) from error

    def _receive(self, kind: type[Answer]) -> Answer:
        try:
            if not self._connection.poll(ANSWER_SECONDS):
                self._process.kill()
                raise ArmError(f"gave no answer for {ANSWER_SECONDS:.0f} seconds")
            answer = self._connection.recv()
        except (EOFError, OSError) as error:
            raise ArmError(self._epitaph()) from error
        if isinstance(answer, UnavailableError):
            raise ArmError(str(answer))
        assert isinstance(answer, kind)
        return answer

    def messages(self) -> list[str]:
        """What the process has written to stdout and stderr so far, lines that are not empty."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def _epitaph(self) -> str:
        status = self._status()
        last = (self.messages() or ["it wrote nothing"])[-1]
        return f"its process ended with status {status}: {last}"

    def _status(self) -> int:
        """Waits for the process to end, not for long; its exit status."""
        try:
            return self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def serve(descriptor: int) -> None:
    """The process of an arm: takes an arm's class and its job from the connection, then orders until it is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    connection = Connection(descriptor)
    arm_class, job = connection.recv()
    try:
        arm = arm_class(job)
    except UnavailableError as error:
        connection.send(error)
        return
    ready = _choose(arm, job.requests[: max(LEAST_TRIAL_CLIPS, round(TRIAL_SHARE * len(job.requests)))])
    arm.settle(ready.way)
    connection.send(ready)
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if order == "frames":
            connection.send(np.concatenate([_on_host(batch) for batch in arm.batches(ready.way, job.requests)]))
        else:
            connection.send(_deliver(arm, ready.way, job.requests))


def _choose(arm: Arm, requests: Sequence[Request]) -> Ready:
    """Tries every way on a few clips, untimed first: libraries warm up and scan files."""
    seconds: dict[str, list[float]] = {way: [] for way in arm.ways}
    for trial in range(TRIALS + 1 if len(arm.ways) > 1 else 1):
        for way in arm.ways:
            delivery = _deliver(arm, way, requests)
            if trial:
                seconds[way].append(delivery.seconds)
    best = {way: min(values) for way, values in seconds.items() if values}
    way = min(best, key=lambda name: best[name]) if best else arm.ways[0]
    return Ready(arm.library, best, way)


def _deliver(arm: Arm, way: str, requests: Sequence[Request]) -> Delivery:
    batches = arm.batches(way, requests)
    started, cpu_started = time.perf_counter(), time.process_time()
    count = sum(len(batch) for batch in batches)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    if count != len(requests):
        raise RuntimeError(f"{count} clips were delivered of {len(requests)}")
    return Delivery(seconds, cpu_seconds, dict(arm.cost))


def _on_host(batch: Any) -> NDArray[np.uint8]:
    return batch if isinstance(batch, np.ndarray) else batch.cpu().numpy()
