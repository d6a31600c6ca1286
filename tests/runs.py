"""Runs of a few seconds, and when two of them count as the same."""

from __future__ import annotations

from pathlib import Path

import torch

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.record.metrics import read_metrics

TINY = [
    "data.frames=4",
    "data.stride=2",
    "data.resolution=32",
    "model.patch=8",
    "model.width=24",
    "model.heads=2",
    "model.depth=2",
    "model.decoder_depth=1",
    "model.decoder_width=24",
    "model.decoder_heads=2",
    "optim.batch=4",
    "optim.clip_gradient=1.0",
    "run.threads=1",
    "run.tensorboard=false",
]
TIMINGS = {"clips_per_second", "spans_per_second", "data_wait_percent"}


def without_timings(run_dir: Path) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read_metrics(run_dir)]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(run_dir)[-1]).model


def assert_same_run(run_dir: Path, expected: Path) -> None:
    assert without_timings(run_dir) == without_timings(expected)
    actual, wanted = weights(run_dir), weights(expected)
    assert actual.keys() == wanted.keys()
    assert all(torch.equal(actual[name], wanted[name]) for name in wanted)
