"""A watch over the ranks: one that dies, stops or falls behind ends the run within a set time, and is named.

A collective whose partner is gone either fails with a broken connection or waits for good; neither says for whom. So every rank
has a thread that writes a sign of life and how far its rank is into the store of the process group. The first rank reads all of
them and publishes the verdict; the others read the verdict and watch the first rank. The cost is a few requests a second on each
rank.

A rank that fails by itself (a VideoError, say) publishes its own error, so that the others end with that instead of a timeout.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from ...loaders.video.error import TrocarError
from .distributed import World

EXIT_STATUS = 1
BEATS_PER_TIMEOUT = 10
VERDICT, ENDED = "verdict", "its end"


class RankError(TrocarError):
    """A rank is gone, stands still or failed; the message names it."""


class RankWatch:
    """Watches from `with` to its end. heartbeat_timeout, rank_timeout: as in RunConfig, seconds.

    The training says `reach(stage)` before everything that takes time. Once there is a verdict the process ends: with RankError
    where the training's own thread gets to it, else by the watch, as the training may wait in a collective for good.
    """

    def __init__(self, world: World, heartbeat_timeout: float, rank_timeout: float) -> None:
        self.world, self.heartbeat_timeout, self.rank_timeout = world, heartbeat_timeout, rank_timeout
        self.interval = min(1.0, heartbeat_timeout / BEATS_PER_TIMEOUT)
        self._progress, self._stage = 0, "start"
        self._verdict = ""
        self._closing, self._has_verdict, self._is_raised = threading.Event(), threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def reach(self, stage: str) -> None:
        """The training starts something: what, for messages; the count, to be compared with other ranks'."""
        self._progress, self._stage = self._progress + 1, stage

    def __enter__(self) -> RankWatch:
        if self.world.size > 1:
            self._store = self._connect()
            self._beat(0)
            self._store.wait([f"beat/{rank}" for rank in range(self.world.size)], timedelta(seconds=self.rank_timeout))
        run = self._run if self.world.size > 1 else self._run_alone
        self._thread = threading.Thread(target=run, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if self._thread is None:
            return
        if self.world.size == 1:
            self._closing.set()
            self._thread.join()
            return
        try:
            if error is not None:
                self._explain(error)
        finally:
            self._is_raised.set()
            if self._verdict:
                time.sleep(2 * self.interval)  # until the others have read it: the store may live in this process
            self.reach(ENDED)
            self._closing.set()
            self._thread.join()
        if error is None:
            dist.barrier()  # the store may live in this process, and the others' watches need it to their end

    def _explain(self, error: BaseException) -> None:
        """Raises RankError from `error` where another rank is the cause; else publishes it."""
        # A broken or timed-out collective follows from what another rank did; the watch needs a moment to find out who.
        if isinstance(error, RuntimeError):
            self._has_verdict.wait(self.heartbeat_timeout + 5 * self.interval)
        if self._verdict:
            raise RankError(self._verdict) from error
        self._publish(f"rank {self.world.rank} ended with {type(error).__name__}: {error}")

    def _run(self) -> None:
        beats = 0
        seen: dict[int, tuple[str, float]] = {}
        moved: dict[int, tuple[int, float]] = {}
        while True:
            is_last = self._closing.wait(self.interval)
            beats += 1
            try:
                self._beat(beats)
                if is_last:
                    return
                if self._store.check([VERDICT]):
                    self._verdict = self._verdict or self._store.get(VERDICT).decode()
                elif problem := self._look(seen, moved):
                    self._publish(problem)
            except RuntimeError as error:
                if is_last:
                    return
                self._verdict = f"rank 0, or the launcher that holds its store, is gone: {error}"
            if self._verdict:
                self._has_verdict.set()
                self._end()
                return

    def _run_alone(self) -> None:
        """One process has only itself to watch: a loader's thread that hangs, say. Time in which it is stopped does not count."""
        progress, beats = -1, 0
        while not self._closing.wait(self.interval):
            progress, beats = self._progress, beats + 1 if progress == self._progress else 0
            if beats * self.interval > self.rank_timeout:
                self._verdict = (
                    f"nothing came on for {self.rank_timeout:g} s (run.rank_timeout): in {self._stage}; raise it where a part "
                    "of a step takes longer, or let parts be smaller (optim.batch, optim.accumulation)"
                )
                self._end()

    def _look(self, seen: dict[int, tuple[str, float]], moved: dict[int, tuple[int, float]]) -> str:
        """What is wrong, or nothing. seen, moved: each rank's latest sign of life and count, and since when they are these."""
        now = time.monotonic()
        ranks = range(self.world.size) if self.world.is_first else [0]
        stages = {}
        for rank, text in zip(ranks, self._store.multi_get([f"beat/{rank}" for rank in ranks]), strict=True):
            beat, count, stage = text.decode().split(" ", 2)
            stages[rank] = stage
            if seen.get(rank, ("", 0.0))[0] != beat:
                seen[rank] = (beat, now)
            if moved.get(rank, (-1, 0.0))[0] != int(count):
                moved[rank] = (int(count), now)
        if gone := [rank for rank in ranks if stages[rank] != ENDED and now - seen[rank][1] > self.heartbeat_timeout]:
            return (
                f"{_named(gone)} gave no sign of life for {self.heartbeat_timeout:g} s (run.heartbeat_timeout): killed, "
                f"stopped, or its machine is gone; the last it did was {stages[gone[0]]}"
            )
        least = min(count for count, _ in moved.values())
        late = [rank for rank in ranks if moved[rank][0] == least and now - moved[rank][1] > self.rank_timeout]
        if not late or not self.world.is_first:
            return ""
        others = sorted({stages[rank] for rank in ranks if rank not in late})
        waiting = f"while the others wait in {', '.join(others)}" if others else "and so do all others"
        return (
            f"{_named(late)} did not come on for {self.rank_timeout:g} s (run.rank_timeout, also the timeout of NCCL and gloo): "
            f"in {stages[late[0]]}, {waiting}"
        )

    def _beat(self, number: int) -> None:
        self._store.set(f"beat/{self.world.rank}", f"{number} {self._progress} {self._stage}")

    def _publish(self, problem: str) -> None:
        """Makes `problem` everybody's verdict, unless there is one already."""
        try:
            self._verdict = self._store.compare_set(VERDICT, "", problem).decode() or problem
        except RuntimeError:  # the store went with the rank that held it
            self._verdict = problem

    def _end(self) -> None:
        """Ends this process, unless the training's thread does so first."""
        if not self._is_raised.wait(3 * self.interval) and not self._closing.is_set():
            print(f"trocar: {self._verdict}", file=sys.stderr, flush=True)
            os._exit(EXIT_STATUS)

    def _connect(self) -> Store:
        """A connection of its own: one that is shared would let the watch wait behind the training."""
        timeout = timedelta(seconds=self.heartbeat_timeout)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(host, port, is_master=False, timeout=timeout, wait_for_workers=False)
        # A launcher that starts the ranks again keeps its store, and with it the verdict on those before.
        return PrefixStore(f"watch/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _named(ranks: list[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
