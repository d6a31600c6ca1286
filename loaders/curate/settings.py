"""What a tree is asked to be and what came of it, apart from making it: a tree that is whole is found without PyTorch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..corpus.folder import TREE_NAME, CorpusError
from .embeddings import EmbeddingRows, Manifest

MAX_PASSES = 5
STATE, IDENTITY_NAME, SUMMARY_NAME = "state", "identity.json", "summary.json"


@dataclass(frozen=True)
class ClusterSettings:
    """levels: clusters of each level, the spans' first; None: see `default_levels`. resampling: rounds of it on every level.
    nearest, nearest_above: spans of a leaf, and centroids of a cluster above, that it clusters again. restarts: starts of every
    fit, of which the best counts. iterations: of Lloyd's algorithm in memory. passes: over all rows, 2 .. 5: to check, to
    assign, and between them to refine level 1 where there is no resampling. sample_per_cluster: rows of level 1 that are
    clustered in memory. seed: 0 .. 2**32 - 1. Raises CorpusError."""

    levels: tuple[int, ...] | None = None
    resampling: int = 5
    nearest: int = 8
    nearest_above: int = 2
    restarts: int = 2
    iterations: int = 50
    passes: int = MAX_PASSES
    sample_per_cluster: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.levels is not None and (
            not self.levels
            or min(self.levels) < 1
            or any(b >= a for a, b in zip(self.levels, self.levels[1:], strict=False))
        ):
            raise CorpusError(
                f"levels {self.levels}: give falling numbers of clusters, the spans' level first: 2000,200,20"
            )
        if not 2 <= self.passes <= MAX_PASSES:
            raise CorpusError(f"passes {self.passes}: not in 2 .. {MAX_PASSES}")
        for name in ("nearest", "nearest_above", "restarts", "iterations", "sample_per_cluster"):
            if getattr(self, name) < 1:
                raise CorpusError(f"{name} {getattr(self, name)}: at least 1 is needed")
        if self.resampling < 0 or not 0 <= self.seed < 2**32:
            raise CorpusError(f"resampling {self.resampling}, seed {self.seed}: below 0, or too large")


@dataclass(frozen=True)
class ClusterSummary:
    """levels: clusters of each. inertia: of each, over spans on the first and over centroids above. passes: over all rows.
    backend: what clustered in memory. near_duplicates: share of the measured spans within each distance of another."""

    out: Path
    spans: int
    not_finite: int
    constant: int
    levels: list[int]
    inertia: list[float]
    passes: int
    backend: str
    duplicates_measured: int
    near_duplicates: dict[str, float]
    seconds: dict[str, float]

    def lines(self) -> list[str]:
        left_out = self.not_finite + self.constant
        lines = [
            f"{self.spans:,} spans in {' / '.join(f'{count:,}' for count in self.levels)} clusters, {self.passes} passes, "
            f"{self.backend}: {self.out / TREE_NAME}"
        ]
        if left_out:
            lines.append(
                f"{left_out:,} spans are left out: {self.not_finite:,} could not be embedded, {self.constant:,} are constant"
            )
        shares = ", ".join(f"{share:.2%} within {distance}" for distance, share in self.near_duplicates.items())
        lines.append(f"near-duplicates inside a leaf, of {self.duplicates_measured:,} spans: {shares}")
        return lines


def tree_identity(
    settings: ClusterSettings, embeddings: Manifest, start: NDArray[np.float32] | None = None
) -> dict[str, Any]:
    """What a tree is of, as JSON values."""
    begin = None if start is None else float(np.abs(start).sum(dtype=np.float64))
    identity = {"settings": asdict(settings), "embeddings": asdict(embeddings), "start": begin}
    return json.loads(json.dumps(identity))


def known_identity(out: Path) -> dict[str, Any] | None:
    """What the tree in `out`, whole or not, is of; None where there is none."""
    path = out / STATE / IDENTITY_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def read_summary(out: Path) -> ClusterSummary | None:
    """Of the tree in `out`, where it is whole."""
    path = out / SUMMARY_NAME
    return ClusterSummary(**{**json.loads(path.read_text(encoding="utf-8")), "out": out}) if path.exists() else None


def finished_tree(
    embeddings: str | os.PathLike[str], out: str | os.PathLike[str], settings: ClusterSettings
) -> ClusterSummary | None:
    """What `cluster_embeddings` would return without doing anything; None where there is something to do, or to refuse.

    Raises CorpusError where the embeddings are not there or not whole.
    """
    identity = tree_identity(settings, EmbeddingRows(embeddings).manifest)
    return read_summary(Path(out)) if known_identity(Path(out)) == identity else None
