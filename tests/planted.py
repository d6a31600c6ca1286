"""Embeddings of spans that do not exist: planted clusters of known classes, written as `trocar embed` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trocar.loaders.curate.embeddings import Manifest, write_shard, write_spans

SPAN_FRAMES, SPANS_PER_VIDEO = 61, 20


def write_embeddings(folder: Path, rows: NDArray[np.float16], rows_per_shard: int = 1000) -> Path:
    """Writes rows (N, D) as spans of videos of 20 spans each."""
    count, width = rows.shape
    folder.mkdir(parents=True, exist_ok=True)
    manifest = Manifest(count, width, rows_per_shard, "made", "planted", "0", 16, 4, None, 64)
    number = np.arange(count)
    video = (number // SPANS_PER_VIDEO).astype(np.int32)
    ids = [f"{index:016x}" for index in range(int(video[-1]) + 1)]
    first = number % SPANS_PER_VIDEO * SPAN_FRAMES
    write_spans(folder, ids, video, first, np.full(count, SPAN_FRAMES, dtype=np.int32))
    for shard in range(manifest.num_shards):
        start = shard * rows_per_shard
        write_shard(folder, shard, rows[start : start + manifest.shard_rows(shard)])
    manifest.write(folder)
    return folder


class PlantedCorpus:
    """What draws ask of the corpus whose spans `write_embeddings` wrote."""

    path = "planted"

    def __init__(self, spans: int) -> None:
        self.frames = np.full(-(-spans // SPANS_PER_VIDEO), SPANS_PER_VIDEO * SPAN_FRAMES)
        self.frames[-1] = ((spans - 1) % SPANS_PER_VIDEO + 1) * SPAN_FRAMES
        self.packed_stride = np.ones(len(self), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.frames)

    def scan(self, *columns: str) -> Iterator[dict[str, str]]:
        return ({name: f"{row:016x}" if name == "id" else "" for name in columns} for row in range(len(self)))


def long_tail(
    shares: list[float], procedures: int, count: int, width: int, seed: int, spread: float = 1.0
) -> tuple[NDArray[np.float16], NDArray[np.int64], NDArray[np.int64]]:
    """(rows, domains, procedures): domains far apart, each with several procedures around it, of sizes that fall by halves.

    shares: of the domains. Domain d's procedures are numbered d * procedures ... in the third array.
    """
    generator = np.random.default_rng(seed)
    halves = 0.5 ** np.arange(procedures)
    weights = np.concatenate([share * halves / halves.sum() for share in shares])
    sizes = np.maximum(np.floor(weights * count).astype(int), 6)
    sizes[0] += count - sizes.sum()
    domain_centres = 6 * generator.standard_normal((len(shares), width))
    centres = np.repeat(domain_centres, procedures, axis=0) + 2.5 * generator.standard_normal((len(sizes), width))
    procedure = np.repeat(np.arange(len(sizes)), sizes)
    rows = centres[procedure] + spread * generator.standard_normal((count, width))
    order = generator.permutation(count)
    return rows[order].astype(np.float16), procedure[order] // procedures, procedure[order]
