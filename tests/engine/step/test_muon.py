"""Muon on the blocks' matrices and AdamW on the rest: as both by hand, left out and resumed like AdamW, no worse a loss."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import TINY, make_corpus, train_made
from runs import assert_same_run
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError, OptimConfig
from trocar.engine.draws.schedule import Schedule
from trocar.engine.pretrain import pretrain
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.muon import block_matrices
from trocar.engine.step.optim import build_optimizer, set_schedule, step_unless
from trocar.ssl.encoder import VideoEncoder

CONFIG = OptimConfig(steps=9, optimizer="muon", weight_decay=0.1, betas=(0.9, 0.95))
SCHEDULE = Schedule(1e-2, 1e-3, 0, 9, first_weight_decay=0.1, final_weight_decay=0.3)


def small() -> VideoEncoder:
    torch.manual_seed(0)
    return VideoEncoder(24, 2, 2, frames=4, resolution=16, patch=8)


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_both_by_hand() -> None:
    model, other = small(), small()
    names = {name for name, parameter in model.named_parameters() if any(parameter is m for m in block_matrices(model))}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert names == {f"blocks.{block}.{layer}.weight" for block in range(2) for layer in layers}
    optimizer = build_optimizer(model, CONFIG)
    parameters = dict(other.named_parameters())
    muon = torch.optim.Muon([parameters[name] for name in sorted(names)], momentum=0.95, adjust_lr_fn="match_rms_adamw")
    rest = [parameter for name, parameter in parameters.items() if name not in names]
    groups = [
        {"params": [p for p in rest if p.ndim > 1]},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=CONFIG.betas, fused=True)
    for step in range(4):
        for one in (model, other):
            give_gradients(one, step)
        set_schedule(optimizer, SCHEDULE, step)
        for group in (*muon.param_groups, *adamw.param_groups):
            group["lr"] = SCHEDULE(step)
        for group in (muon.param_groups[0], adamw.param_groups[0]):
            group["weight_decay"] = SCHEDULE.weight_decay(step)
        step_unless(optimizer, torch.tensor(0.0))
        muon.step()
        adamw.step()
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, parameters[name]), name


def test_a_step_left_out_leaves_everything() -> None:
    model = small()
    optimizer = build_optimizer(model, CONFIG)
    set_schedule(optimizer, SCHEDULE, 0)
    before: Any = None
    for step, skip in enumerate((0.0, 1.0)):
        give_gradients(model, step)
        before = copy.deepcopy((dict(model.state_dict()), list(optimizer.state.values())))
        if skip:
            for parameter in model.parameters():
                assert parameter.grad is not None
                parameter.grad.fill_(float("nan"))
        step_unless(optimizer, torch.tensor(skip))
    after: Any = (model.state_dict(), list(optimizer.state.values()))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert len(optimizer.state) == len(list(model.parameters()))


def test_refused_without_pytorch_s_and_where_matrices_are_sharded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, init_method=f"file://{tmp_path / 'store'}")
    try:
        model, mesh = small(), DeviceMesh("cpu", [0])
        layer: Any = model.get_submodule("blocks.0.mlp.fc1")
        layer.weight = nn.Parameter(DTensor.from_local(layer.weight.detach(), mesh, [Replicate()]))  # pyright: ignore[reportArgumentType]
        with pytest.raises(ConfigError, match=r"'muon' needs whole matrices on each rank; set run\.sharding=none"):
            build_optimizer(model, CONFIG)
    finally:
        torch.distributed.destroy_process_group()
    monkeypatch.delattr(torch.optim, "Muon")
    with pytest.raises(
        ConfigError, match=r"'muon' needs PyTorch 2\.9 or later, here is .*; set optim\.optimizer=adamw"
    ):
        build_optimizer(small(), CONFIG)


@pytest.mark.slow
def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    common = [
        *TINY,
        f"data.corpus={make_corpus(tmp_path / 'videos')}",
        "optim.optimizer=muon",
        "optim.schedule=constant",
        "optim.warmup=0",
    ]
    for name, ends in (("whole", (6,)), ("pieces", (3, 6))):
        for last in ends:
            train_made([*common, f"run.dir={tmp_path / name}", f"optim.steps={last}"])
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")


@pytest.mark.slow
def test_no_worse_than_adamw_after_equal_steps(tmp_path: Path) -> None:
    """Three seeds, each on the same clips with both; mean loss of the last 20 of 150 steps."""
    corpus = make_corpus(tmp_path / "videos")
    more = [setting for setting in TINY if "precision" not in setting and "batch" not in setting]
    more += [
        "run.precision=float32",
        "optim.batch=16",
        "optim.accumulation=1",
        "optim.steps=150",
        "run.checkpoint_every=1000",
    ]
    last: dict[str, list[float]] = {"adamw": [], "muon": []}
    for seed in range(3):
        for name, losses in last.items():
            run = tmp_path / f"{name}_{seed}"
            chosen = [f"data.corpus={corpus}", f"run.dir={run}", f"run.seed={seed}", f"optim.optimizer={name}"]
            pretrain(load_config("demo_cpu", [*more, *chosen]), progress=False)
            rows = [row["loss"] for row in read_metrics(run)]
            assert len(rows) == 150
            losses.append(sum(rows[-20:]) / 20)
    print(last)
    assert sum(last["muon"]) <= sum(last["adamw"])
