"""What a run writes down: metrics.jsonl, one JSON object per step, the same numbers for its trackers, and the clips that failed."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...loaders.corpus.whole_file import write_text_whole, write_whole
from ...loaders.decode.batch import Failure
from ..inputs.folders import METRICS_FILE
from .trackers import Tracker, open_trackers

QUARANTINE_FILE = "quarantine.csv"
PICTURES = "pictures"  # of a run, every run.pictures_every steps
NAMED_VIDEOS = 10  # on the console


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl, and tells them to RUN/tensorboard, Weights & Biases and MLflow where that is wanted.

    Rows of steps after `last_step`, written by a run that died before its next checkpoint, are cut off first. every: how many
    rows are written at once. write: False on all ranks but one. While the disk is full, rows wait in memory.
    """

    def __init__(
        self,
        run_dir: Path,
        last_step: int,
        tensorboard: bool,
        *,
        every: int = 1,
        write: bool = True,
        wandb: str | None = None,
        mlflow: str | None = None,
    ) -> None:
        self.path, self.every = run_dir / METRICS_FILE, every
        self._file: io.FileIO | None = None
        self._trackers: list[Tracker] = []
        self._waiting: deque[tuple[int, str, NDArray[np.uint8]]] = deque()  # pictures
        self._unwritten: list[bytes] = []
        self._lock = threading.Lock()
        if not write:
            return
        self._trackers = open_trackers(run_dir, last_step, tensorboard=tensorboard, wandb=wandb, mlflow=mlflow)
        _cut(self.path, last_step)
        self._file = self.path.open("ab", buffering=0)

    def write(self, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        with self._lock:
            self._unwritten.append(json.dumps(row).encode() + b"\n")
            try:
                if len(self._unwritten) >= self.every:
                    self._append()
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        values = {name: value for name, value in row.items() if name != "step"}
        for tracker in self._trackers:
            tracker.numbers(row["step"], values)
        while self._waiting and self._waiting[0][0] <= row["step"]:
            waiting = self._waiting.popleft()
            for tracker in self._trackers:
                tracker.picture(*waiting)

    def picture(self, step: int, name: str, picture: NDArray[np.uint8]) -> None:
        """picture: (H, W, 3). Written to RUN/pictures, and told to the trackers behind the step's numbers: these arrive later from
        a GPU, and Weights & Biases takes no step after a later one."""
        if self._file is None:
            return
        from PIL import Image

        image = Image.fromarray(picture)
        path = self.path.parent / PICTURES / f"{name}_{step:08d}.png"
        write_whole(path, lambda unfinished: image.save(unfinished, "png"))
        if self._trackers:
            self._waiting.append((step, name, picture))

    def flush(self) -> None:
        """After this, the rows survive the process and the machine. Raises OSError where they do not, e.g. on a full disk."""
        if self._file is None:
            return
        with self._lock:
            self._append()
            os.fsync(self._file.fileno())
        for tracker in self._trackers:
            tracker.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with self._lock:
                self._append()
            self._file.close()
        for tracker in self._trackers:
            tracker.close()

    def _append(self) -> None:
        """Writes whole rows or none: what a full disk cut in two is taken back."""
        if not self._unwritten or self._file is None:
            return
        rows, size = b"".join(self._unwritten), os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(rows) != len(rows):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        except OSError:
            self._file.truncate(size)
            raise
        self._unwritten.clear()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run; an incomplete last line, left by a crash, does not count."""
    path = run_dir / METRICS_FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _cut(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    rows = [row for row in read_metrics(path.parent) if row["step"] <= last_step]
    write_text_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


class QuarantineLog:
    """Appends the clips that failed to RUN/quarantine.csv: at every update, and on the way out, whatever the reason.

    failures: the list that the loader keeps appending to. rank: further ranks have a file of their own, quarantine_1.csv and so on.
    tell: name each video on stderr when it fails first, and how many clips failed on the way out.
    """

    def __init__(self, run_dir: Path, failures: list[Failure], rank: int = 0, *, tell: bool = False) -> None:
        name = QUARANTINE_FILE if rank == 0 else f"{Path(QUARANTINE_FILE).stem}_{rank}.csv"
        self.path, self.failures, self._written, self._tell = run_dir / name, failures, 0, tell
        self._told: set[str] = set()

    def __enter__(self) -> QuarantineLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.update()
        if self._tell and self.failures:
            videos = len({failure.path for failure in self.failures})
            print(
                f"{len(self.failures):,} clips of {videos:,} videos could not be read; {self.path} lists them",
                file=sys.stderr,
            )

    def update(self) -> None:
        fresh = self.failures[self._written :]
        if not fresh:
            return
        if self._tell:
            self._name(fresh)
        is_new = not self.path.exists()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["draw", "spare", "path", "reason"])
            writer.writerows([failure.draw, failure.spare, failure.path, failure.reason] for failure in fresh)
        self._written += len(fresh)

    def _name(self, failures: list[Failure]) -> None:
        for failure in failures:
            if failure.path in self._told or len(self._told) > NAMED_VIDEOS:
                continue
            self._told.add(failure.path)
            if len(self._told) > NAMED_VIDEOS:
                print(f"trocar: further videos that cannot be read stand in {self.path} alone", file=sys.stderr)
            else:
                print(f"trocar: another clip replaces draw {failure.draw:,}: {failure.reason}", file=sys.stderr)
