"""What packing brought: bytes, amplification and clips/s of a corpus of originals and of its proxies, measured here and now.

The CPU loader draws the same numbers from both; amplification is counted at the decoder.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...engine.console.table import Table
from ...loaders.corpus.corpus import Corpus
from ...loaders.cpu import ClipLoader
from ...loaders.draw.augment import CropRecipe
from ...loaders.draw.sampler import Sampler
from ...loaders.video.storage import stored_version

CLIP_FRAMES, RESOLUTION, CLIPS, BATCH = 16, 224, 32, 8
SHORT_PASS_SECONDS = 5.0
PASSES = 3


@dataclass(frozen=True)
class Loading:
    """bytes, frames: of the whole corpus. clips_per_second: wall time, the median of `passes` over the same clips."""

    name: str
    bytes: int
    frames: int
    clips: int
    passes: int
    amplification: float
    clips_per_second: float


def measure_loading(name: str, corpus: Corpus, stride: int) -> Loading:
    """stride: in frames of this corpus. Short passes are repeated. Raises VideoError where too many clips fail."""
    sampler = Sampler(corpus.frames, num_frames=CLIP_FRAMES, stride=stride)
    seconds: list[float] = []
    while True:
        draws = [np.arange(first, first + BATCH) for first in range(0, CLIPS, BATCH)]
        began = time.perf_counter()
        with ClipLoader(corpus, sampler, CropRecipe(), draws, resolution=RESOLUTION) as loader:
            clips = sum(len(batch.draws) for batch in loader)
        seconds.append(time.perf_counter() - began)
        if len(seconds) == PASSES or seconds[0] > SHORT_PASS_SECONDS:
            break
    sizes = sum(values["size_bytes"] for values in corpus.scan("size_bytes"))
    frames = int(corpus.frames.sum())
    speed = clips / statistics.median(seconds)
    return Loading(name, sizes, frames, clips, len(seconds), loader.total.amplification, speed)


def missing_originals(corpus_path: str | os.PathLike[str]) -> int:
    """How many videos of a corpus are not where it says: deleted since they were packed, or out of reach."""
    corpus, missing = Corpus.open(corpus_path), 0
    for row in range(len(corpus)):
        try:
            stored_version(corpus.video(row).facts.path)
        except OSError:
            missing += 1
    return missing


def compare_loading(
    corpus_path: str | os.PathLike[str], packed_path: str | os.PathLike[str], stride: int
) -> list[Loading]:
    """Clips at `stride` frames of the originals, from these and from proxies packed with that stride."""
    return [
        measure_loading("originals", Corpus.open(corpus_path), stride),
        measure_loading("proxies", Corpus.open(packed_path), 1),
    ]


COLUMNS = {
    "": lambda row: row.name,
    "MB": lambda row: f"{row.bytes / 1e6:,.1f}",
    "KiB/frame": lambda row: f"{row.bytes / row.frames / 1024:.1f}",
    "amplification": lambda row: f"{row.amplification:.2f}",
    "clips/s": lambda row: f"{row.clips_per_second:.1f}",
}


def table(rows: Sequence[Loading]) -> str:
    """The rows as text, and what was measured how."""
    passes = " and ".join(f"{row.passes} x {row.clips}" for row in rows)
    cores = len(os.sched_getaffinity(0))
    told = f"({passes} clips of {CLIP_FRAMES} frames at {RESOLUTION} px, CPU loader, {cores} cores)"
    return f"{Table.of(rows, COLUMNS).text()}\n{told}"
