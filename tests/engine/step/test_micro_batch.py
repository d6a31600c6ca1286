"""`optim.accumulation: auto`: as few parts as fit, the same clips whatever it takes."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import TINY, make_corpus

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.pretrain import pretrain
from trocar.engine.ranks.distributed import World
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step import micro_batch
from trocar.engine.step.dry_run import dry_run_alone
from trocar.engine.step.micro_batch import (
    clips_of_rank,
    fewest_parts,
    fit_batch,
    memory_bytes,
    possible_parts,
    step_memory,
)
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.decode.loader import BaseClipLoader

CPU = torch.device("cpu")


def config(*settings: str) -> Config:
    return load_config("demo_cpu", [*TINY, "data.corpus=none", "run.dir=none", "optim.accumulation=auto", *settings])


def world(ranks: int) -> World:
    return World(CPU, 0, ranks, 0, ranks)


def test_the_batch_is_the_same_whatever_auto_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Draws and pixels bit for bit, losses within rounding; what was taken is in the run's config, what it held is said."""
    corpus, served = make_corpus(tmp_path / "corpus"), []
    following = BaseClipLoader.__next__

    def recorded(self: Any) -> ClipBatch:
        batch = following(self)
        served.extend(zip(batch.numbers.tolist(), batch.draws.tolist(), map(checksum, batch.frames), strict=True))
        return batch

    monkeypatch.setattr(BaseClipLoader, "__next__", recorded)
    monkeypatch.setattr(micro_batch, "step_memory", lambda *_: micro_batch.StepMemory(1.0, 1.0))
    monkeypatch.setattr(micro_batch, "memory_bytes", lambda _: 4.0)  # 0.85 of it: two clips beside what is fixed
    clips, losses = {}, {}
    for accumulation in ("1", "2", "4", "auto"):
        folder = tmp_path / accumulation
        settings = [f"data.corpus={corpus}", f"run.dir={folder}", *TINY, "optim.batch=4", "optim.steps=3"]
        pretrain(
            load_config("demo_cpu", [*settings, f"optim.accumulation={accumulation}"]), progress=accumulation == "auto"
        )
        clips[accumulation] = [*served]
        losses[accumulation] = [row["loss"] for row in read_metrics(folder)]
        served.clear()
    assert [number for number, _, _ in clips["1"][:12]] == list(range(12))
    for accumulation in ("2", "4", "auto"):
        assert clips[accumulation][:12] == clips["1"][:12]
        assert losses[accumulation] == pytest.approx(losses["1"], rel=1e-5)
    assert load_config(tmp_path / "auto" / "config.yaml").optim.accumulation == 2
    said = capsys.readouterr().err
    assert "optim.accumulation: auto takes 2 parts, 2 clips on a rank at a time" in said
    assert "GB at most in the first 3 steps" in said


def checksum(clip: torch.Tensor) -> int:
    return zlib.crc32(clip.numpy().tobytes())


@pytest.mark.parametrize(
    ("ranks", "room", "parts"), [(1, 64, 1), (1, 63, 2), (8, 8, 1), (8, 7, 2), (8, 4, 2), (8, 1, 8)]
)
def test_as_few_parts_as_fit(ranks: int, room: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 64 clips, where a rank has room for so many at a time."""
    monkeypatch.setattr(micro_batch, "step_memory", lambda *_: micro_batch.StepMemory(5.0, 1.0))
    monkeypatch.setattr(micro_batch, "memory_bytes", lambda _: (5 + room) / (1 - micro_batch.MARGIN) + 1e-9)
    monkeypatch.setattr(micro_batch, "CPU_CLIPS", 64)
    assert fewest_parts(config("optim.batch=64"), world(ranks)) == parts
    assert fit_batch(config("optim.batch=64", "optim.accumulation=4"), world(ranks)).optim.accumulation == 4


@pytest.mark.parametrize(("ranks", "clips", "parts"), [(1, 64, 8), (2, 64, 4), (16, 64, 1), (1, 66, 11), (1, 11, 11)])
def test_parts_are_small_on_a_cpu(ranks: int, clips: int, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much memory there is: at most eight clips of a rank, where the batch divides so."""
    monkeypatch.setattr(micro_batch, "step_memory", lambda *_: micro_batch.StepMemory(1.0, 1.0))
    monkeypatch.setattr(micro_batch, "memory_bytes", lambda _: 1e12)
    assert fewest_parts(config(f"optim.batch={clips}"), world(ranks)) == parts


def test_what_does_not_fit_is_tried_in_the_smallest_parts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(micro_batch, "step_memory", lambda *_: micro_batch.StepMemory(5.0, 1.0))
    monkeypatch.setattr(micro_batch, "memory_bytes", lambda _: 1.0)
    assert fewest_parts(config("optim.batch=64"), world(8)) == 8
    assert "more than there should be" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="leave some of 8 ranks without a clip"):
        fewest_parts(config("optim.batch=4"), world(8))


def test_views_of_a_span_stay_on_one_rank() -> None:
    several = config("optim.batch=16", "data.views_per_span=4")
    assert possible_parts(several, world(2)) == [1, 2]
    assert [clips_of_rank(several, world(2), parts) for parts in (1, 2)] == [8, 4]


def test_the_memory_of_a_step_is_the_dry_runs() -> None:
    """Of another number of clips than was traced; shards of the state are counted as such."""
    asked = config("optim.batch=16")
    memory = step_memory(asked, world(1))
    run = dry_run_alone(config("optim.batch=16", "optim.accumulation=1"))
    held = run.weights + run.gradients + run.optimizer + run.activations + run.clips_waiting
    assert memory.of(16) == pytest.approx(held, rel=0.05)
    state = run.weights + run.gradients + run.optimizer
    assert step_memory(asked, world(4)).fixed - memory.fixed == pytest.approx(run.gradients, abs=1)
    sharded = step_memory(config("optim.batch=16", "run.sharding=full"), world(4))
    assert memory.fixed - sharded.fixed == pytest.approx(0.75 * state, abs=1)
    assert sharded.per_clip == pytest.approx(memory.per_clip)


def test_a_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory_bytes(world(1))
    assert whole > 1 << 28
    monkeypatch.setattr(micro_batch, "CONTROL_GROUP", tmp_path / "memory.max")
    for text, limit in (("max\n", None), ("1000000\n", 1_000_000)):
        (tmp_path / "memory.max").write_text(text)
        assert memory_bytes(world(1)) >= whole if limit is None else memory_bytes(world(1)) == limit
    assert memory_bytes(world(4)) == 250_000


def test_where_no_rank_is_at_hand_a_number_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"optim\.accumulation: 'auto' depends on a rank's memory"):
        _ = config("optim.batch=8").optim.clips_at_once
    with pytest.raises(ConfigError, match=r"optim\.accumulation"):
        config("optim.accumulation=most")
    assert np.isclose(micro_batch.StepMemory(2.0, 3.0).of(4), 14.0)
