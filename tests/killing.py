"""Processes that are killed at their work, not on the way to it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

PATIENCE_SECONDS = 120.0


def started(command: Sequence[str], folder: Path) -> subprocess.Popen[bytes]:
    """The running command as soon as `folder`, which it makes first, is there: its imports, most of its time, are done."""
    process = subprocess.Popen(command)
    until = time.monotonic() + PATIENCE_SECONDS
    while not folder.exists():
        assert process.poll() is None, f"it ended with status {process.returncode} before it made {folder}"
        assert time.monotonic() < until, f"{folder} is not there after {PATIENCE_SECONDS:.0f} seconds"
        time.sleep(0.002)
    return process
