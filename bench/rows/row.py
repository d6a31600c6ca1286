"""One measurement is one JSON row: what was measured, on which machine, with which versions, and how far it scattered."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...engine.console.versions import installed_versions
from ...loaders.corpus.whole_file import write_whole

if TYPE_CHECKING:
    import torch

PACKAGES = ("torch", "triton", "timm", "numpy", "av", "torchcodec", "decord")
PACKAGES += ("nvidia-dali-cuda120", "nvidia-dali-cuda130", "trocar")


def versions() -> dict[str, str]:
    """The installed ones of the packages that decide a speed, and CUDA's."""
    import torch

    return {**installed_versions(PACKAGES), "python": platform.python_version(), "cuda": torch.version.cuda or "none"}


def machine(device: torch.device) -> dict[str, Any]:
    """Name, memory, multiprocessors and clocks of a GPU; the processor otherwise."""
    import torch

    if device.type != "cuda":
        return {"device": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    }


def commit() -> str:
    """The source's commit, with + where files differ from it; "unknown" outside a checkout."""
    return _first_line("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--abbrev=12")


def _first_line(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def row(benchmark: str, device: torch.device, measured: dict[str, Any]) -> dict[str, Any]:
    """A measurement with everything needed to judge it later. benchmark: its name, as in `trocar bench NAME`."""
    return {
        "benchmark": benchmark,
        **measured,
        "machine": machine(device),
        "versions": versions(),
        "commit": commit(),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """One row a line; replaces the file, as a whole even where the process is ended in the middle."""
    text = "".join(json.dumps(entry, allow_nan=False) + "\n" for entry in rows)
    write_whole(path, lambda target: target.write_text(text, encoding="utf-8"))


def keep_rows(path: Path, rows: list[dict[str, Any]], table: Callable[[list[dict[str, Any]]], str]) -> int:
    """How most benchmarks end: rows written, the table printed; the exit status."""
    write_rows(path, rows)
    print(table(rows))
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def all_rows(folder: Path) -> list[dict[str, Any]]:
    """Of every file below a folder, those of GPUs in folders of their own too."""
    return [entry for path in sorted(folder.rglob("*.jsonl")) for entry in read_rows(path)]


def select_rows(rows: Iterable[dict[str, Any]], benchmark: str, /, **wanted: Any) -> list[dict[str, Any]]:
    """Those of a benchmark that have these values."""
    return [
        entry
        for entry in rows
        if entry["benchmark"] == benchmark and all(entry.get(key) == value for key, value in wanted.items())
    ]
