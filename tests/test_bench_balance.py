"""The bench of balance and of clustering: they run, and say what they measured."""

from __future__ import annotations

import numpy as np
import pytest

from trocar.bench import balance
from trocar.bench.balance import ARMS, bench_balance, table
from trocar.bench.balance_corpus import DOMAINS
from trocar.bench.clustering import bench_clustering
from trocar.bench.clustering import table as clustering_table


def test_a_paired_interval_knows_a_gain_from_noise() -> None:
    generator = np.random.default_rng(0)
    base = generator.uniform(0.4, 0.6, (3, 8))
    gained = balance._resampled({"unbalanced": base, "balanced": base + 0.2}, generator)
    low, high = np.percentile(gained["balanced"] - gained["unbalanced"], [2.5, 97.5])
    assert low == pytest.approx(0.2) == high
    noise = balance._resampled({"unbalanced": base, "balanced": generator.permuted(base, axis=1)}, generator)
    low, high = np.percentile(noise["balanced"] - noise["unbalanced"], [2.5, 97.5])
    assert low < 0 < high


@pytest.mark.slow
def test_bench_balance_runs() -> None:
    rows = bench_balance(seeds=1, steps=2, spans=100, judged_spans=8, tell=lambda line: None)
    assert [row["domain"] for row in rows] == [*DOMAINS, "worst domain"]
    for row in rows:
        assert row["gain_low"] <= row["gain_high"]
        assert all(0 <= row[arm] <= 1 for arm in ARMS)
    assert rows[-1]["balanced"] == min(row["balanced"] for row in rows[:-1])
    assert table(rows).count("\n") == 6


def test_bench_clustering_measures_a_process_of_its_own() -> None:
    row = bench_clustering(4000, 16, (40, 4), sample_per_cluster=20, threads=1)
    assert row["passes"] in (2, 5)
    assert 50e6 < row["peak_resident_bytes"] < 3e9
    assert row["seconds"] >= sum(row["steps"].values()) - 0.5
    assert "4,000 x 16" in clustering_table([row])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_scale() -> None:
    """5 M rows of 384: five passes in under 20 minutes below 3 GB, at a cost per row that is no higher than at half a million."""
    levels = (2000, 200, 20)
    small, large = (bench_clustering(rows, 384, levels) for rows in (500_000, 5_000_000))
    print(clustering_table([small, large]))
    assert large["passes"] <= 5
    assert large["seconds"] < 20 * 60
    assert large["peak_resident_bytes"] < 3e9
    passes = [name for name in large["steps"] if name != "level_1"]
    per_row = [sum(row["steps"][name] for name in passes) / row["rows"] for row in (small, large)]
    assert per_row[1] < 1.5 * per_row[0]
