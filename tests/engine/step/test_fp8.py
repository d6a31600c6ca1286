"""Linear layers in float8: which ones, refusals that name their reason, and with torchao losses as in bfloat16."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ranks import OBJECTIVES, TINY, make_corpus, train_made
from runs import assert_same_run, weights
from torch import nn

from trocar.bench.training.run import kept, made_clips, open_run
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.pretrain import train_step
from trocar.engine.ranks.distributed import World
from trocar.engine.step.build import build_model
from trocar.engine.step.fp8 import convert_linear_layers, why_no_fp8
from trocar.engine.step.graphs import why_no_graphs

CPU = World(torch.device("cpu"))
# Sides that float8 takes: 32 wide, and 4 visible, 4 masked tokens of each of 8 clips, or packed ones in steps of 32.
SIZES = [
    "model.width=32", "model.decoder_width=32", "model.predictor_width=32", "objective.mask_ratio=0.5", "run.precision=bfloat16",
    "run.device=cpu", "optim.batch=8",
]  # fmt: skip


def configured(objective: str, *more: str) -> Config:
    fixed = ["data.corpus=none", "run.dir=none", "run.fp8=emulated"]
    return load_config("demo_cpu", [*TINY, *OBJECTIVES[objective], *SIZES, *fixed, *more])


@pytest.fixture
def converted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """torchao's place is taken by what notes its arguments: names of the chosen layers, and whether they are emulated."""
    found: dict[str, Any] = {}

    def convert(model: nn.Module, *, module_filter_fn: Any, config: Any) -> None:
        linear = ((name, part) for name, part in model.named_modules() if isinstance(part, nn.Linear))
        found.update(names=[name for name, part in linear if module_filter_fn(part, name)], emulate=config.emulate)

    stand_in = SimpleNamespace(convert_to_float8_training=convert, Float8LinearConfig=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "torchao", SimpleNamespace(float8=stand_in))
    monkeypatch.setitem(sys.modules, "torchao.float8", stand_in)
    return found


def test_layers_of_trained_blocks(converted: dict[str, Any]) -> None:
    """Not the head, not what maps one width to another, not the target encoder."""
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = {
        "mae": ["encoder.blocks.0", "encoder.blocks.1", "decoder_blocks.0"],
        "jepa": ["encoder.blocks.0", "encoder.blocks.1", "predictor.blocks.0"],
    }
    for objective, names in blocks.items():
        config = configured(objective)
        model, masks = build_model(config)
        convert_linear_layers(config, CPU, model, masks)
        assert converted == {"names": [f"{block}.{layer}" for block in names for layer in layers], "emulate": True}
        assert not any(part._forward_pre_hooks for part in model.modules())


def test_off_by_default(converted: dict[str, Any]) -> None:
    config = load_config("demo_cpu", ["data.corpus=none", "run.dir=none"])
    assert config.run.fp8 is False
    convert_linear_layers(config, CPU, *build_model(config))
    assert not converted


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("run.precision=float32", "run.precision=float32 is for comparisons"),
        ("run.sharding=full", "run.sharding=full has not been tried"),
        ("run.checkpoint_activations=true", "run.checkpoint_activations has not been tried"),
        ("optim.optimizer=muon", "optim.optimizer=muon has not been tried"),
        ("run.fp8=true", r"the run is on the CPU, which can only emulate it \(run.fp8=emulated\)"),
    ],
)
def test_refused_beside(setting: str, reason: str) -> None:
    config = configured("mae", setting)
    with pytest.raises(ConfigError, match=rf"run\.fp8: (true|emulated), but {reason}.*; set run\.fp8=false"):
        convert_linear_layers(config, CPU, *build_model(config))


def test_refused_by_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    config, card = configured("mae", "run.fp8=true"), torch.device("cuda")
    for capability, accepted in (((8, 0), False), ((8, 9), False), ((9, 0), True), ((10, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, found=capability: found)
        reason = why_no_fp8(config, card)
        told = f"NVIDIA A100 has compute capability {capability[0]}.{capability[1]}, it needs 9.0"
        assert reason == (None if accepted else told)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("model.width=24", "encoder.blocks.0.attn.qkv has 24 inputs"),
        ("model.decoder_width=24", "decoder_blocks.0.attn.qkv has 24 inputs"),
        ("optim.batch=6", "encoder.blocks.0.attn.qkv has 24 tokens at a time"),
    ],
)
@pytest.mark.usefixtures("converted")
def test_refused_by_sizes(setting: str, reason: str) -> None:
    config = configured("mae", setting)
    with pytest.raises(ConfigError, match=f"run.fp8: {reason}, not a multiple of 16; choose optim.batch"):
        convert_linear_layers(config, CPU, *build_model(config))


def test_refused_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    config = configured("mae")
    with pytest.raises(ConfigError, match=r"torchao is not installed; in a checkout, pip install '\.\[fp8\]'"):
        convert_linear_layers(config, CPU, *build_model(config))


def test_not_captured() -> None:
    assert (
        why_no_graphs(configured("mae", "run.cuda_graphs=auto"), World(torch.device("cuda")))
        == "run.fp8 has not been captured yet"
    )
    with pytest.raises(ConfigError, match=r"run\.cuda_graphs: true, but run\.fp8 has not been captured"):
        why_no_graphs(configured("mae", "run.cuda_graphs=true"), CPU)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_resumed_run_is_the_same(objective: str, tmp_path: Path) -> None:
    """With weight copies beside it, in two parts. Checkpoints hold float32 under the ordinary names."""
    pytest.importorskip("torchao")
    corpus = f"data.corpus={make_corpus(tmp_path / 'videos')}"
    common = [
        *TINY,
        *OBJECTIVES[objective],
        *SIZES,
        corpus,
        "optim.batch=16",
        "optim.accumulation=2",
        "optim.schedule=constant",
    ]
    common += ["optim.warmup=0", "optim.ema=[0.9, 0.9]"]
    for name, ends, fp8 in (("whole", (6,), "emulated"), ("pieces", (3, 6), "emulated"), ("bfloat16", (6,), "false")):
        for last in ends:
            train_made([*common, f"run.dir={tmp_path / name}", f"optim.steps={last}", f"run.fp8={fp8}"])
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
    rounded, plain = weights(tmp_path / "whole"), weights(tmp_path / "bfloat16")
    assert {name: part.dtype for name, part in rounded.items()} == {name: part.dtype for name, part in plain.items()}
    assert any(not torch.equal(rounded[name], plain[name]) for name in plain)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_as_in_bfloat16(objective: str) -> None:
    """Three seeds, each on the same clips in both; means of 10 steps along 100."""
    pytest.importorskip("torchao")
    curves: dict[str, list[np.ndarray]] = {"false": [], "emulated": []}
    for seed in range(3):
        frames = [made_clips(configured(objective), 8, 100 * seed + number) for number in range(8)]
        for fp8, found in curves.items():
            more = [
                f"run.fp8={fp8}",
                f"run.seed={seed}",
                "optim.steps=100",
                "optim.base_learning_rate=0.1",
                "optim.warmup=0.1",
            ]
            with open_run(configured(objective, *more)) as run:
                batches = (kept(frames[step % 8], np.arange(8 * step, 8 * step + 8)) for step in range(100))
                losses = [float(train_step(run, step, batches).sums.loss) for step in range(100)]
            found.append(np.array(losses).reshape(10, 10).mean(axis=1))
    plain, rounded = np.stack(curves["false"]), np.stack(curves["emulated"])
    differences = np.abs(rounded - plain) / plain
    print(
        objective,
        f"curves differ by at most {differences.max():.2%}, at the end by {differences[:, -1].max():.2%};",
        plain[:, [0, -1]],
    )
    learned = 1 - plain[:, -1] / plain[:, 0]
    assert (learned > 0.01).all(), "there is something to learn"
    assert 0 < differences.max() < 0.02
    assert (differences[:, -1] < 0.1 * learned).all()
