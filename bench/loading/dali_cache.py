"""`trocar bench dali-cache`: does DALI keep its decoders from window to window? Proxies by the way their pictures are coded.

DALI compares the coded size of a stream with sizes that it has kept, which are the shown ones. Where these differ it opens a
decoder for every window, which takes longer than decoding it. Two ways are measured against pictures as they come: sides that are
multiples of 16, and windows whose header cuts nothing off. JPEGs, which need no such decoder, are measured beside them.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...loaders.draw.augment import CropRecipe
from ...loaders.draw.sampler import Sampler
from ..rows.cells import known_cell, table_of
from ..rows.row import row
from .decode import ON_CPU, Scale, Utilization, run_windows, write_corpus

# name, codec, size, whether windows are uncropped
ARMS: tuple[tuple[str, str, tuple[int, int], bool], ...] = (
    ("sides of whole blocks", "h264", (448, 256), False),
    ("header without cropping", "h264", (456, 256), True),
    ("as they come", "h264", (456, 256), False),
    ("JPEG", "mjpeg", (448, 256), False),
)
ON_GPU = Scale(frames=200, seconds=5.0, batch=64)
SESSIONS = 16


def bench_dali_cache(device: torch.device) -> list[dict[str, Any]]:
    """A row an arm. On a CPU, where DALI has no H.264, VP9 and few pictures take its place: that says nothing but that it runs."""
    is_gpu = device.type == "cuda"
    scale = ON_GPU if is_gpu else replace(ON_CPU, stride=1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, codec, size, is_uncropped in ARMS:
            if not is_gpu:
                codec, size = "vp9" if codec == "h264" else codec, (size[0] // 4, size[1] // 4)
            corpus = write_corpus(Path(folder) / name, codec, size, 8, scale)
            sampler = Sampler(corpus.frames, num_frames=scale.clip_frames, stride=1, seed=0)
            sessions = SESSIONS if is_gpu else 1
            with Utilization(device) as utilization:
                count, seconds = run_windows(
                    corpus, sampler, device, scale, CropRecipe(), sessions, scale.batch, is_uncropped=is_uncropped
                )
            measured = {"arm": name, "codec": codec, "width": size[0], "height": size[1], "decoders": sessions}
            measured |= {
                "clips_per_second": count.clips / seconds,
                "amplification": count.amplification,
                "bytes_per_clip": count.bytes_read / count.clips,
                "nvdec_busy_percent": utilization.decoder_percent,
            }
            rows.append(row("dali_cache", device, measured))
    return rows


table = table_of(
    {
        "proxies": "{arm}, {codec} {width}x{height}",
        "clips/s": "{clips_per_second:.0f}",
        "amplification": "{amplification:.2f}",
        "kB a clip": lambda entry: f"{entry['bytes_per_clip'] / 1e3:.0f}",
        "NVDEC busy": known_cell("nvdec_busy_percent", "{:.0f} %"),
    }
)
