"""k-means of rows that fit in memory, behind one protocol: scikit-learn on the CPU, cuML on a GPU; and resampling.

Resampling (Vo et al. 2024, arXiv 2405.15613, section 3.3): k-means puts its centroids where rows are dense. Clustering again
only the few rows of every cluster that lie nearest to its centroid evens the density out, and the centroids come to lie
uniformly over what the rows cover.

Shapes: N rows, C clusters, D values a row.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...kernels.kmeans_assign import kmeans_assign
from ..corpus.folder import CorpusError

Floats = NDArray[np.float32]
START_ROWS_PER_CLUSTER = (
    10  # k-means++ looks at all rows once per cluster, so on many rows it starts from a part of them
)


@dataclass(frozen=True)
class Fit:
    """centroids: (C, D). labels: (N,) int64. inertia: sum of squared distances."""

    centroids: Floats
    labels: NDArray[np.int64]
    inertia: float


class KMeansBackend(Protocol):
    name: str

    def start(self, rows: Floats, clusters: int, seed: int) -> Floats:
        """(C, D) centroids to start from, by k-means++ or its scalable variant."""
        ...

    def fit(self, rows: Floats, start: Floats, iterations: int) -> Fit:
        """Lloyd's algorithm from `start`, (C, D); an empty cluster is given the row that is farthest from its centroid."""
        ...


class SklearnKMeans:
    """scikit-learn on the CPU."""

    name = "scikit-learn"

    def start(self, rows: Floats, clusters: int, seed: int) -> Floats:
        from sklearn.cluster import kmeans_plusplus

        return kmeans_plusplus(rows, clusters, random_state=seed % 2**32)[0].astype(np.float32)

    def fit(self, rows: Floats, start: Floats, iterations: int) -> Fit:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        # scikit-learn's hints know neither an array as the start nor a number of starts.
        options: dict[str, Any] = {"init": start, "n_init": 1, "max_iter": iterations, "algorithm": "lloyd"}
        model: Any = KMeans(len(start), **options)
        with warnings.catch_warnings():
            # Rows that are fewer, or fewer different ones, than clusters are refused before they come here.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(rows)
        return Fit(
            np.asarray(model.cluster_centers_, dtype=np.float32), model.labels_.astype(np.int64), float(model.inertia_)
        )


class CumlKMeans:
    """cuML on a GPU, from CuPy arrays."""

    name = "cuML"

    def start(self, rows: Floats, clusters: int, seed: int) -> Floats:
        # One iteration from its own start: cuML hands out no bare start.
        return self._model(rows, clusters, init="scalable-k-means++", max_iter=1, random_state=seed % 2**31).centroids

    def fit(self, rows: Floats, start: Floats, iterations: int) -> Fit:
        import cupy  # pyright: ignore[reportMissingImports]

        return self._model(rows, len(start), init=cupy.asarray(start), max_iter=iterations)

    def _model(self, rows: Floats, clusters: int, **options: Any) -> Fit:
        import cupy  # pyright: ignore[reportMissingImports]
        from cuml.cluster import KMeans  # pyright: ignore[reportMissingImports]

        model = KMeans(n_clusters=clusters, n_init=1, tol=1e-4, output_type="cupy", **options)
        model.fit(cupy.asarray(rows))
        centroids, labels = cupy.asnumpy(model.cluster_centers_), cupy.asnumpy(model.labels_)
        return Fit(centroids.astype(np.float32), labels.astype(np.int64), float(model.inertia_))


def choose_backend(device: torch.device) -> KMeansBackend:
    """cuML on a GPU where it is installed, else scikit-learn."""
    installed = all(find_spec(name) is not None for name in ("cuml", "cupy"))
    return CumlKMeans() if device.type == "cuda" and installed else SklearnKMeans()


def fit_kmeans(
    rows: Floats, clusters: int, backend: KMeansBackend, *, seed: int, restarts: int, iterations: int
) -> Fit:
    """The best of `restarts` fits by inertia. Raises CorpusError where different rows are fewer than clusters."""
    if len(rows) < clusters or (len(rows) < 50 * clusters and len(np.unique(rows, axis=0)) < clusters):
        different = len(np.unique(rows, axis=0))
        raise CorpusError(
            f"{clusters:,} clusters of {len(rows):,} rows of which {different:,} are different: too many; ask for fewer with "
            f"--levels"
        )
    best: Fit | None = None
    for restart in range(restarts):
        generator = np.random.default_rng([seed, restart])
        count = max(START_ROWS_PER_CLUSTER * clusters, 1000)
        some = rows if len(rows) <= count else rows[np.sort(generator.choice(len(rows), count, replace=False))]
        start = backend.start(some, clusters, int(generator.integers(2**31)))
        found = backend.fit(rows, start, iterations)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    return best


def resample(
    rows: Floats,
    found: Fit,
    backend: KMeansBackend,
    *,
    steps: int,
    per_cluster: int,
    seed: int,
    restarts: int,
    iterations: int,
) -> Fit:
    """`found` after `steps` rounds of resampling; labels and inertia are of all rows. Stops where the rows would be too few."""
    clusters = len(found.centroids)
    for step in range(steps):
        labels, distances = assign(rows, found.centroids)
        chosen = nearest_of_each(labels, distances, per_cluster)
        if len(np.unique(rows[chosen], axis=0)) <= clusters:
            break
        again = fit_kmeans(
            rows[chosen], clusters, backend, seed=seed + 1 + step, restarts=restarts, iterations=iterations
        )
        labels, distances = assign(rows, again.centroids)
        found = Fit(again.centroids, labels, float(distances.sum()))
    return found


def assign(rows: Floats, centroids: Floats) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """(N,) nearest centroids and squared distances, on the CPU.

    They are taken from products, whose rounding grows with what all rows share: so both are handed over less the centroids' median.
    """
    origin = np.median(centroids, axis=0).astype(np.float32)
    labels, distances = kmeans_assign(torch.from_numpy(rows - origin), torch.from_numpy(centroids - origin))
    return labels.numpy(), distances.numpy().astype(np.float64)


def nearest_of_each(labels: NDArray[np.int64], distances: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The rows, at most `count` of each cluster, that are nearest to its centroid; clusters in order, the nearest row first."""
    order = np.lexsort((distances, labels))
    ordered = labels[order]
    first = np.searchsorted(ordered, ordered)  # where each row's cluster begins
    return order[np.arange(len(order)) - first < count]
