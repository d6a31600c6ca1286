"""A progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .device_time import held_up_by

SECONDS_BETWEEN_LINES = 10.0


class StepProgress:
    """Shows loss, speed, amplification, data wait and what holds a run up while it goes from `first` to `total` steps. Writes to
    stderr."""

    def __init__(self, first: int, total: int, enabled: bool = True) -> None:
        self.first, self.total, self.enabled = first, total, enabled
        self._bar: Progress | None = None
        self._last_line = float("-inf")
        if enabled and sys.stderr.isatty():
            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=total, completed=first)

    def __enter__(self) -> StepProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, row: dict[str, Any]) -> None:
        text = (
            f"loss {row['loss']:.4f}  {row['clips_per_second']:.1f} clips/s  "
            f"amplification {row['amplification']:.1f}  data wait {row['data_wait_percent']:.0f} %  "
            f"held up by: {held_up_by(row)}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif self.enabled and (step == self.total or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES):
            print(f"step {step}/{self.total}  {text}", file=sys.stderr, flush=True)
            self._last_line = time.monotonic()
