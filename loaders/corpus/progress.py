"""How far many files are: a bar on a terminal, a line every few seconds elsewhere, nothing if not wanted; on stderr."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


class FileProgress:
    """total: how many files there are. task: what is done to them, for the bar. things: what they are called, if not files."""

    def __init__(self, total: int, wanted: bool, task: str, things: str = "files") -> None:
        self._total, self._wanted, self._done, self._things = total, wanted, 0, things
        self._bar: Progress | None = Progress(console=Console(stderr=True)) if wanted and sys.stderr.isatty() else None
        self._task = self._bar.add_task(task, total=total) if self._bar else None
        self._last_line = time.monotonic()

    def __enter__(self) -> FileProgress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, text: str, count: int = 1) -> None:
        """`count` files more are done; `text` says what became of them so far."""
        self._done += count
        if self._bar and self._task is not None:
            self._bar.update(self._task, completed=self._done, description=text)
        elif self._wanted and time.monotonic() - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(f"{self._done:,} of {self._total:,} {self._things}: {text}", file=sys.stderr)
