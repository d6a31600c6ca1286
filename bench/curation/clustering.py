"""How fast, and in how much memory, a tree is made: made rows in shards on disk, clustered in a process of its own.

Rows lie around centres that are drawn with falling probability (Zipf), as corpora do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels.kmeans_assign import kmeans_assign
from ...loaders.curate.cluster import cluster_embeddings
from ...loaders.curate.embeddings import Manifest, write_shard, write_spans
from ...loaders.curate.kmeans import CumlKMeans
from ...loaders.curate.settings import ClusterSettings
from ..rows.cells import table_of
from ..rows.row import row

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
    """One measurement: seconds of each step, their sum, bytes resident at the peak and of the libraries
    alone, over `rows` x `width` fp16 rows.

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


def bench_level(device: torch.device, *, rows: int, width: int, clusters: int, rounds: int = 5) -> dict[str, Any]:
    """One iteration of k-means on a GPU: `kmeans_assign` in fp16 against blocked PyTorch and, where it is installed, cuML in
    float32.

    The same rows and centroids for all; inertia of each beside its seconds, the least of `rounds`.
    """
    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn(rows, width, generator=generator, device=device, dtype=torch.float16)
    centroids = values[torch.randperm(rows, generator=generator, device=device)[:clusters]].clone()
    single_rows = min(rows, 2_000_000)  # cuML takes float32: a part of the rows, scaled up
    arms: dict[str, Callable[[], float]] = {
        "kernel": lambda: _kernel_iteration(values, centroids),
        "blocked_torch": lambda: _torch_iteration(values, centroids),
    }
    if find_spec("cuml") is not None and find_spec("cupy") is not None:
        single = values[:single_rows].float().cpu().numpy()
        start = centroids.float().cpu().numpy()
        arms["cuml"] = lambda: CumlKMeans().fit(single, start, 1).inertia * rows / single_rows
    measured: dict[str, Any] = {"rows": rows, "width": width, "clusters": clusters}
    for name, run in arms.items():
        times = []
        for _ in range(rounds):
            torch.cuda.synchronize(device)
            begun = time.perf_counter()
            measured[f"{name}_inertia"] = run()
            torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begun)
        share = single_rows / rows if name == "cuml" else 1.0
        measured[f"{name}_seconds"] = min(times) / share
    return row("clustering_level", device, measured)


def _kernel_iteration(values: torch.Tensor, centroids: torch.Tensor) -> float:
    sums = torch.zeros(centroids.shape, device=values.device)
    counts = torch.zeros(len(centroids), dtype=torch.int64, device=values.device)
    total = torch.zeros((), dtype=torch.float64, device=values.device)
    for block in values.split(1 << 20):
        total += kmeans_assign(block, centroids, sums, counts)[1].sum(dtype=torch.float64)
    return float(total)


def _torch_iteration(values: torch.Tensor, centroids: torch.Tensor) -> float:
    sums = torch.zeros(centroids.shape, device=values.device)
    counts = torch.zeros(len(centroids), dtype=torch.int64, device=values.device)
    total = torch.zeros((), dtype=torch.float64, device=values.device)
    squares = centroids.float().square().sum(dim=1)
    for block in values.split(1 << 16):
        gaps = squares - 2 * (block @ centroids.T).float()
        least, labels = gaps.min(dim=1)
        total += (least + block.float().square().sum(dim=1)).sum(dtype=torch.float64)
        sums.index_add_(0, labels, block.float())
        counts += torch.bincount(labels, minlength=len(centroids))
    return float(total)


def _passes_microseconds(row: dict[str, Any]) -> str:
    """All but the fit of the sample, which costs the same whatever the rows."""
    seconds = sum(value for name, value in row["steps"].items() if name != "level_1")
    return f"{1e6 * seconds / row['rows']:.0f}"


table = table_of(
    {
        "rows": "{rows:,} x {width}",
        "levels": lambda row: " / ".join(map(str, row["levels"])),
        "seconds": "{seconds:,.0f}",
        "of processor": "{processor_seconds:,.0f}",
        "passes": "{passes}",
        "their microseconds a row": _passes_microseconds,
        "seconds of the steps": lambda row: ", ".join(f"{name} {value:g}" for name, value in row["steps"].items()),
        "peak resident": lambda row: f"{row['peak_resident_bytes'] / 1e9:.2f} GB",
    }
)


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    if task["threads"]:
        torch.set_num_threads(task["threads"])
    settings = ClusterSettings(levels=tuple(task["levels"]), **task["settings"])
    if find_spec("sklearn") is not None:
        import sklearn.cluster  # noqa: F401  (so that what the libraries take is known before)
    libraries = _peak_resident_bytes()
    begun = time.perf_counter()
    summary = cluster_embeddings(task["embeddings"], task["out"], settings, device=task["device"], progress=False)
    seconds, used = time.perf_counter() - begun, time.process_time()
    return {
        "seconds": round(seconds, 1),
        "processor_seconds": round(used, 1),
        "microseconds_per_row": round(1e6 * seconds / summary.spans, 2),
        "steps": {name: round(value, 1) for name, value in summary.seconds.items()},
        "passes": summary.passes,
        "inertia": summary.inertia,
        "backend": summary.backend,
        "peak_resident_bytes": _peak_resident_bytes(),
        "libraries_resident_bytes": libraries,
    }


def _peak_resident_bytes() -> int:
    (peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
