"""A progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ...loaders.corpus.progress import ShownProgress
from .device_time import held_up_by


class StepProgress(ShownProgress):
    """Shows loss, speed, amplification, data wait and what holds a run up while it goes from `first` to `total` steps. Writes to
    stderr."""

    def __init__(self, first: int, total: int, enabled: bool = True) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        super().__init__(total, enabled, "", *columns, done=first)
        self._last_line = float("-inf")  # the first line comes at once

    def update(self, step: int, row: dict[str, Any]) -> None:
        text = (
            f"loss {row['loss']:.4f}  {row['clips_per_second']:.1f} clips/s  "
            f"amplification {row['amplification']:.1f}  data wait {row['data_wait_percent']:.0f} %  "
            f"held up by: {held_up_by(row)}"
        )
        self.show(step, text, f"step {step}/{self.total}  {text}", now=step == self.total)
