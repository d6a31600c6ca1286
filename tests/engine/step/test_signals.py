"""Collapse made visible: the signals themselves, and runs that collapse or do not."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from textures import FRAMES, SIDE, moving_textures

from trocar.bench.training.collapse import collapse_row, rank_trend, table
from trocar.engine.config.file import load_config
from trocar.engine.demo import make_videos
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step import signals
from trocar.engine.step.signals import COLLAPSED_SHARE, MEMORY_STEPS, CollapseWatch, rankme, window_clips
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.ssl.block_masks import MultiBlockMask
from trocar.ssl.choices import BlockRecipe
from trocar.ssl.encoder import VideoEncoder
from trocar.ssl.jepa import JointEmbedding
from trocar.ssl.predictor import MeanOfContext, Predictor


def test_rankme_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(64, 5, generator=generator))
    scores, _ = torch.linalg.qr(torch.randn(300, 5, generator=generator))
    assert rankme(scores @ basis.T) == pytest.approx(5, rel=1e-3)
    assert rankme(torch.ones(300, 64)) == pytest.approx(1, rel=1e-3)
    sizes = torch.tensor([4.0, 2.0, 1.0, 1.0, 0.0])
    share = sizes[:4] / 8
    assert rankme(scores @ torch.diag(sizes) @ basis.T) == pytest.approx(
        float((-(share * share.log()).sum()).exp()), rel=1e-3
    )
    assert np.isnan(rankme(torch.tensor([[1.0, float("nan")]])))


def follow(
    deviations: list[float], spread: list[float], rows: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Rows of a run whose batches of 32 clips have these deviations, with features of such spread beside their first direction."""
    watch, found = CollapseWatch(rows or [], tell=False), []
    generator = torch.Generator().manual_seed(1)
    start = len(rows or [])
    for step, (deviation, width) in enumerate(zip(deviations, spread, strict=True), start=start + 1):
        pooled = torch.randn(32, 16, generator=generator) * width
        pooled[:, 0] += 1
        watch.observe(SimpleNamespace(observed={"pooled": pooled}), step)  # pyright: ignore[reportArgumentType]
        row = {"step": step, "loss": 1 / step, "feature_std": deviation}
        watch.complete(row)
        found.append(row)
    return found


def test_rankme_is_taken_of_few_steps() -> None:
    assert [window_clips(batch) for batch in (2, 8, 20, 32, 384)] == [64, 64, 160, 256, 256]
    watch = CollapseWatch([], tell=False)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    for step in range(1, 31):  # each step's target encoder has a direction of its own
        watch.observe(SimpleNamespace(observed={"pooled": basis[step].expand(8, -1)}), step)  # pyright: ignore[reportArgumentType]
        row = {"step": step, "loss": 1.0, "feature_std": 1.0}
        watch.complete(row)
        if step in (20, 30):  # of 10 steps before
            assert row["rankme"] == pytest.approx(8, rel=1e-3)
        else:
            assert "rankme" not in row


def test_no_step_waits_for_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decomposition takes as long as nine steps here, and is another thread's."""
    threads, may_end = [], threading.Event()

    def slow(features: torch.Tensor) -> float:
        threads.append(threading.current_thread())
        assert may_end.wait(10) or threads[-1] is threading.main_thread()
        return float(len(features))

    monkeypatch.setattr(signals, "rankme", slow)
    watch, rows = CollapseWatch([], tell=False), []
    for step in range(1, 21):
        watch.observe(SimpleNamespace(observed={"pooled": torch.randn(32, 4)}), step)  # pyright: ignore[reportArgumentType]
        if step == 20:
            may_end.set()
        rows.append({"step": step, "loss": 1.0})
        watch.complete(rows[-1])
    assert [(row["step"], row["rankme"]) for row in rows if "rankme" in row] == [(20, 256.0)]
    assert threading.main_thread() not in threads


@pytest.mark.gpu
def test_nothing_waits_for_the_device() -> None:
    watch, row = CollapseWatch([], tell=False), {}
    pooled = torch.randn(64, 16, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 31):
            watch.observe(SimpleNamespace(observed={"pooled": pooled}), step)  # pyright: ignore[reportArgumentType]
            row = {"step": step, "loss": 1.0}
            watch.complete(row)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert row["rankme"] == pytest.approx(rankme(pooled.repeat(4, 1)))


def test_other_ranks_keep_nothing() -> None:
    watch, row = CollapseWatch([], write=False), {"step": 10, "loss": 1.0}
    watch.observe(SimpleNamespace(observed={"pooled": torch.randn(256, 4)}), 10)  # pyright: ignore[reportArgumentType]
    watch.complete(row)
    assert row == {"step": 10, "loss": 1.0}
    assert not watch._pooled


def test_collapse_is_flagged_by_either_signal_and_only_by_a_fall() -> None:
    steps = 150
    steady = follow([1.0] * steps, [1.0] * steps)
    assert not any(row["collapse"] for row in steady)
    ranks = [row["rankme"] for row in steady if "rankme" in row]
    assert len(ranks) == (steps - 8) // 10
    assert min(ranks) > 8
    falling = follow([1.0] * 60 + [0.9 * COLLAPSED_SHARE] * 90, [1.0] * steps)
    flagged = [row["step"] for row in falling if row["collapse"]]
    assert flagged == list(range(flagged[0], steps + 1))
    assert 60 < flagged[0] <= 60 + MEMORY_STEPS
    narrowing = follow([1.0] * steps, [1.0] * 60 + [0.001] * 90)
    assert not any(row["collapse"] for row in narrowing[:60])
    assert narrowing[-1]["collapse"]
    assert follow([1.0] * 60 + [0.6] * 90, [1.0] * steps)[-1]["collapse"] == 0
    assert steady[-1]["loss_trend"] < 0
    assert "loss_trend" not in steady[98]
    assert "loss_trend" in steady[99]


def test_a_resumed_run_remembers_its_start() -> None:
    deviations, spread = [1.0] * 60 + [0.3] * 90, [1.0] * 150
    whole = follow(deviations, spread)
    resumed = follow(deviations[80:], spread[80:], whole[:80])
    assert [row["collapse"] for row in resumed] == [row["collapse"] for row in whole[80:]]
    assert [row.get("loss_trend") for row in resumed] == [row.get("loss_trend") for row in whole[80:]]


def test_a_trend_is_told_from_scatter() -> None:
    first, last, error = rank_trend([3.0, 3.2, 3.1, 9, 9, 9, 3.1, 2.9, 3.0])
    assert (first, last, error) == pytest.approx((3.1, 3.0, (2 * 0.01 / 3) ** 0.5))


def test_an_objective_without_features_gets_the_trend_alone() -> None:
    watch = CollapseWatch([])
    rows = [{"step": step, "loss": 1.0} for step in range(1, 121)]
    for row in rows:
        watch.observe(SimpleNamespace(observed={}), row["step"])  # pyright: ignore[reportArgumentType]
        watch.complete(row)
    assert rows[-1] == {"step": 120, "loss": 1.0, "loss_trend": 0.0}


def rows_of_a_short_training(momentum: float, predicts: bool, steps: int = 40) -> list[dict[str, Any]]:
    """On batches of 32 moving textures, as `pretrain` watches it."""
    torch.manual_seed(0)
    encoder = VideoEncoder(24, 1, 2, frames=FRAMES, resolution=SIDE, patch=16, positions="axes")
    predictor = Predictor(24, 24, 1, 2, grid=encoder.grid, positions="axes") if predicts else MeanOfContext()
    model = JointEmbedding(encoder, predictor)
    source = MultiBlockMask(encoder.grid, (BlockRecipe(1, (0.4, 0.4)),))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, watch, rows = torch.optim.AdamW(trained, lr=1e-3), CollapseWatch([], tell=False), []
    pool, _ = moving_textures(256, 0)
    for step in range(1, steps + 1):
        numbers = np.arange((step - 1) * 32, step * 32)
        loss = model(pool[numbers % len(pool)], source(0, numbers, 0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_target(momentum)
        watch.observe(model, step)
        rows.append({"step": step, "loss": loss.item(), "feature_std": model.signals()["feature_std"].item()})
        watch.complete(rows[-1])
    return rows


def test_a_short_training_is_flagged_where_nothing_holds_it_open() -> None:
    sound, broken = rows_of_a_short_training(0.998, True), rows_of_a_short_training(0.0, False)
    assert not any(row["collapse"] for row in sound)
    assert sound[-1]["loss"] < 0.9 * sound[0]["loss"]
    assert any(row["collapse"] for row in broken)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small proxies of the clips in TROCAR_TEST_VIDEOS; without it, of made ones."""
    folder = tmp_path_factory.mktemp("corpus")
    real = os.environ.get("TROCAR_TEST_VIDEOS")
    videos = sorted(Path(real).glob("*.mp4")) if real else make_videos(folder / "videos", num_videos=16, seconds=10)
    index_corpus(videos, folder / "originals", workers=1, progress=False)
    pack_corpus(folder / "originals", folder / "packed", PackSettings(short_side=72), workers=1)
    return folder / "packed"


def run(corpus: Path, run_dir: Path, *settings: str) -> list[dict[str, Any]]:
    options = [f"data.corpus={corpus}", f"run.dir={run_dir}", "run.tensorboard=false", *settings]
    pretrain(load_config("demo_jepa_cpu", options), progress=False)
    rows = read_metrics(run_dir)
    ranks = [round(row["rankme"], 2) for row in rows if "rankme" in row]
    deviations = [round(row["feature_std"], 4) for row in rows]
    flagged = next((row["step"] for row in rows if row["collapse"]), None)
    print(
        f"\n{run_dir.name}: feature_std {deviations[0]} .. {deviations[-1]}, rankme {ranks}, collapse from step {flagged}"
    )
    return rows


BROKEN = ("optim.ema=[0, 0]", "model.predictor_depth=0")


@pytest.mark.slow
def test_real_clips_train_300_steps_without_collapse_and_a_broken_run_is_flagged(corpus: Path, tmp_path: Path) -> None:
    rows = run(corpus, tmp_path / "healthy")
    deviations = [row["feature_std"] for row in rows]
    assert len(rows) == 300
    assert np.mean(deviations[-MEMORY_STEPS:]) > 0.5 * np.mean(deviations[:MEMORY_STEPS])
    ranks = [row["rankme"] for row in rows if "rankme" in row]
    first, last, error = rank_trend(ranks)
    assert last - first > -2 * error, "it falls by more than its own scatter explains"
    assert not any(row["collapse"] for row in rows)
    broken = run(corpus, tmp_path / "broken", *BROKEN)
    print("\n" + table([collapse_row(tmp_path / name, name) for name in ("healthy", "broken")]))
    assert any(row["collapse"] for row in broken)


@pytest.mark.slow
def test_a_broken_run_is_flagged(tmp_path: Path) -> None:
    """Small made videos and clips, 90 steps: the sound setting is not flagged, the broken one is."""
    videos = make_videos(tmp_path / "videos", num_videos=6, seconds=4)
    index_corpus(videos, tmp_path / "corpus", workers=1, progress=False)
    small = (
        "optim.steps=90", "data.frames=4", "data.resolution=32", "data.stride=2", "data.views_per_span=4", "model.width=48",
        "model.depth=2",
    )  # fmt: skip
    assert not any(row["collapse"] for row in run(tmp_path / "corpus", tmp_path / "sound", *small))
    assert any(row["collapse"] for row in run(tmp_path / "corpus", tmp_path / "broken", *small, *BROKEN))
