"""Trees: as good as scikit-learn's k-means, even over planted classes, resumable, and clear about bad rows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from killing import started
from planted import SPAN_FRAMES, SPANS_PER_VIDEO, PlantedCorpus, long_tail, write_embeddings
from sklearn.cluster import KMeans, kmeans_plusplus

from trocar.loaders.corpus.corpus import CorpusError
from trocar.loaders.curate import kmeans_passes
from trocar.loaders.curate.cluster import cluster_embeddings, default_levels
from trocar.loaders.curate.duplicates import _nearest_before
from trocar.loaders.curate.embeddings import EmbeddingRows, shard_path
from trocar.loaders.curate.settings import ClusterSettings
from trocar.loaders.draw.phases import DrawSettings, plan_order
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.draw.shares import leaf_quotas
from trocar.loaders.draw.tree import ClusterTree

SHARES, PROCEDURES, DRAWS = [0.85, 0.10, 0.04, 0.01], 3, 20_000


def scikit_learn(rows: np.ndarray, clusters: int, **options: Any) -> Any:
    """A fitted KMeans, whose hints know less than it takes."""
    return KMeans(clusters, max_iter=300, **options).fit(rows)


def nothing(_: int) -> None:
    pass


def balanced_weights(tree: ClusterTree, balance: float) -> np.ndarray:
    """(N,) the share of the draws that each span gets."""
    used = np.bincount(tree.leaf, minlength=len(tree.paths)) > 0
    order = np.flatnonzero(used)[np.lexsort(tree.paths[used].T[::-1])]
    sizes = np.bincount(tree.leaf, minlength=len(tree.paths))[order]
    free = np.full(len(order), np.inf)
    shares = np.zeros(len(tree.paths))
    shares[order] = leaf_quotas(tree.paths[order], sizes, 1, [balance] * tree.paths.shape[1], free) / sizes
    return shares[tree.leaf]


def divergence(classes: np.ndarray, weights: np.ndarray) -> float:
    """Kullback-Leibler divergence of the classes' shares from uniform, in nats."""
    shares = np.bincount(classes, weights)
    return float((shares * np.log(np.maximum(shares, 1e-12) * len(shares))).sum())


def drawn_rows(tree: Path, rows: int, balance: float, seed: int) -> np.ndarray:
    """The embedded rows that the clips of draws 0 .. 19,999 are cut from."""
    corpus: Any = PlantedCorpus(rows)
    grid = Sampler(corpus.frames, num_frames=16, stride=4)
    order = plan_order(corpus, [DrawSettings(tree=str(tree), balance=balance)], grid, seed).order
    sampler = Sampler(corpus.frames, num_frames=16, stride=4, seed=seed, order=order)
    video, first_frame, _ = order.spans(np.arange(DRAWS))
    videos, frames, _ = sampler.frames(np.arange(DRAWS))
    assert np.array_equal(videos, video)
    assert (np.abs(frames[:, 0] - first_frame) < SPAN_FRAMES).all()
    return video * SPANS_PER_VIDEO + first_frame // SPAN_FRAMES


@pytest.mark.parametrize("seed", [0, 1])
def test_20_000_balanced_draws_are_even_over_planted_classes(seed: int, tmp_path: Path) -> None:
    rows, domains, procedures = long_tail(SHARES, PROCEDURES, 6000, 24, seed)
    write_embeddings(tmp_path / "embeddings", rows)
    settings = ClusterSettings(levels=(96, 12, 4), seed=seed)
    summary = cluster_embeddings(tmp_path / "embeddings", tmp_path / "tree", settings, progress=False)
    assert summary.levels == [96, 12, 4]
    assert summary.passes == 2
    even = drawn_rows(tmp_path / "tree", len(rows), 1, seed)
    assert np.abs(np.bincount(domains[even]) / DRAWS - 0.25).max() < 0.05
    assert (np.abs(np.log(12 * np.bincount(procedures[even], minlength=12) / DRAWS)) < np.log(1.5)).all()
    as_it_is = drawn_rows(tmp_path / "tree", len(rows), 0, seed)
    for classes in (domains, procedures):
        shares = np.bincount(classes) / len(rows)
        gaps = np.abs(np.bincount(classes[as_it_is], minlength=len(shares)) / DRAWS - shares)
        assert (gaps < 4 * np.sqrt(shares / DRAWS)).all()
    assert np.bincount(as_it_is, minlength=len(rows)).max() == 4  # 6,000 spans, each 3 or 4 times


def in_memory_tree(rows: np.ndarray, levels: tuple[int, ...]) -> tuple[ClusterTree, list[float], np.ndarray]:
    """The exact hierarchical draw: scikit-learn's k-means on all rows, then on centroids. Also the inertias and the leaves'
    start."""
    values = rows.astype(np.float32)
    start = kmeans_plusplus(values, levels[0], random_state=3)[0]
    model = scikit_learn(values, levels[0], init=start, n_init=1)
    inertia, leaf, parents = [model.inertia_], model.labels_, []
    for clusters in levels[1:]:
        model = scikit_learn(model.cluster_centers_, clusters, n_init=10, random_state=3)
        inertia.append(model.inertia_)
        parents.append(model.labels_)
    node, columns = np.arange(levels[0]), [np.arange(levels[0])]
    for labels in parents:
        node = labels[node]
        columns.insert(0, node)
    empty = np.full(len(leaf), np.nan, dtype=np.float32)
    zeros = np.zeros(len(leaf), dtype=np.int32)
    paths = np.stack(columns, axis=1).astype(np.int32)
    tree = ClusterTree([], zeros, zeros.astype(np.int64), zeros, leaf.astype(np.int32), empty, empty, paths)
    return tree, inertia, start.astype(np.float32)


@pytest.mark.slow
def test_inertia_and_evenness_against_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of core: a sample of a tenth, three passes that refine, one that assigns."""
    monkeypatch.setattr("trocar.loaders.curate.cluster.LEAST_SAMPLE", 2000)
    monkeypatch.setattr(kmeans_passes, "BLOCK_ROWS", 3000)
    levels = (60, 12, 4)
    rows, _, procedures = long_tail(SHARES, PROCEDURES, 20_000, 24, 5)
    write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=7000)
    exact, inertia, start = in_memory_tree(rows, levels)
    settings = ClusterSettings(levels=levels, resampling=0, sample_per_cluster=33)
    made = cluster_embeddings(tmp_path / "embeddings", tmp_path / "same", settings, start=start, progress=False)
    assert made.passes == 5
    assert made.inertia[0] <= 1.01 * inertia[0]
    # On the levels above against scikit-learn on the same centroids.
    for level in (1, 2):
        below = np.load(tmp_path / "same" / f"centroids_{level}.npy")
        reference = scikit_learn(below, levels[level], n_init=10, random_state=0)
        assert made.inertia[level] <= 1.01 * reference.inertia_
    settings = ClusterSettings(levels=levels)
    cluster_embeddings(tmp_path / "embeddings", tmp_path / "ours", settings, progress=False)
    ours = divergence(procedures, balanced_weights(ClusterTree.read(tmp_path / "ours"), 1))
    assert ours <= divergence(procedures, balanced_weights(exact, 1)) + 1e-9
    assert ours < divergence(procedures, np.full(len(rows), 1 / len(rows)))


def test_what_is_written(tmp_path: Path) -> None:
    rows, *_ = long_tail([0.7, 0.3], 2, 1000, 16, 2)
    write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=300)
    out = tmp_path / "tree"
    summary = cluster_embeddings(tmp_path / "embeddings", out, ClusterSettings(levels=(20, 4)), progress=False)
    tree = ClusterTree.read(out)
    values = rows.astype(np.float32)
    leaves, above = np.load(out / "centroids_1.npy"), np.load(out / "centroids_2.npy")
    gaps = np.linalg.norm(values[:, None] - leaves[None], axis=2)
    assert np.array_equal(tree.leaf, gaps.argmin(axis=1))
    assert tree.distance == pytest.approx(gaps.min(axis=1), rel=1e-3)
    assert np.array_equal(tree.paths[:, 1], np.arange(len(tree.paths)))
    assert tree.paths[:, 0].max() < len(above) == 4
    assert tree.video_ids[tree.video[999]] == f"{49:016x}"
    assert (tree.first_frame[41], tree.span_frames[41]) == (61, 61)
    nodes = pq.read_table(out / "nodes.parquet").to_pylist()
    assert [(node["level"], node["node"]) for node in nodes] == [(1, i) for i in range(20)] + [(2, i) for i in range(4)]
    assert sum(node["spans"] for node in nodes[:20]) == sum(node["spans"] for node in nodes[20:]) == 1000
    for node in nodes[:20]:
        assert {int(tree.leaf[row]) for row in node["exemplars"]} <= {node["node"]}
        members = np.flatnonzero(tree.leaf == node["node"])
        if len(members):
            assert node["exemplars"][0] == members[tree.distance[members].argmin()]
    assert summary.inertia[0] == pytest.approx((gaps.min(axis=1) ** 2).sum(), rel=1e-3)
    # The same call again has nothing to do; another one is refused.
    again = cluster_embeddings(tmp_path / "embeddings", out, ClusterSettings(levels=(20, 4)), progress=False)
    assert again == summary
    with pytest.raises(CorpusError, match=r"other embeddings or settings \(.*levels was \[20, 4\], is \[20, 5\]\)"):
        cluster_embeddings(tmp_path / "embeddings", out, ClusterSettings(levels=(20, 5)), progress=False)


def test_near_duplicates_are_found_and_one_of_each_stays(tmp_path: Path) -> None:
    rows, *_ = long_tail([0.7, 0.3], 2, 400, 16, 2)
    rows = np.concatenate([rows, rows[:50], rows[:50] + np.float16(0.002)])
    write_embeddings(tmp_path / "embeddings", rows)
    summary = cluster_embeddings(
        tmp_path / "embeddings", tmp_path / "tree", ClusterSettings(levels=(10, 2)), progress=False
    )
    tree = ClusterTree.read(tmp_path / "tree")
    near = tree.duplicate_distance < 0.05
    groups = np.concatenate([np.arange(400), np.arange(50), np.arange(50)])
    assert near.sum() == 100
    assert len(np.unique(groups[~near])) == 400
    assert summary.duplicates_measured == 500
    assert next(iter(summary.near_duplicates.values())) == pytest.approx(0.2)


def test_copies_are_found_where_all_rows_share_an_offset() -> None:
    """fp16 rows around 10 with a deviation of 0.1: the rounding of uncentred products is larger than the threshold."""
    rows = np.random.default_rng(0).normal(10, 0.1, (300, 768)).astype(np.float16)
    centre = rows.mean(axis=0, dtype=np.float32)
    threshold = 0.05 * np.sqrt(((rows - centre) ** 2).sum(axis=1).mean())
    nearest = _nearest_before(np.concatenate([rows, rows]))
    assert (nearest[300:] < threshold / 5).all()
    assert (nearest[1:300] > 20 * threshold).all()


CHILD = """
import sys
from trocar.loaders.curate.cluster import ClusterSettings, cluster_embeddings
cluster_embeddings(sys.argv[1], sys.argv[2], ClusterSettings(levels=(40, 8), resampling=0, sample_per_cluster=20), progress=False)
"""


def test_killed_anywhere_it_ends_with_the_same_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is made to fail once, after the steps before it; then the call is repeated."""
    monkeypatch.setattr("trocar.loaders.curate.cluster.LEAST_SAMPLE", 500)
    rows, *_ = long_tail(SHARES, PROCEDURES, 3000, 16, 4)
    write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=700)
    settings = ClusterSettings(levels=(40, 8), resampling=0, sample_per_cluster=20)
    cluster_embeddings(tmp_path / "embeddings", tmp_path / "whole", settings, progress=False)
    whole = ClusterTree.read(tmp_path / "whole")
    calls = 0
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == fails_at:
            raise KeyboardInterrupt
        replace(source, target)

    fails_at = 0
    monkeypatch.setattr(os, "replace", killed)
    cluster_embeddings(tmp_path / "embeddings", tmp_path / "counted", settings, progress=False)
    steps = calls
    assert steps >= 9  # identity, scan, level 1, three refinements, assignment, nodes, tree, summary
    for fails_at in range(1, steps + 1):
        calls, out = 0, tmp_path / f"killed_{fails_at}"
        with pytest.raises(KeyboardInterrupt):
            cluster_embeddings(tmp_path / "embeddings", out, settings, progress=False)
        cluster_embeddings(tmp_path / "embeddings", out, settings, progress=False)
        assert ClusterTree.read(out).digest == whole.digest, fails_at


@pytest.mark.slow
def test_sigkill_at_any_time(tmp_path: Path) -> None:
    rows, *_ = long_tail(SHARES, PROCEDURES, 30_000, 32, 4)
    write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=7000)
    command = [sys.executable, "-c", CHILD, str(tmp_path / "embeddings")]
    process = started([*command, str(tmp_path / "whole")], tmp_path / "whole")
    begun = time.monotonic()
    assert process.wait() == 0
    seconds = time.monotonic() - begun
    whole = ClusterTree.read(tmp_path / "whole").digest
    inside = 0
    for number, share in enumerate(np.linspace(0.02, 0.95, 8)):
        out = tmp_path / f"killed_{number}"
        process = started([*command, str(out)], out)
        time.sleep(share * seconds)
        process.send_signal(signal.SIGKILL)
        inside += process.wait() == -signal.SIGKILL
        subprocess.run([*command, str(out)], check=True)
        assert ClusterTree.read(out).digest == whole
    assert inside >= 4, "kills fell behind the work"


def cluster_by(processes: int, folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`trocar cluster` as torchrun starts it; 100,000 rows are four blocks, and more than the sample in memory.

    On one thread a process: with other numbers the fit in memory adds in another order, and a start's small differences grow.
    """
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    options = ["--levels", "40,8", "--resampling", "0", "--restarts", "1", "--passes", "4", "--device", "cpu"]
    command = [sys.executable, *launch, "-m", "trocar.engine.cli", "cluster", str(folder), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@pytest.mark.slow
def test_two_processes_make_the_tree_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They go on, too, where one was killed: its rows are checked, nothing is clustered."""
    rows, *_ = long_tail(SHARES, PROCEDURES, 100_000, 8, 6)
    rows[99_999] = np.nan
    folder = write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=30_000)
    settings = ClusterSettings(levels=(40, 8), resampling=0, restarts=1, passes=4)
    finished = cluster_by(1, folder, tmp_path / "alone")
    assert finished.returncode == 0, finished.stderr
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == "level_1.npz":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        cluster_embeddings(folder, tmp_path / "together", settings, progress=False)
    assert (tmp_path / "together" / "state" / "scan.npz").exists()
    finished = cluster_by(2, folder, tmp_path / "together")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.count("99,999 spans in 40 / 8 clusters, 4 passes") == 1
    one, two = (ClusterTree.read(tmp_path / name) for name in ("alone", "together"))
    assert (one.leaf == two.leaf).mean() > 0.9999  # sums in another order: a row halfway between two may change sides
    assert two.distance == pytest.approx(one.distance, rel=1e-4, nan_ok=True)
    assert np.array_equal(one.paths, two.paths)
    alone, together = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("alone", "together"))
    assert together["inertia"] == pytest.approx(alone["inertia"], rel=1e-5)


def test_bad_rows_are_left_out_and_reported(tmp_path: Path) -> None:
    rows, *_ = long_tail([0.7, 0.3], 2, 1000, 16, 2)
    rows[3], rows[500, 7], rows[501], rows[999] = np.nan, np.inf, 0, 0.25
    write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=300)
    summary = cluster_embeddings(
        tmp_path / "embeddings", tmp_path / "tree", ClusterSettings(levels=(20, 4)), progress=False
    )
    assert (summary.spans, summary.not_finite, summary.constant) == (996, 2, 2)
    assert "4 spans are left out" in "\n".join(summary.lines())
    tree = ClusterTree.read(tmp_path / "tree")
    assert np.flatnonzero(tree.leaf < 0).tolist() == [3, 500, 501, 999]
    assert np.isnan(tree.distance[[3, 500, 501, 999]]).all()


@pytest.mark.parametrize("kind", ["few", "same", "nan"])
def test_fewer_rows_than_clusters(kind: str, tmp_path: Path) -> None:
    rows, *_ = long_tail([0.7, 0.3], 2, 60, 8, 2)
    if kind == "same":
        rows[:] = rows[0]
    if kind == "nan":
        rows[5:] = np.nan
    write_embeddings(tmp_path / "embeddings", rows[:10] if kind == "few" else rows)
    with pytest.raises(CorpusError, match=r"clusters of .* too many; ask for fewer with --levels"):
        cluster_embeddings(tmp_path / "embeddings", tmp_path / "tree", ClusterSettings(levels=(20, 4)), progress=False)


def test_an_empty_cluster_is_given_the_farthest_row(tmp_path: Path) -> None:
    rows, *_ = long_tail([0.7, 0.3], 2, 500, 8, 2)
    rows[77] = 100 + np.arange(8)
    write_embeddings(tmp_path / "embeddings", rows)
    opened = EmbeddingRows(tmp_path / "embeddings")
    start = rows[[0, 1, 2]].astype(np.float32)
    start[2] = -1000
    result = kmeans_passes.lloyd_pass(
        opened, np.ones(500, dtype=bool), start, kmeans_passes.torch.device("cpu"), nothing
    )
    assert result.empty == 1
    assert np.array_equal(result.centroids[2], rows[77].astype(np.float32))


def damaged(folder: Path, how: str) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    if how == "shard":
        shard_path(folder, 1).unlink()
    elif how == "short":
        shard_path(folder, 1).write_bytes(shard_path(folder, 1).read_bytes()[:-10])
    elif how == "garbage":
        shard_path(folder, 1).write_bytes(b"not a shard")
    elif how == "manifest":
        (folder / "manifest.json").unlink()
    elif how == "json":
        (folder / "manifest.json").write_text("{")
    elif how == "width":
        (folder / "manifest.json").write_text(json.dumps({**manifest, "width": 9}))
    elif how == "spans":
        pq.write_table(pq.read_table(folder / "spans.parquet").slice(0, 5), folder / "spans.parquet")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("shard", r"00001.npy: missing, and 0 more of 2 shards; finish"),
        ("short", r"00001.npy: holds .* embed again after mv "),
        ("garbage", r"00001.npy: damaged"),
        ("manifest", r"manifest.json: missing; embed again"),
        ("json", r"manifest.json: damaged"),
        ("width", r"holds .* the manifest says \(300, 9\)"),
        ("spans", r"spans.parquet: has 5 spans, the manifest 500"),
    ],
)
def test_damaged_embeddings(how: str, message: str, tmp_path: Path) -> None:
    rows, *_ = long_tail([0.7, 0.3], 2, 500, 8, 2)
    folder = write_embeddings(tmp_path / "embeddings", rows, rows_per_shard=300)
    damaged(folder, how)
    with pytest.raises(CorpusError, match=message):
        cluster_embeddings(folder, tmp_path / "tree", ClusterSettings(levels=(10, 2)), progress=False)


@pytest.mark.parametrize(
    "wrong", [dict(levels=(4, 20)), dict(levels=()), dict(passes=6), dict(passes=1), dict(restarts=0), dict(seed=-1)]
)
def test_refuses_settings(wrong: dict) -> None:
    with pytest.raises(CorpusError):
        ClusterSettings(**wrong)


def test_levels_by_default() -> None:
    assert default_levels(3_400_000) == (3688, 369, 37)
    assert default_levels(5_000_000) == (4472, 447, 45, 4)
    assert default_levels(400) == (40, 4)
    assert default_levels(20) == (5,)
    for rows in range(8, 5000, 37):
        ClusterSettings(levels=default_levels(rows))
