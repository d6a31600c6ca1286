"""RUN/run.json: what made a run, one entry per start: versions, git state, config, machine."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...loaders.corpus.whole_file import write_text_whole
from ..config.settings import Config
from ..console.versions import installed_versions

if TYPE_CHECKING:
    from ..ranks.distributed import World

FILE_NAME = "run.json"
PACKAGES = (
    "trocar",
    "torch",
    "torchvision",
    "timm",
    "triton",
    "numpy",
    "av",
    "pyarrow",
    "nvidia-dali-cuda120",
    "nvidia-dali-cuda130",
)
ENVIRONMENT = ("NCCL_", "TORCH_", "OMP_", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TROCAR_")


def read_starts(run_dir: Path) -> list[dict[str, Any]]:
    """The starts of a run, oldest first; none where there is no record."""
    path = run_dir / FILE_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def record_start(
    config: Config, world: World, first_step: int, changes: Mapping[str, tuple[Any, Any]] | None = None
) -> None:
    """Appends this start to the run's record; on the first rank only. changes: settings by name, as they were and as they are."""
    if not world.is_first:
        return
    path = Path(config.run.dir) / FILE_NAME
    starts = read_starts(path.parent)
    starts.append(
        {
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "first_step": first_step,
            "ranks": world.size,
            "command": sys.argv,
            "folder": os.getcwd(),  # where the config's relative paths begin
            "versions": {"python": platform.python_version(), **installed_versions(PACKAGES)},
            "git": _git_state(),
            "machine": _machine(world),
            "environment": {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT)},
            "config": config.to_yaml(),
            "changes": dict(changes or {}),
        }
    )
    write_text_whole(path, json.dumps(starts, indent=1))


def last_folder(run_dir: Path) -> str:
    """The folder in which a run was started last, where relative paths of its config begin; "" where nobody wrote that down."""
    starts = read_starts(run_dir)
    return starts[-1].get("folder", "") if starts else ""


def _machine(world: World) -> dict[str, Any]:
    machine: dict[str, Any] = {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "cores": len(os.sched_getaffinity(0)),
        "device": str(world.device),
    }
    if world.device.type == "cuda":
        import torch  # slow to import: who reads records does without

        properties = torch.cuda.get_device_properties(world.device)
        machine |= {"gpu": properties.name, "gpu_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return machine


def _git_state() -> dict[str, Any] | None:
    """Commit of the source and whether it was changed since; None where the source is no repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        shown = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
        return shown.stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):  # the repository that surrounds it is another one
            return None
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
