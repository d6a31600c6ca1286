"""`trocar cluster`: embeddings -> a tree of clusters (hierarchical k-means with resampling, Vo et al. 2024, arXiv 2405.15613).

Level 1 clusters the spans, by a sample in memory and passes over all rows. Every further level clusters the centroids of the one
below, each of them counting once however many spans it has: what is to be even is the tree over what there is to see, not over
how often it was filmed. What is finished is kept in OUT/state, so a killed call goes on with the pass it was in and ends with
the same tree.

Over several processes (torch.distributed) each makes its part of every pass over all rows; the first one clusters what fits in
memory.

Shapes: N spans, K levels, C clusters of a level, D values a row.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..corpus.folder import CorpusError
from ..corpus.progress import FileProgress
from ..draw.tree import ClusterTree
from .duplicates import duplicate_distances
from .embeddings import EmbeddingRows
from .kmeans import Fit, KMeansBackend, choose_backend, fit_kmeans, resample
from .kmeans_passes import Scan, assign_pass, lloyd_pass, scan_rows
from .nodes import write_nodes
from .processes import from_first, is_first, rank_and_size
from .settings import ClusterSettings, ClusterSummary, tree_identity
from .state import ClusterState

LEAST_SAMPLE = 65_536  # rows that are clustered in memory anyway


def default_levels(rows: int) -> tuple[int, ...]:
    """About 2 sqrt(rows) clusters, and a tenth of them on each further level, down to no fewer than 4."""
    levels = [max(2, min(round(2 * rows**0.5), rows // 4))]
    while levels[-1] >= 40:
        levels.append(round(levels[-1] / 10))
    return tuple(levels)


def cluster_embeddings(
    embeddings: str | os.PathLike[str],
    out: str | os.PathLike[str],
    settings: ClusterSettings | None = None,
    *,
    device: torch.device | str = "cpu",
    backend: KMeansBackend | None = None,
    start: NDArray[np.float32] | None = None,
    all_duplicates: bool = False,
    progress: bool = True,
) -> ClusterSummary:
    """Clusters a folder that `trocar embed` wrote. Every process of a group calls it alike; all return the same summary.

    device: of the passes over all rows. backend: what clusters in memory, the device's best where None. start: (C, D) centroids
    of level 1 to start from, for comparisons; then one start is tried. all_duplicates: measure near-duplicates of all spans,
    else of some leaves where spans are many. Raises CorpusError: see `EmbeddingRows`; rows that are too few; another tree in
    `out`.
    """
    settings, out, device = settings or ClusterSettings(), Path(out), torch.device(device)
    rows = EmbeddingRows(embeddings)
    backend = backend or choose_backend(device)
    state = ClusterState(out, tree_identity(settings, rows.manifest, start))
    if (done := state.summary()) is not None:
        return done
    levels = settings.levels or default_levels(rows.num_rows)
    run = _Run(rows, settings, levels, backend, device, state, progress and is_first())
    scan = run.scan()
    usable = int(scan.usable.sum())
    if usable < levels[0]:
        raise CorpusError(
            f"{rows.folder}: {levels[0]:,} clusters of {usable:,} usable rows ({scan.not_finite:,} not finite, {scan.constant:,} "
            "constant): too many; ask for fewer with --levels"
        )
    leaves = run.level_1(scan, start)
    labels, distances = run.assign(scan, leaves.centroids)
    summary = _finish(run, scan, leaves, labels, distances, all_duplicates) if is_first() else None
    summary = from_first(summary)
    assert summary is not None
    return summary


def _finish(
    run: _Run,
    scan: Scan,
    leaves: Fit,
    labels: NDArray[np.int32],
    distances: NDArray[np.float32],
    all_duplicates: bool,
) -> ClusterSummary:
    """The levels above the leaves, and the tree's files."""
    rows, levels, out, fits = run.rows, run.levels, run.state.out, [leaves]
    for level, clusters in enumerate(levels[1:], 2):
        fits.append(run.upper_level(level, fits[-1].centroids, clusters))
    tree = _tree(rows, labels, distances, fits)
    near, measured, shares = duplicate_distances(
        rows, labels, distances, everything=all_duplicates, seed=run.settings.seed
    )
    tree = replace(tree, duplicate_distance=near)
    inertia = [float((distances[scan.usable].astype(np.float64) ** 2).sum()), *(fit.inertia for fit in fits[1:])]
    for level, fit in enumerate(fits, 1):
        np.save(out / f"centroids_{level}.npy", fit.centroids)
    write_nodes(out, fits, labels, distances)
    tree.write(out)
    summary = ClusterSummary(
        out,
        int(scan.usable.sum()),
        scan.not_finite,
        scan.constant,
        list(levels),
        inertia,
        run.passes,
        run.backend.name,
        measured,
        shares,
        run.state.seconds,
    )
    run.state.finish(summary)
    return summary


@dataclass
class _Run:
    """The steps of one call, each kept when it is finished."""

    rows: EmbeddingRows
    settings: ClusterSettings
    levels: Sequence[int]
    backend: KMeansBackend
    device: torch.device
    state: ClusterState
    progress: bool
    passes: int = 0

    def _pass(self, what: str, work: Callable[[Callable[[int], None]], Any]) -> Any:
        with FileProgress(self.rows.num_rows // rank_and_size()[1], self.progress, what, "spans") as bar:
            done = 0

            def report(rows_done: int) -> None:
                nonlocal done
                bar.advance(what, rows_done - done)
                done = rows_done

            return work(report)

    def scan(self) -> Scan:
        def make() -> dict[str, NDArray]:
            size = max(self.settings.sample_per_cluster * self.levels[0], LEAST_SAMPLE)
            scan = self._pass("checking rows", lambda report: scan_rows(self.rows, size, self.settings.seed, report))
            counts = np.array([scan.not_finite, scan.constant])
            return {"usable": scan.usable, "counts": counts, "sample": scan.sample}

        self.passes += 1
        found = self.state.step("scan", make)
        return Scan(found["usable"], int(found["counts"][0]), int(found["counts"][1]), found["sample"])

    def level_1(self, scan: Scan, start: NDArray[np.float32] | None) -> Fit:
        settings, clusters = self.settings, self.levels[0]

        def make() -> dict[str, NDArray]:
            if start is not None:
                return {"centroids": self.backend.fit(scan.sample, start, settings.iterations).centroids}
            options = {"seed": settings.seed, "restarts": settings.restarts, "iterations": settings.iterations}
            fit = fit_kmeans(scan.sample, clusters, self.backend, **options)
            fit = self._resample(scan.sample, fit, settings.nearest, settings.restarts)
            return {"centroids": fit.centroids}

        centroids = self.state.step("level_1", make, by_first=True)["centroids"]
        # A sample of all rows needs no more; and resampled centroids are not the means of all rows.
        sampled_all = len(scan.sample) == int(scan.usable.sum())
        refining = 0 if sampled_all or settings.resampling else settings.passes - 2
        for number in range(refining):

            def refine(centroids: NDArray[np.float32] = centroids) -> dict[str, NDArray]:
                result = self._pass(
                    "refining level 1",
                    lambda report: lloyd_pass(self.rows, scan.usable, centroids, self.device, report),
                )
                return {"centroids": result.centroids}

            self.passes += 1
            centroids = self.state.step(f"refined_{number}", refine)["centroids"]
        return Fit(centroids, np.empty(0, dtype=np.int64), float("nan"))

    def _resample(self, rows: NDArray[np.float32], fit: Fit, nearest: int, restarts: int) -> Fit:
        settings = self.settings
        return resample(
            rows,
            fit,
            self.backend,
            steps=settings.resampling,
            per_cluster=nearest,
            seed=settings.seed,
            restarts=restarts,
            iterations=settings.iterations,
        )

    def assign(self, scan: Scan, centroids: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        def make() -> dict[str, NDArray]:
            labels, distances = self._pass(
                "assigning spans", lambda report: assign_pass(self.rows, scan.usable, centroids, self.device, report)
            )
            return {"labels": labels, "distances": distances}

        self.passes += 1
        found = self.state.step("assigned", make)
        return found["labels"], found["distances"]

    def upper_level(self, level: int, below: NDArray[np.float32], clusters: int) -> Fit:
        settings = self.settings
        options = {"seed": settings.seed + level, "iterations": 300}
        # Centroids are few, so many starts cost little.
        fit = fit_kmeans(below, clusters, self.backend, restarts=max(settings.restarts, 10), **options)
        return self._resample(below, fit, settings.nearest_above, max(settings.restarts, 10))


def _tree(
    rows: EmbeddingRows, labels: NDArray[np.int32], distances: NDArray[np.float32], fits: list[Fit]
) -> ClusterTree:
    paths = np.empty((len(fits[0].centroids), len(fits)), dtype=np.int32)
    node = np.arange(len(paths))
    for level, fit in enumerate(fits):
        node = node if level == 0 else fit.labels[node]
        paths[:, len(fits) - 1 - level] = node
    return ClusterTree(*rows.spans(), labels, distances, np.full(len(labels), np.nan, dtype=np.float32), paths)
