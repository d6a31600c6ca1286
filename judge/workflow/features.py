"""`trocar features`: a frozen encoder over whole videos, a vector at every moment, in shards of fp16 rows.

OUT holds `features.json`, which says of what encoder and clips the vectors are, and for each video a folder of embeddings as
`trocar embed` writes them: row k is the moment k / rate. Its name ends with a digest of the video's own tables, so that a video
that is moved keeps its vectors, and one that changes loses them. Shards are independent: several processes, or machines that
share the folder, take those that are missing, and whatever is killed goes on with them.

Shapes: N moments of a video, T frames of a clip, R x R pixels, D values a vector.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...engine.inputs.finished import is_made
from ...loaders.corpus.progress import FileProgress
from ...loaders.curate.embeddings import EmbeddingRows, Manifest
from ...loaders.pack.isolated import run_isolated
from ...loaders.video.video import VideoError
from .choices import FeatureChoices
from .feature_shards import BATCH, Extractor, ShardCost, as_told, extractor_of, make_shard, own_device

ROWS_PER_SHARD = 1024  # 17 minutes at a vector a second: what is lost at most when a process is killed


@dataclass(frozen=True)
class FeatureSummary:
    """folders: of each video that could be encoded, by its path as it was given. failed: (path, why) of the rest. made: shards
    made now. seconds: how long it took."""

    folders: dict[str, Path]
    failed: list[tuple[str, str]]
    made: int
    cost: ShardCost
    seconds: float

    def lines(self) -> list[str]:
        cost = self.cost
        lines = [f"{len(self.folders):,} videos have their vectors; {self.made:,} shards were made now"]
        if self.made:
            busy = max(cost.decode_seconds + cost.encode_seconds, 1e-9)
            speed = cost.video_seconds / max(self.seconds, 1e-9)
            lines.append(
                f"{speed:.1f} times real time; decoding took {cost.decode_seconds / busy:.0%} "
                f"of the work, encoding the rest; {cost.decoded / max(cost.shown, 1):.2f} frames decoded for each that is shown, "
                f"{cost.used / max(cost.shown, 1):.2f} used"
            )
        told = (why if path in why else f"{path}: {why}" for path, why in self.failed)
        return [*lines, *(f"not encoded: {text}" for text in told)]


def extract_features(
    paths: Sequence[str],
    out: Path,
    model: str,
    choices: FeatureChoices,
    *,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    device: str = "auto",
    workers: int = 1,
    part: tuple[int, int] = (0, 1),
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: bool = True,
) -> FeatureSummary:
    """Encodes what `out` does not hold yet. A video that cannot be read is told of and the others are done.

    paths: files or URLs. model, options, seed: of `load_backbone`. workers: processes; 1 works in this one; each takes a GPU in
    turn. part: (i, n) takes every n-th shard from the i-th on, for n calls at the same time. rows_per_shard: a multiple of BATCH.
    Raises ConfigError where `out` holds features of something else.
    """
    if rows_per_shard % BATCH or rows_per_shard < 1 or workers < 1 or not 0 <= part[0] < part[1]:
        raise ConfigError(
            f"rows_per_shard={rows_per_shard}, workers={workers}, part={part}: give a multiple of {BATCH}, one worker or more, and "
            "a part from 0 on of more than that"
        )
    begin = time.monotonic()
    told = as_told(options)
    own = own_device(device) if workers == 1 else "cpu"  # where others encode, this process wants no memory of a GPU
    extractor = extractor_of(str(out), model, told, seed, choices, own, rows_per_shard)
    folders: dict[str, Path] = {}
    failed: dict[str, str] = {}
    shards: list[tuple[str, Path, Manifest, int]] = []
    for path in dict.fromkeys(paths):
        try:
            folder, manifest = extractor.prepare(path)
        except VideoError as error:
            failed[path] = str(error)
            continue
        folders[path] = folder
        shards += [(path, folder, manifest, shard) for shard in range(manifest.num_shards)]
    settings = (str(out), model, told, seed, choices, device, rows_per_shard)
    jobs: list[tuple[Any, ...]] = [
        (path, shard, *settings)
        for path, folder, manifest, shard in shards[part[0] :: part[1]]
        if not is_made(folder, manifest, shard)
    ]
    cost, made = ShardCost(), 0
    with FileProgress(len(jobs), progress, "encoding", "shards") as report:
        for job, result in _run(jobs, extractor, workers):
            if isinstance(result, Exception):
                failed[job[0]] = f"{result or type(result).__name__}"
                folders.pop(job[0], None)
            else:
                cost.add(result)
                made += 1
            report.advance("encoding")
    return FeatureSummary(folders, list(failed.items()), made, cost, time.monotonic() - begin)


def read_vectors(folder: Path) -> NDArray[np.float16]:
    """(N, D) all vectors of a video. Raises CorpusError where a shard is missing."""
    rows = EmbeddingRows(folder)
    return rows.read(0, rows.num_rows)


def _run(
    jobs: list[tuple[Any, ...]], extractor: Extractor, workers: int
) -> Iterator[tuple[tuple[Any, ...], ShardCost | Exception]]:
    if workers > 1 and jobs:
        yield from run_isolated(make_shard, jobs, min(workers, len(jobs)))
        return
    for job in jobs:
        try:
            yield job, extractor.make(job[0], job[1])
        except VideoError as error:
            yield job, error
