"""What the ways to code a proxy cost in bytes, and how fast they decode: H.264, and JPEGs, of which nothing is decoded in vain."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..rows.row import select_rows
from .cluster import Cluster

# `trocar pack` by default, and with `--codec mjpeg`, in `trocar bench proxies`; and their arms in `trocar bench dali-cache`.
VARIANTS = {"h264": "h264 gop 8 quality 23", "mjpeg": "mjpeg gop 1 quality 3"}
ARMS = {"h264": "sides of whole blocks", "mjpeg": "JPEG"}


@dataclass(frozen=True)
class ProxyCodec:
    """codec: of `trocar pack`. bytes_per_frame, amplification, frames_per_core_second (used ones): means over the videos that were
    packed; device: whose cores. gpu_clips_per_second: of 16 frames, by DALI on the cluster's kind of GPU; None: unmeasured."""

    codec: str
    bytes_per_frame: float
    amplification: float
    frames_per_core_second: float
    device: str
    gpu_clips_per_second: float | None

    def sentence(self, frames: float) -> str:
        """frames: of all proxies."""
        by_gpu = "unmeasured"
        if self.gpu_clips_per_second is not None:
            by_gpu = f"{self.gpu_clips_per_second:,.0f} clips/s"
        return (
            f"{self.codec}: {self.bytes_per_frame / 1024:.1f} KiB a frame, {frames * self.bytes_per_frame / 1e9:,.2f} GB in all; "
            f"amplification {self.amplification:.2f}; {self.frames_per_core_second:,.0f} frames a second of a core "
            f"({self.device}); by DALI on a GPU {by_gpu}"
        )


def proxy_codecs(rows: Iterable[dict[str, Any]], cluster: Cluster) -> list[ProxyCodec]:
    """Those that were measured."""
    rows, found = list(rows), []
    for codec, variant in VARIANTS.items():
        mine = select_rows(rows, "proxies", variant=variant)
        if not mine:
            continue
        names = ("bytes_per_frame", "amplification", "frames_per_core_second")
        size, amplification, rate = (statistics.fmean(row[name] for row in mine) for name in names)
        device = mine[0]["machine"]["device"]
        found.append(ProxyCodec(codec, size, amplification, rate, device, _by_gpu(rows, cluster, codec)))
    return found


def _by_gpu(rows: Sequence[dict[str, Any]], cluster: Cluster, codec: str) -> float | None:
    mine = select_rows(rows, "dali_cache", arm=ARMS[codec], codec=codec)
    if not cluster.gpus_per_node:
        return None
    return next((row["clips_per_second"] for row in mine if cluster.device in row["machine"]["device"]), None)
