"""What a run writes down: metrics.jsonl, one JSON object per step, the same numbers for TensorBoard, and the clips that failed."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

from ..loaders.batch import Failure

FILE_NAME = "metrics.jsonl"
QUARANTINE_FILE = "quarantine.csv"


class MetricsLog:
    """Appends rows to RUN/metrics.jsonl and RUN/tensorboard.

    Rows of steps after `last_step`, written by a run that died before its next checkpoint, are cut off first.
    """

    def __init__(self, run_dir: Path, last_step: int, tensorboard: bool) -> None:
        self.path = run_dir / FILE_NAME
        _cut(self.path, last_step)
        self._file = self.path.open("a", buffering=1, encoding="utf-8")
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard.writer import SummaryWriter  # slow to import: only when asked for

            self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=last_step + 1)

    def write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        if self._writer is not None:
            for name, value in row.items():
                if name != "step":
                    self._writer.add_scalar(name, value, row["step"])

    def flush(self) -> None:
        """After this, the rows survive the process and the machine."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._writer is not None:
            self._writer.flush()

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run; an incomplete last line, left by a crash, does not count."""
    path = run_dir / FILE_NAME
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def _cut(path: Path, last_step: int) -> None:
    if not path.exists():
        return
    rows = [row for row in read_metrics(path.parent) if row["step"] <= last_step]
    shortened = path.with_suffix(".tmp")
    shortened.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shortened.replace(path)


class QuarantineLog:
    """Appends the clips that failed to RUN/quarantine.csv: at every update, and on the way out, whatever the reason.

    failures: the list that the loader keeps appending to.
    """

    def __init__(self, run_dir: Path, failures: list[Failure]) -> None:
        self.path, self.failures, self._written = run_dir / QUARANTINE_FILE, failures, 0

    def __enter__(self) -> QuarantineLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.update()

    def update(self) -> None:
        fresh = self.failures[self._written :]
        if not fresh:
            return
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if is_new:
                writer.writerow(["draw", "spare", "path", "reason"])
            writer.writerows([failure.draw, failure.spare, failure.path, failure.reason] for failure in fresh)
        self._written += len(fresh)
