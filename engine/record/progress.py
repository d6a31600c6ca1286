"""A progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from ...loaders.corpus.progress import ShownProgress
from .device_time import held_up_by


class StepProgress(ShownProgress):
    """Shows loss, speed, amplification, data wait, what holds a run up, memory and the time left while it goes from `first` to
    `total` steps. Writes to stderr. memory: bytes in use now, this
    process's on the host where None."""

    def __init__(self, first: int, total: int, enabled: bool = True, memory: Callable[[], int] | None = None) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        super().__init__(total, enabled, "", *columns, done=first)
        self._last_line = float("-inf")  # the first line comes at once
        self._memory = memory or resident_bytes
        self._began: tuple[int, float] | None = None  # the first step that was seen, and when

    def update(self, row: dict[str, Any]) -> None:
        step, now = row["step"], time.monotonic()
        self._began = self._began or (step, now)
        text = (
            f"loss {row['loss']:.4f}  {row['clips_per_second']:.1f} clips/s  "
            f"amplification {row['amplification']:.1f}  data wait {row['data_wait_percent']:.0f} %  "
            f"held up by: {held_up_by(row)}  memory {self._memory() / 1e9:.1f} GB"
        )
        line = f"step {step}/{self.total}  {text}{self._left(step, now)}"
        self.show(step, text, line, now=step == self.total)

    def _left(self, step: int, now: float) -> str:
        """At the speed since the first step that was seen, which itself may have compiled and allocated."""
        begun, since = self._began or (step, now)
        if step == begun or step == self.total:
            return ""
        return f"  left {duration((now - since) / (step - begun) * (self.total - step))}"


def duration(seconds: float) -> str:
    """As "3:07:05", or "2 days 3:07:05"."""
    minutes, rest = divmod(round(seconds), 60)
    days, hours = divmod(minutes // 60, 24)
    clock = f"{hours}:{minutes % 60:02}:{rest:02}"
    return f"{days} day{'s' * (days > 1)} {clock}" if days else clock


def resident_bytes() -> int:
    """Of this process, in the host's memory."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
