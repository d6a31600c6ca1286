"""How far many files are: a bar on a terminal, a line every few seconds elsewhere, nothing if not wanted; on stderr."""

from __future__ import annotations

import sys
import time
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, ProgressColumn

SECONDS_BETWEEN_LINES = 10.0
Shown = TypeVar("Shown", bound="ShownProgress")


class ShownProgress:
    """From `done` to `total`. task: what is said at the bar before anything else. columns: of the bar, rich's where there are
    none."""

    def __init__(self, total: int, wanted: bool, task: str, *columns: ProgressColumn, done: int = 0) -> None:
        self.total, self._wanted = total, wanted
        is_terminal = wanted and sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True)) if is_terminal else None
        self._task = self._bar.add_task(task, total=total, completed=done) if self._bar else None
        self._last_line = time.monotonic()

    def __enter__(self: Shown) -> Shown:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, text: str, line: str, *, now: bool = False) -> None:
        """text: at the bar. line: elsewhere, where the last one is long ago, or `now`."""
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=done, description=text)
        elif self._wanted and (now or time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES):
            self._last_line = time.monotonic()
            print(line, file=sys.stderr, flush=True)


class FileProgress(ShownProgress):
    """total: how many files there are. task: what is done to them, for the bar. things: what they are called, if not files."""

    def __init__(self, total: int, wanted: bool, task: str, things: str = "files") -> None:
        super().__init__(total, wanted, task)
        self._done, self._things = 0, things

    def advance(self, text: str, count: int = 1) -> None:
        """`count` files more are done; `text` says what became of them so far."""
        self._done += count
        self.show(self._done, text, f"{self._done:,} of {self.total:,} {self._things}: {text}")
