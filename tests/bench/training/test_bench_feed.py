"""What decoding takes from the thread that trains, and what it delivers: measured, and held where a machine allows."""

from __future__ import annotations

import os
from pathlib import Path

import clips
import pytest
import torch

from trocar.bench.rows.row import read_rows
from trocar.bench.training import feed
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As proxies are: few pixels, closed GOPs of a clip."""
    folder = tmp_path_factory.mktemp("corpus")
    clips.write_numbered(folder / "0.mp4", 64, gop=16, width=320, height=256)
    index_corpus([folder], folder / "index", workers=1, content_box=False, progress=False)
    return folder / "index"


def test_rows_of_every_part(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SECONDS", 0.1)
    monkeypatch.setattr(feed, "ISSUING_SECONDS", 0.05)
    monkeypatch.setattr(feed, "DEEP", 1)
    monkeypatch.setattr(feed, "AHEAD", 1)
    monkeypatch.setattr(feed, "BATCH", 1)
    monkeypatch.setattr(feed, "BESIDE", (("1 decoding thread", {"threads": 1}),))
    monkeypatch.setattr(feed, "rate_arms", lambda cores: [("1 thread", {"threads": 1}), ("1 process", {"workers": 1})])
    rows = feed.bench_feed(corpus, device=torch.device("cpu"), stride=1, rounds=1, out=tmp_path / "rows.jsonl")
    assert read_rows(tmp_path / "rows.jsonl") == rows
    arms = {(row["part"], row["arm"]) for row in rows}
    expected = {("rates", "1 thread"), ("rates", "1 process")}
    if len(os.sched_getaffinity(0)) > 1:
        expected |= {("contention", "alone"), ("contention", "1 decoding thread")}
    assert arms == expected
    assert all(row["clips_per_second"]["median"] > 0 for row in rows if row["part"] == "rates")
    assert "training thread, ms a clip" in feed.table(rows)
    assert [name for name, _ in feed.rate_arms(1)] == ["1 thread", "1 process"]


def test_arms_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, _ in feed.rate_arms(16)]
    assert names == ["1 thread", "2 threads", "15 threads", "1 process", "2 processes", "15 processes"]


@pytest.mark.slow
def test_processes_take_nothing_from_the_thread_that_trains(corpus: Path) -> None:
    """Less the time in which other work had the core; medians of rounds."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    rows = {row["arm"]: row for row in feed.contention(Corpus.open(corpus), 1, 8)}
    print({name: (row["operators_ms"], row["least_ms"]) for name, row in rows.items()})
    assert rows["2 decoding processes"]["against_alone"]["median"] < 1.1
    assert rows["4 decoding threads"]["against_alone"]["median"] > 1.5, "the measurement sees no contention"


@pytest.mark.slow
def test_processes_scale_and_hardly_touch_the_thread_that_trains(corpus: Path) -> None:
    """Two processes at least 1.8 times one, and 95 % of two threads; less than 0.2 ms of the training thread a clip."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    rows = {row["arm"]: row for row in feed.decoding_rates(Corpus.open(corpus), 1, 6)}
    best = {name: row["clips_per_second"]["high"] for name, row in rows.items()}
    print(best, rows["2 processes"]["training_thread_ms_per_clip"])
    assert rows["2 processes"]["training_thread_ms_per_clip"]["median"] < 0.2
    assert best["2 processes"] > 1.8 * best["1 process"]
    assert best["2 processes"] > 0.95 * best["2 threads"]
