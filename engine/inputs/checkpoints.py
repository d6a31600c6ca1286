"""Which checkpoints a run has, apart from reading them, which needs PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ...loaders.video.error import TrocarError

PREFIX = "step_"
UNFINISHED = "unfinished_"
MANIFEST = "manifest.json"


class CheckpointError(TrocarError):
    """A checkpoint that cannot be written or read; the message names the path and the fix."""


def checkpoints(run_dir: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob(f"{PREFIX}*"))


def newest_checkpoint(run_dir: Path) -> Path:
    """Raises CheckpointError where the run has none."""
    saved = checkpoints(run_dir)
    if not saved:
        raise CheckpointError(f"{run_dir}: no checkpoint yet; run `trocar pretrain` with run.dir={run_dir} first")
    return saved[-1]


def newest_step(run_dir: Path) -> int:
    """The step of the newest finished checkpoint; 0 where there is none."""
    return max((int(path.name[len(PREFIX) :]) for path in checkpoints(run_dir)), default=0)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"{PREFIX}{step:08d}"


def checkpoint_state(path: Path) -> dict[str, Any] | None:
    """The state of the run in a checkpoint, JSON values; None where it cannot be read, of which whoever restores it says why."""
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))["state"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
