"""A JEPA on 1, 2 and 4 ranks: unequal masks, packed on each rank apart, and the same losses, weights and target."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ranks import TINY, make_corpus, run_ranks, train_made

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.record.metrics import read_metrics

JEPA = [
    "objective.kind=jepa", "data.resolution=32", "model.predictor_width=24", "model.predictor_heads=2", "model.predictor_depth=1",
    "optim.steps=3", "optim.ema=[0.9, 0.99]",
]  # fmt: skip


@pytest.mark.parametrize(
    ("bucket", "sizes"), [(64, (2,)), *(pytest.param(bucket, (2, 4), marks=pytest.mark.slow) for bucket in (1, 64))]
)
def test_packing_loses_nothing_on_any_number_of_ranks(bucket: int, sizes: tuple[int, ...], tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "videos")

    def settings(name: str) -> list[str]:
        return [*TINY, *JEPA, f"objective.bucket={bucket}", f"data.corpus={corpus}", f"run.dir={tmp_path / name}"]

    train_made(settings("one"))
    expected = read_metrics(tmp_path / "one")
    wanted = load_checkpoint(checkpoints(tmp_path / "one")[-1]).model
    assert any(name.startswith("target_encoder.") for name in wanted)
    for size in sizes:
        name = f"ranks_{size}"
        for status, output in run_ranks(size, tmp_path / name, settings=settings(name)):
            assert status == 0, output
        rows = read_metrics(tmp_path / name)
        for row, whole in zip(rows, expected, strict=True):
            assert row["loss"] == pytest.approx(whole["loss"], rel=1e-9)
            assert "padding_percent" in row
        actual = load_checkpoint(checkpoints(tmp_path / name)[-1]).model
        for key, tensor in wanted.items():
            if key.endswith("attn.qkv.bias"):  # the key's part has a true gradient of zero, which Adam amplifies
                (query, key_part, value), (wanted_query, _, wanted_value) = actual[key].chunk(3), tensor.chunk(3)
                assert torch.isfinite(key_part).all()
                assert torch.allclose(
                    torch.cat([query, value]), torch.cat([wanted_query, wanted_value]), rtol=1e-6, atol=1e-9
                )
            else:
                assert torch.allclose(actual[key], tensor, rtol=1e-6, atol=1e-9), key
    assert (expected[0]["padding_percent"] > 0) == (bucket > 1)


@pytest.mark.parametrize("sharding", ["full", pytest.param("none", marks=pytest.mark.slow)])
def test_a_frozen_teacher_is_whole_on_every_rank(tmp_path: Path, sharding: str) -> None:
    """SALT: the student is sharded, its teacher is not; the same losses and weights, and the teacher is not saved again."""
    corpus = make_corpus(tmp_path / "videos")

    def settings(name: str, *more: str) -> list[str]:
        return [*TINY, *JEPA, "objective.bucket=32", f"data.corpus={corpus}", f"run.dir={tmp_path / name}", *more]

    train_made(settings("teacher", "optim.steps=1", "optim.base_learning_rate=1.0"))
    taught = ["optim.steps=6", f"objective.teacher={tmp_path / 'teacher'}", "model.width=36", "model.heads=3"]
    train_made(settings("one", *taught))
    more = [*taught, f"run.sharding={sharding}", "run.checkpoint_activations=true", "optim.accumulation=2"]
    for status, output in run_ranks(2, tmp_path / "two", settings=settings("two", *more)):
        assert status == 0, output
    for row, whole in zip(read_metrics(tmp_path / "two"), read_metrics(tmp_path / "one"), strict=True):
        assert row["loss"] == pytest.approx(whole["loss"], abs=1e-9)
    mine, theirs = (load_checkpoint(checkpoints(tmp_path / name)[-1]).model for name in ("two", "one"))
    assert mine.keys() == theirs.keys()
    assert not any("target" in name for name in mine)
    assert max((mine[name] - theirs[name]).abs().max().item() for name in mine) < 1e-9
