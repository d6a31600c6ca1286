"""k-means in memory and over all rows: backends, several processes, a GPU where there is one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from planted import long_tail, write_embeddings
from torch.multiprocessing.spawn import start_processes

from trocar.loaders.curate import kmeans_passes
from trocar.loaders.curate.embeddings import EmbeddingRows
from trocar.loaders.curate.kmeans import CumlKMeans, SklearnKMeans, assign, fit_kmeans, nearest_of_each, resample


def nothing(_: int) -> None:
    pass


def planted(count: int = 2000) -> np.ndarray:
    return long_tail([0.85, 0.10, 0.04, 0.01], 3, count, 16, 1)[0].astype(np.float32)


def test_nearest_of_each() -> None:
    labels, distances = np.array([1, 0, 1, 1, 0]), np.array([3.0, 2.0, 1.0, 2.0, 1.0])
    assert nearest_of_each(labels, distances, 2).tolist() == [4, 1, 2, 3]
    assert nearest_of_each(labels, distances, 1).tolist() == [4, 2]


def test_the_best_of_restarts() -> None:
    rows, backend = planted(), SklearnKMeans()
    options = {"seed": 3, "iterations": 50}
    fits = [fit_kmeans(rows, 12, backend, restarts=count, **options) for count in (1, 6)]
    assert fits[1].inertia <= fits[0].inertia
    again = fit_kmeans(rows, 12, backend, restarts=6, **options)
    assert np.array_equal(again.centroids, fits[1].centroids)
    labels, distances = assign(rows, fits[1].centroids)
    assert np.array_equal(labels, fits[1].labels)
    assert distances.sum() == pytest.approx(fits[1].inertia, rel=1e-4)


def test_resampling_evens_the_centroids_out() -> None:
    """Without it most of 24 centroids lie in the large classes; with it each of the 12 classes has more nearly its two."""
    rows, _, classes = long_tail([0.85, 0.10, 0.04, 0.01], 3, 4000, 16, 1)
    values, backend = rows.astype(np.float32), SklearnKMeans()
    plain = fit_kmeans(values, 24, backend, seed=0, restarts=2, iterations=50)
    options = {"per_cluster": 6, "seed": 0, "restarts": 2, "iterations": 50}
    even = resample(values, plain, backend, steps=5, **options)

    def largest(centroids: np.ndarray) -> int:
        owners = classes[((centroids[:, None] - values[None]) ** 2).sum(axis=2).argmin(axis=1)]
        return int(np.bincount(owners).max())

    assert largest(even.centroids) < largest(plain.centroids)


def pass_of_one_rank(rank: int, ranks: int, folder: str) -> None:
    torch.set_num_threads(1)
    kmeans_passes.BLOCK_ROWS = 300
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    rows = EmbeddingRows(Path(folder) / "embeddings")
    usable = np.load(f"{folder}/usable.npy")
    start = np.load(f"{folder}/start.npy")
    device = torch.device("cpu")
    scan = kmeans_passes.scan_rows(rows, 500, 0, nothing)
    result = kmeans_passes.lloyd_pass(rows, usable, start, device, nothing)
    labels, distances = kmeans_passes.assign_pass(rows, usable, start, device, nothing)
    np.savez(
        f"{folder}/rank_{rank}.npz",
        usable=scan.usable,
        counts=[scan.not_finite, scan.constant],
        sample=scan.sample,
        centroids=result.centroids,
        inertia=result.inertia,
        labels=labels,
        distances=distances,
    )
    torch.distributed.destroy_process_group()


def test_several_processes_give_what_one_gives(tmp_path: Path) -> None:
    rows = planted(1000).astype(np.float16)
    rows[5], rows[800] = np.nan, 0.5
    write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=400)
    opened, start = EmbeddingRows(tmp_path / "embeddings"), rows[[0, 10, 20, 30]].astype(np.float32)
    start[3] = 900  # nobody's: it is given the row that is farthest from its centroid, whoever reads it
    usable = np.ones(1000, dtype=bool)
    usable[[5, 800]] = False
    np.save(tmp_path / "usable.npy", usable)
    np.save(tmp_path / "start.npy", start)
    device = torch.device("cpu")
    scan = kmeans_passes.scan_rows(opened, 500, 0, nothing)
    assert np.array_equal(scan.usable, usable)
    assert (scan.not_finite, scan.constant) == (1, 1)
    alone = kmeans_passes.lloyd_pass(opened, usable, start, device, nothing)
    labels, distances = kmeans_passes.assign_pass(opened, usable, start, device, nothing)
    start_processes(pass_of_one_rank, args=(2, str(tmp_path)), nprocs=2, start_method="spawn")
    for rank in range(2):
        found = np.load(tmp_path / f"rank_{rank}.npz")
        assert np.array_equal(found["usable"], usable)
        assert found["counts"].tolist() == [1, 1]
        assert np.array_equal(found["sample"], scan.sample)
        assert np.allclose(found["centroids"], alone.centroids, rtol=1e-5, atol=1e-5)
        assert found["inertia"] == pytest.approx(alone.inertia)
        assert np.array_equal(found["labels"], labels)
        assert np.allclose(found["distances"], distances, equal_nan=True)


@pytest.mark.gpu
def test_cuml_agrees_with_scikit_learn() -> None:
    pytest.importorskip("cupy")
    pytest.importorskip("cuml")
    rows = planted(20_000)
    start = SklearnKMeans().start(rows, 60, 0)
    ours, theirs = (backend.fit(rows, start, 300) for backend in (CumlKMeans(), SklearnKMeans()))
    assert ours.inertia == pytest.approx(theirs.inertia, rel=0.01)
    assert CumlKMeans().start(rows, 60, 0).shape == (60, 16)


@pytest.mark.gpu
def test_passes_on_a_gpu_give_what_the_cpu_gives(tmp_path: Path) -> None:
    rows = planted(20_000).astype(np.float16)
    write_embeddings(tmp_path, rows, rows_per_shard=6000)
    opened, start, usable = EmbeddingRows(tmp_path), rows[:50].astype(np.float32), np.ones(20_000, dtype=bool)
    results = [kmeans_passes.lloyd_pass(opened, usable, start, torch.device(name), nothing) for name in ("cpu", "cuda")]
    assert results[1].inertia == pytest.approx(results[0].inertia, rel=1e-3)
    assert np.allclose(results[0].centroids, results[1].centroids, atol=0.02)


def test_a_row_is_no_distance_from_its_own_centroid_where_all_share_an_offset(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(10, 0.1, (64, 768)).astype(np.float16)
    write_embeddings(tmp_path, rows)
    centroids, everything = rows.astype(np.float32), np.ones(64, dtype=bool)
    opened, device = EmbeddingRows(tmp_path), torch.device("cpu")
    labels, distances = kmeans_passes.assign_pass(opened, everything, centroids, device, nothing)
    assert labels.tolist() == list(range(64))
    assert distances.max() < 0.01, "nearest other row: about 3.9"
    found = kmeans_passes.lloyd_pass(opened, everything, centroids, device, nothing)
    assert np.abs(found.centroids - centroids).max() < 1e-5
    assert found.inertia < 0.01
    assert assign(centroids, centroids)[1].max() < 1e-4
