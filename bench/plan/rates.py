"""Where the numbers of a plan come from: rows that were measured, or what a cluster's file assumes, never mixed up in silence.

Rows are those of `trocar profile` (also by the stage clock), `trocar bench training`, `loading`, `proxies` and `decode`. What a GPU
does counts only where it was measured on the cluster's kind of GPU; a processor core's speed is taken from wherever it was
measured, and the origin says where.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.config.settings import Config, ConfigError
from ...engine.step.build import build_model
from ..rows.row import all_rows, select_rows
from ..training.flops import step_flops
from .cluster import Assumed, AssumedVideos, Cluster
from .model import Compute, Rate, Videos

RESULTS = Path(__file__).parents[1] / "results"
ARMS = {"originals": "trocar", "proxies": "trocar packed"}  # of `trocar bench loading`
PROXY = "h264 gop 8 quality 23"  # `trocar pack`'s default, in `trocar bench proxies`
FLOPS_CLIPS = 8
THREADS_ALONE = "proxies, decoding alone: 1 process of 16 threads"  # they wait for each other's Python, not for cores
Row = dict[str, Any]


def shipped_rows() -> list[Row]:
    """All rows that come with trocar, those of GPUs too."""
    return all_rows(RESULTS)


def origin(row: Row) -> str:
    """A row in a few words."""
    return f"{row['benchmark']}, {row['machine']['device']}, {row['time'][:10]}, commit {row['commit']}"


def compute_rates(rows: Iterable[Row], config: Config, cluster: Cluster) -> Compute:
    """A rank's step. Raises ConfigError where nothing was measured and nothing is assumed."""
    is_cpu = not cluster.gpus_per_node
    points: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    stages: dict[str, list[float]] = defaultdict(list)
    chosen: dict[str, Row] = {}
    threads = 1
    for row in rows:
        if not _is_same_step(row, config) or cluster.device not in row["machine"]["device"]:
            continue
        if row["benchmark"] == "profile":
            wait = row["stages"].get("wait", {}).get("critical", 0.0)
            computing = row["seconds_per_step"] - wait
            # What other work on the machine took is no property of the step.
            points["profile"][row["clips_per_step"]].append(computing - row.get("training_queue_seconds_per_step", 0.0))
            threads = row["compute_threads"]
            for name, times in row["stages"].items():
                if name != "wait":
                    stages[name].append(times["critical"] / computing)
        elif row["benchmark"] == "training" and row.get("arm") == "resident" and not row.get("changed"):
            points["training"][row["batch"]].append(row["step_seconds"]["median"])
            threads = row["threads"]
        chosen[row["benchmark"]] = row
    kind = next((kind for kind in ("training", "profile") if points[kind]), None)
    if kind is None:
        return _assumed_compute(config, cluster)
    fixed, each = fit_line({clips: statistics.median(seconds) for clips, seconds in points[kind].items()})
    source = origin(chosen[kind])
    shares = {name: statistics.fmean(values) for name, values in stages.items()}
    stage = max(shares, key=lambda name: shares[name], default="")
    return Compute(Rate(fixed, source), Rate(each, source), threads if is_cpu else 0, stage, shares.get(stage, 0.0))


def _is_same_step(row: Row, config: Config) -> bool:
    wanted = (config.objective.kind, config.model.encoder, config.data.frames, config.data.resolution)
    return tuple(row.get(name) for name in ("objective", "encoder", "frames", "resolution")) == wanted


def _assumed_compute(config: Config, cluster: Cluster) -> Compute:
    peak, share = cluster.peak_teraflops, cluster.utilization
    if peak is None or share is None:
        raise ConfigError(
            f"{cluster.name}: no row of this step (objective {config.objective.kind}, encoder {config.model.encoder}, "
            f"{config.data.frames} frames of {config.data.resolution} px) was measured on a device named {cluster.device!r}, and "
            "its file assumes neither peak_teraflops nor utilization; measure one: trocar profile CONFIG, then --rates its rows"
        )
    flops = clip_flops(config)
    seconds = flops / (peak.value * 1e12 * share.value)
    text = (
        f"{flops / 1e9:.0f} GFLOP a clip at {share.value:.0%} of {peak.value:g} TFLOP/s ({share.source}; {peak.source})"
    )
    return Compute(Rate(0.0, text, False), Rate(seconds, text, False))


def clip_flops(config: Config) -> float:
    """Model FLOPs of one clip, forward and backward: the mean over a few clips' masks."""
    with torch.device("meta"):  # only its shapes count
        model, masks = build_model(config)
    drawn = masks(config.run.seed, np.arange(FLOPS_CLIPS), 0)
    return step_flops(model, drawn).total / FLOPS_CLIPS


def fit_line(points: dict[float, float]) -> tuple[float, float]:
    """(value at 0, slope) of the least squares line with neither below 0; through 0 where there is one point."""
    x, y = np.array(list(points), dtype=float), np.array(list(points.values()))
    if len(x) > 1:
        slope, start = np.polyfit(x, y, 1)
        if start >= 0 and slope >= 0:
            return float(start), float(slope)
        if slope < 0:
            return float(y.mean()), 0.0
    return 0.0, float((x @ y) / (x @ x))


def video_rates(
    rows: Sequence[Row], config: Config, cluster: Cluster, name: str, own: Mapping[str, Rate] | None = None
) -> Videos | None:
    """What spans of `name`, "originals" or "proxies", cost; None where that is known for no decoder.

    own: rates of the very corpus, before all others.
    """
    assumed: AssumedVideos = getattr(cluster, name)
    found = {**(_profiled(rows, config, name) or _loaded(rows, config, name)), **(own or {})}

    def rate(key: str, default: float | None = None) -> Rate | None:
        if key in found:
            return found[key]
        value: Assumed | None = getattr(assumed, key)
        if value is not None:
            return Rate(value.value, value.source, False)
        return None if default is None else Rate(default, "not measured, taken as 0", False)

    size, pictures = rate("bytes_per_span"), rate("pictures_per_span")
    work, nvdec = rate("core_seconds_per_span"), _nvdec(rows, cluster, name) or rate("nvdec_pictures_per_second")
    if size is None or pictures is None or (work is None and nvdec is None):
        return None
    view, idle = rate("core_seconds_per_view", 0.0), found.get("idle_seconds_per_span")
    assert view is not None
    never = Rate(float("inf"), "no CPU decoding was measured", False)
    return Videos(name, size, pictures, work or never, view, idle or Rate(0.0, "none was measured", False), nvdec)


def _profiled(rows: Iterable[Row], config: Config, name: str) -> dict[str, Rate]:
    data = config.data
    wanted = {"videos": name, "frames": data.frames, "resolution": data.resolution}
    mine = [
        row
        for row in select_rows(rows, "profile", **wanted)
        if row["decode_threads"]
        and "capability" not in row["machine"]  # beside a GPU it may be DALI that a thread waits for
        and row["spans_per_step"]
        and "amplification" in row
    ]
    if not mine:
        return {}
    source = origin(mine[-1])
    cores: dict[float, list[float]] = defaultdict(list)
    idle = []
    for row in mine:
        thread = row["decode_thread_seconds_per_step"]
        core, queue = row.get("decode_core_seconds_per_step", thread), row.get("decode_queue_seconds_per_step", 0.0)
        cores[row["views_per_span"]].append(core / row["spans_per_step"])
        idle.append((thread - core - queue) / row["spans_per_step"])
    by_views = {views: statistics.median(values) for views, values in cores.items()}
    # One number of views does not tell what is the span's and what the view's.
    span, view = fit_line(by_views) if len(by_views) > 1 else (next(iter(by_views.values())), 0.0)
    return {
        "core_seconds_per_span": Rate(span, source),
        "core_seconds_per_view": Rate(view, source),
        "idle_seconds_per_span": Rate(statistics.median(idle), source),
        "bytes_per_span": Rate(statistics.fmean(row["bytes_per_clip"] * row["views_per_span"] for row in mine), source),
        "pictures_per_span": Rate(statistics.fmean(row["amplification"] for row in mine) * data.frames, source),
    }


def _loaded(rows: Iterable[Row], config: Config, name: str) -> dict[str, Rate]:
    data = config.data
    wanted = {"arm": ARMS[name], "frames_a_clip": data.frames, "stride": data.stride, "resolution": data.resolution}
    row = next((row for row in select_rows(rows, "loading", **wanted) if "clips_per_second" in row), None)
    if row is None:
        return {}
    source = f"{origin(row)}, {'; '.join(row['videos'])}"
    return {
        "core_seconds_per_span": Rate(row["cpu_seconds_per_clip"], source),
        "bytes_per_span": Rate(row["bytes_per_clip"], source),
        "pictures_per_span": Rate(row["amplification"] * data.frames, source),
    }


def _nvdec(rows: Iterable[Row], cluster: Cluster, name: str) -> Rate | None:
    """Pictures a second in windows, of H.264 about as tall as these videos."""
    height = 1080 if name == "originals" else 256
    mine = [row for row in select_rows(rows, "decode", codec="h264") if cluster.device in row["machine"]["device"]]
    if not mine:
        return None
    nearest = min(mine, key=lambda row: abs(row["height"] - height))
    text = f"{origin(nearest)}, H.264 {nearest['width']}x{nearest['height']} GOP {nearest['gop']}"
    return Rate(nearest["decoded_frames_per_second"], text)


def interpreter_rate(rows: Iterable[Row]) -> Rate | None:
    """Seconds of Python that a span takes in the threads of one process."""
    row = next(iter(select_rows(rows, "gpu_video", what=THREADS_ALONE)), None)
    return None if row is None else Rate(1 / row["clips_per_second"], f"{THREADS_ALONE}; {origin(row)}")


def packing_rates(rows: Iterable[Row], cluster: Cluster) -> tuple[Rate | None, Rate | None]:
    """(core seconds an original frame, bytes a proxy's frame) of `trocar pack` as it is by default."""
    mine = select_rows(rows, "proxies", variant=PROXY)
    if mine:
        source = f"{origin(mine[0])}, mean over {len(mine)} videos"
        mean = [
            statistics.fmean(row[key] for row in mine)
            for key in ("packing_cpu_seconds_per_original_frame", "bytes_per_frame")
        ]
        return Rate(mean[0], source), Rate(mean[1], source)
    seconds, size = cluster.packing_core_seconds_per_frame, cluster.proxies.bytes_per_frame
    return (
        None if seconds is None else Rate(seconds.value, seconds.source, False),
        None if size is None else Rate(size.value, size.source, False),
    )
