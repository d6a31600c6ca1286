"""`trocar embed`: one vector for every span of a corpus, by a frozen encoder, in shards of fp16 rows.

Shards are independent: several processes, or machines that share the folder, take those that are still missing, and whatever is
killed goes on with them. A process has one GPU, loads the model once and finds out once what decodes faster there; a shard's rows
stay on the GPU until they are all there. A span that cannot be read becomes a row of NaN and is named in the shard's list of
failures.

Shapes: N spans, D values a row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...loaders.choose import LoaderChoice, choose_loader
from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.folder import MANIFEST_NAME, CorpusError
from ...loaders.corpus.progress import FileProgress
from ...loaders.curate.embeddings import Manifest, shard_path, write_shard, write_spans
from ...loaders.draw.evaluation_crops import EvaluationCrops
from ...loaders.draw.grid_clips import GridClips, WholePicture
from ...loaders.pack.isolated import run_isolated, worker_number
from ..inputs.finished import EmbedSummary, is_made, summary_of
from ..inputs.folders import DESCRIPTOR
from .embedders import Embedder, load_embedder

ROWS_PER_SHARD = 4096
BATCH = 16


def embed_corpus(
    corpus: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    model: str = DESCRIPTOR,
    frames: int = 16,
    stride: int = 4,
    workers: int = 1,
    threads: int | None = None,
    device: str = "auto",
    part: tuple[int, int] = (0, 1),
    rows_per_shard: int = ROWS_PER_SHARD,
    progress: bool = True,
) -> EmbedSummary:
    """Embeds what is not embedded yet.

    model, frames, stride: see `load_embedder`. workers: processes; 1 works in this one. threads: decoding threads of each, as
    many as the cores allow where None. device: "auto" takes a GPU where there is one; with several, process i takes GPU i, in
    turn. part: (i, n) takes every n-th shard from the i-th on, for n calls at the same time. rows_per_shard: spans of a shard.
    Raises CorpusError where `out` holds embeddings of something else, ConfigError or CheckpointError where the model cannot be
    had.
    """
    out = Path(out)
    if workers < 1 or not 0 <= part[0] < part[1] or rows_per_shard < 1:
        raise CorpusError(f"workers={workers}, part={part}, rows_per_shard={rows_per_shard}: not possible")
    opened = Corpus.open(corpus)
    # Where other processes embed, this one wants no memory of a GPU.
    own_device = torch.device(_device(device) if workers == 1 else "cpu")
    embedder = load_embedder(model, own_device, frames=frames, stride=stride)
    grid = _grid(opened, embedder)
    manifest = Manifest(
        rows=len(grid),
        width=embedder.width,
        rows_per_shard=rows_per_shard,
        corpus=opened.fingerprint,
        model=embedder.name,
        model_digest=embedder.digest,
        frames=embedder.frames,
        stride=embedder.stride,
        sample_fps=embedder.sample_fps,
        resolution=embedder.resolution,
    )
    _prepare(out, manifest, opened, grid)
    missing = [shard for shard in range(part[0], manifest.num_shards, part[1]) if not is_made(out, manifest, shard)]
    threads = threads or max(1, len(os.sched_getaffinity(0)) // workers)
    jobs = [(shard, str(corpus), str(out), model, frames, stride, threads, device) for shard in missing]

    def make(shard: int, *_: object) -> None:
        maker.make(shard)

    maker = ShardMaker(opened, out, embedder, threads, own_device)
    with FileProgress(len(jobs), progress, "embedding", "shards") as report:
        for (shard, *_), result in _run(jobs, workers, make):
            if isinstance(result, Exception):
                raise CorpusError(
                    f"{shard_path(out, shard)}: cannot be made ({result or type(result).__name__}); mend the cause "
                    "and run it again"
                ) from result
            report.advance("embedding")
    return summary_of(out, manifest, len(jobs))


def _run(jobs: list[tuple[Any, ...]], workers: int, make: Callable[..., None]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """make: does a job in this process."""
    if workers > 1:
        yield from run_isolated(embed_shard, jobs, min(workers, len(jobs)))
    else:
        yield from ((job, make(*job)) for job in jobs)


def _grid(corpus: Corpus, embedder: Embedder) -> GridClips:
    return GridClips(corpus, num_frames=embedder.frames, stride=embedder.stride, sample_fps=embedder.sample_fps)


def _device(wanted: str) -> str:
    """Of this process: whichever shards it makes, they are made on one GPU."""
    if wanted == "cpu" or not torch.cuda.is_available():
        return "cpu"
    return f"cuda:{worker_number() % torch.cuda.device_count()}"


def _prepare(out: Path, manifest: Manifest, corpus: Corpus, grid: GridClips) -> None:
    """Writes manifest and spans, or checks that those in the folder are the same."""
    out.mkdir(parents=True, exist_ok=True)
    if (out / MANIFEST_NAME).exists():
        known = Manifest.read(out)
        if known != manifest:
            names = [name for name in vars(manifest) if getattr(known, name) != getattr(manifest, name)]
            differences = ", ".join(f"{name} {getattr(known, name)!r} -> {getattr(manifest, name)!r}" for name in names)
            raise CorpusError(f"{out}: holds embeddings of something else ({differences}); choose another --out")
    ids = [row["id"] for row in corpus.scan("id")]
    write_spans(out, ids, *grid.spans())
    manifest.write(out)


class ShardMaker:
    """Makes shards with one embedder, on its device, by one choice of a loader."""

    def __init__(self, corpus: Corpus, out: Path, embedder: Embedder, threads: int, device: torch.device) -> None:
        self.out, self.embedder, self.manifest = out, embedder, Manifest.read(out)
        rows = self.manifest.rows_per_shard
        self._choose = partial(
            choose_loader,
            "auto",
            corpus,
            _grid(corpus, embedder),
            WholePicture() if embedder.squeeze else EvaluationCrops(),
            resolution=embedder.resolution,
            device=device,
            options={"threads": threads, "failure_budget": 1.0, "failure_floor": rows},
            cores=threads,
        )
        self._choice: LoaderChoice | None = None

    def make(self, shard: int) -> None:
        self._choice = self._choice or self._choose()  # measures on a GPU: only where there is something to make
        first = shard * self.manifest.rows_per_shard
        numbers = np.arange(first, first + self.manifest.shard_rows(shard))
        rows = np.full((len(numbers), self.manifest.width), np.nan, dtype=np.float16)
        made: list[torch.Tensor] = []
        places: list[NDArray[np.int64]] = []
        batches = [numbers[start : start + BATCH] for start in range(0, len(numbers), BATCH)]
        with self._choice.open(batches) as loader, torch.inference_mode():
            for batch in loader:
                if len(batch.numbers):
                    made.append(self.embedder.embed(batch.frames).half())
                    places.append(batch.numbers - first)
            failures = [{"span": f.draw, "path": f.path, "reason": f.reason} for f in loader.total.failures]
            if made:
                rows[np.concatenate(places)] = torch.cat(made).cpu().numpy()
        listed = shard_path(self.out, shard).with_suffix(".failed.json")
        listed.unlink(missing_ok=True)
        if failures:
            listed.parent.mkdir(parents=True, exist_ok=True)
            listed.write_text(json.dumps(failures, indent=1), encoding="utf-8")
        write_shard(self.out, shard, rows)


@lru_cache(maxsize=1)
def _maker(corpus: str, out: str, model: str, frames: int, stride: int, threads: int, device: str) -> ShardMaker:
    """This worker's, which ends with the call of `embed_corpus` that it works for."""
    where = torch.device(_device(device))
    if where.type == "cuda":
        torch.cuda.set_device(where)
    embedder = load_embedder(model, where, frames=frames, stride=stride)
    return ShardMaker(Corpus.open(corpus), Path(out), embedder, threads, where)


def embed_shard(shard: int, *settings: Any) -> None:
    """Makes a shard, in a worker. settings: of `_maker`."""
    _maker(*settings).make(shard)
