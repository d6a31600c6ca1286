"""How fast, and in how much memory, a tree is made: made rows in shards on disk, clustered in a process of its own.

Rows lie around centres that are drawn with falling probability (Zipf), as corpora do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..loaders.cluster import ClusterSettings, cluster_embeddings
from ..loaders.embeddings import Manifest, write_shard, write_spans
from .report import row

CENTRES = 3000
ROWS_PER_SHARD = 100_000
SPAN_FRAMES = 61


def make_rows(start: int, stop: int, centres: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rows start .. stop - 1 of an endless list around `centres` (C, D)."""
    generator = np.random.default_rng([5, start])
    chances = 1 / np.arange(1, len(centres) + 1)
    which = generator.choice(len(centres), stop - start, p=chances / chances.sum())
    noise = generator.standard_normal((stop - start, centres.shape[1]), dtype=np.float32)
    return (centres[which] + 0.5 * noise).astype(np.float16)


def make_embeddings(folder: Path, rows: int, width: int) -> Path:
    """Writes `rows` rows as `trocar embed` would."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(rows, width, ROWS_PER_SHARD, "made", "made", "0", 16, 4, None, 224)
    centres = np.random.default_rng(5).standard_normal((CENTRES, width), dtype=np.float32)
    for shard in range(manifest.num_shards):
        start = shard * ROWS_PER_SHARD
        write_shard(folder, shard, make_rows(start, start + manifest.shard_rows(shard), centres))
    number = np.arange(rows)
    video, first = (number // 1000).astype(np.int32), number % 1000 * SPAN_FRAMES
    ids = [f"{index:016x}" for index in range(int(video[-1]) + 1)]
    write_spans(folder, ids, video, first, np.full(rows, SPAN_FRAMES, dtype=np.int32))
    manifest.write(folder)
    return folder


def bench_clustering(
    rows: int, width: int, levels: Sequence[int], *, device: str = "cpu", threads: int | None = None, **settings: Any
) -> dict[str, Any]:
    """One measurement: seconds of each step, their sum, bytes resident at the peak, over `rows` x `width` fp16 rows.

    settings: of `ClusterSettings`; by default what a large corpus takes: one fit of a sample and three passes that refine it.
    """
    options = {"resampling": 0, "restarts": 1, "iterations": 20, "sample_per_cluster": 64, **settings}
    with tempfile.TemporaryDirectory(prefix="trocar_clustering_") as folder:
        embeddings = make_embeddings(Path(folder) / "embeddings", rows, width)
        task = {"embeddings": str(embeddings), "out": f"{folder}/tree", "levels": list(levels), "device": device}
        command = [sys.executable, "-m", __name__, json.dumps({**task, "threads": threads, "settings": options})]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise RuntimeError(f"clustering {rows:,} rows failed:\n{finished.stderr}")
        measured = json.loads(finished.stdout.splitlines()[-1])
    return row("clustering", torch.device(device), {"rows": rows, "width": width, "levels": list(levels), **measured})


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| rows | levels | seconds | microseconds a row | passes | seconds of the steps | peak resident |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in rows:
        steps = ", ".join(f"{name} {value:g}" for name, value in entry["steps"].items())
        lines.append(
            f"| {entry['rows']:,} x {entry['width']} | {' / '.join(map(str, entry['levels']))} | {entry['seconds']:,.0f} | "
            f"{entry['microseconds_per_row']:,.0f} | {entry['passes']} | {steps} | {entry['peak_resident_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    settings = ClusterSettings(levels=tuple(task["levels"]), **task["settings"])
    begun = time.perf_counter()
    summary = cluster_embeddings(task["embeddings"], task["out"], settings, device=task["device"], progress=False)
    seconds = time.perf_counter() - begun
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return {
        "seconds": round(seconds, 1),
        "microseconds_per_row": round(1e6 * seconds / summary.spans, 2),
        "steps": {name: round(value, 1) for name, value in summary.seconds.items()},
        "passes": summary.passes,
        "inertia": summary.inertia,
        "backend": summary.backend,
        "peak_resident_bytes": int(peak.split()[1]) * 1024,
    }


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
