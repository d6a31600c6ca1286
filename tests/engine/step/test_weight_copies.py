"""Copies of weights in bfloat16 change no number: autocast, which casts weights at every use, is what they are held to."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import OBJECTIVES, TINY, made_batch, make_corpus, run_ranks, train_made
from runs import assert_same_run, weights
from torch import nn
from torch.torch_version import TorchVersion
from torch.utils._python_dispatch import TorchDispatchMode

from trocar.bench.training.run import open_run
from trocar.engine.checkpoint.checkpoint import run_tensors
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.pretrain import train_step
from trocar.engine.ranks.distributed import World
from trocar.engine.record.metrics import read_metrics
from trocar.engine.step.body import StepBody, why_no_copies
from trocar.engine.step.build import build_model
from trocar.engine.step.graphs import GraphedStep
from trocar.engine.step.guard import StepGuard
from trocar.engine.step.optim import build_optimizer
from trocar.ssl.jepa import JointEmbedding
from trocar.ssl.weight_copies import CopiedLinear, WeightCopies

SETTINGS = [
    *TINY,
    "optim.batch=6",
    "run.precision=bfloat16",
    "run.device=cpu",
    "optim.ema=[0.9, 1]",
    "optim.warmup=0.2",
]
BATCH = 6


def configured(objective: str, *more: str) -> Config:
    made = ["data.corpus=none", "run.dir=none", "optim.steps=200", *OBJECTIVES[objective]]
    return load_config("demo_cpu", [*SETTINGS, *made, *more])


def trained(config: Config, steps: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sums and norms of so many steps, and all that a checkpoint would hold then. Weights change once behind the body's back, as a
    checkpoint that is restored changes them."""
    clips = BATCH // config.optim.parts
    numbers = (np.arange(start, start + clips) for start in range(0, steps * BATCH, clips))
    loader = iter([made_batch(part, config.data.frames, config.data.resolution) for part in numbers])
    with open_run(config) as run:
        with torch.no_grad():
            for weight in run.objective.parameters():
                weight.mul_(1.01)
        reports = [train_step(run, step, loader) for step in range(steps)]
        sums = torch.stack([torch.cat([each.sums.values[: 1 + BATCH], each.gradient_norm[None]]) for each in reports])
        is_copied = any(isinstance(part, CopiedLinear) for part in run.objective.modules())
        assert is_copied == (config.run.weight_copies is not False)
        assert isinstance(run.body, GraphedStep) == (config.run.cuda_graphs is True)
        return sums, copy.deepcopy(run_tensors(run.objective, run.optimizer, run.guard))


def assert_same(config: Config, other: Config, steps: int) -> None:
    (sums, tensors), (wanted, others) = trained(config, steps), trained(other, steps)
    torch.testing.assert_close(sums, wanted, rtol=0, atol=0)
    assert {name: part.dtype for name, part in tensors.items()} == {name: part.dtype for name, part in others.items()}
    assert not [name for name in tensors if not torch.equal(tensors[name], others[name])]
    assert len(sums.unique(dim=0)) == steps


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch.compile looks at its own inputs
@pytest.mark.parametrize(
    ("objective", "steps", "more"),
    [
        ("mae", 2, ["optim.accumulation=3", "run.cuda_graphs=on"]),
        ("jepa", 2, ["run.cuda_graphs=on", "objective.bucket=8"]),
        *(
            pytest.param(objective, steps, more, marks=pytest.mark.slow)
            for objective in OBJECTIVES
            for steps, more in [
                (200, []),
                (6, ["run.compile=aot_eager"]),
                (6, ["run.checkpoint_activations=true"]),
                (20, ["optim.accumulation=3"]),
            ]
        ),
    ],
)
def test_steps_as_autocast_has_them(objective: str, steps: int, more: list[str]) -> None:
    ordinary = [setting for setting in more if not setting.startswith("run.cuda_graphs")]
    assert_same(configured(objective, *more), configured(objective, *ordinary, "run.weight_copies=false"), steps)


@pytest.mark.gpu
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("more", [["run.cuda_graphs=off"], ["run.compile=none", "run.cuda_graphs=on"]])
def test_steps_of_a_gpu_as_autocast_has_them(objective: str, more: list[str]) -> None:
    """Atomic sums differ in their last bits from run to run."""
    losses = [
        trained(configured(objective, "run.device=cuda", *more, f"run.weight_copies={switch}"), 6)[0][:, 0]
        for switch in ("auto", "false")
    ]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_runs_in_two_pieces_and_on_two_ranks(objective: str, tmp_path: Path) -> None:
    common = [*SETTINGS, *OBJECTIVES[objective], f"data.corpus={make_corpus(tmp_path / 'videos')}"]
    common += ["optim.schedule=constant", "optim.ema=[0.9, 0.9]"]
    for name, more in (("pieces", []), ("whole", []), ("cast", ["run.weight_copies=false"])):
        for last in (3, 6) if name == "pieces" else (6,):
            train_made([*common, *more, f"run.dir={tmp_path / name}", f"optim.steps={last}"])
    assert_same_run(tmp_path / "pieces", tmp_path / "whole")
    assert_same_run(tmp_path / "pieces", tmp_path / "cast")
    for switch in ("true", "false"):
        chosen = [f"run.dir={tmp_path / switch}", f"run.weight_copies={switch}", "optim.steps=4"]
        for status, said in run_ranks(2, tmp_path / "out", settings=[*common, *chosen]):
            assert status == 0, said
    rows, others = ([row["loss"] for row in read_metrics(tmp_path / switch)] for switch in ("true", "false"))
    assert rows == others
    assert len(rows) == 4
    copied, cast = weights(tmp_path / "true"), weights(tmp_path / "false")
    assert copied.keys() == cast.keys()
    assert not [name for name in cast if not torch.equal(copied[name], cast[name])]


class Operators(TorchDispatchMode):
    """How often operators are called, by name; "cast of a weight" counts apart."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        layers = [part for part in model.modules() if isinstance(part, nn.Linear)]
        self.weights = {weight.data_ptr() for layer in layers for weight in layer.parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__
        is_weight = name == "_to_copy" and arguments[0].data_ptr() in self.weights
        self.counts["cast of a weight" if is_weight else name] += 1
        return function(*arguments, **(keywords or {}))


# Casts of weights without copies: weight and bias of every linear layer. Casts that are left: of gradients and activations, and of
# the few weights outside of linear layers. Operators: some more are free. Older versions of PyTorch, which call more
# of them, are held to their own count alone.
COUNTED_WITH = "2.14"


@pytest.mark.parametrize(
    ("objective", "casts_before", "casts", "operators"), [("mae", 27, 55, 840), ("jepa", 44, 65, 1710)]
)
def test_operators_of_a_step(objective: str, casts_before: int, casts: int, operators: int) -> None:
    found = {}
    for switch in ("true", "false"):
        config = configured(objective, f"run.weight_copies={switch}")
        loader = iter([made_batch(np.arange(BATCH), config.data.frames, config.data.resolution)])
        with open_run(config) as run, Operators(run.objective) as counted:
            train_step(run, 0, loader)
        found[switch] = counted.counts
    copied, cast = found["true"], found["false"]
    assert (copied["cast of a weight"], cast["cast of a weight"]) == (0, casts_before)
    assert copied["_to_copy"] == cast["_to_copy"]
    assert copied["_foreach_copy_"] == 2, "before the first step and after it"
    assert copied.total() <= cast.total() + 2
    if TorchVersion(torch.__version__) >= COUNTED_WITH:
        assert copied["_to_copy"] <= casts
        assert copied.total() <= operators


def test_a_frozen_target_is_copied_once() -> None:
    config, device = configured("jepa"), torch.device("cpu")
    followed, _ = build_model(config)
    assert isinstance(followed, JointEmbedding)
    assert not list(followed.frozen_models())
    teacher = copy.deepcopy(followed.target_encoder)
    model = JointEmbedding(followed.encoder, followed.predictor, teacher=teacher)
    optimizer = build_optimizer(model, config.optim)
    body = StepBody(config, World(device), model, model, optimizer, StepGuard(config.optim.outlier_sigmas))
    for part in (teacher, model):
        assert {type(layer) for layer in part.modules() if isinstance(layer, nn.Linear)} == {CopiedLinear}
    assert body.copies is not None
    assert len(body.copies._copies) == sum(2 for layer in model.modules() if isinstance(layer, nn.Linear))


@pytest.mark.slow
def test_one_graph_where_it_is_compiled() -> None:
    layer = nn.Sequential(nn.Linear(4, 3))
    WeightCopies(layer)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compiled(torch.ones(2, 4)).sum().backward()
    assert layer[0].weight.grad is not None
    torch.testing.assert_close(layer[0].weight.grad, torch.full((3, 4), 2.0))


@pytest.mark.parametrize(
    ("setting", "reason"),
    [("run.precision=float32", "run.precision=float32 casts no"), ("run.sharding=full", "gathers")],
)
def test_reasons_against_copies(setting: str, reason: str) -> None:
    assert why_no_copies(configured("mae").run) is None
    assert reason in (why_no_copies(configured("mae", setting).run) or "")
    with pytest.raises(ConfigError, match=r"run\.weight_copies: true, but"):
        why_no_copies(configured("mae", setting, "run.weight_copies=true").run)
