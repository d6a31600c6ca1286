"""Steps that are left out: poisoned clips, outliers, budgets; and what optimizer and statistics keep."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from ranks import OBJECTIVES, TINY, make_corpus, run_ranks, train_made
from torch import nn

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.config.settings import OptimConfig
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.record.metrics import read_metrics
from trocar.engine.record.skips import SkipError
from trocar.engine.step.guard import MEMORY_STEPS, StepGuard
from trocar.engine.step.optim import build_optimizer, step_unless


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def settings(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, "optim.batch=4", *more]


def differing(run: Path, other: Path) -> list[str]:
    mine, theirs = (load_checkpoint(checkpoints(path)[-1]).model for path in (run, other))
    return [name for name in mine if not torch.equal(mine[name], theirs[name])]


def assert_equal_runs(run: Path, other: Path) -> None:
    mine, theirs = (load_checkpoint(checkpoints(path)[-1]) for path in (run, other))
    for name in ("model", "optimizer"):
        a, b = getattr(mine, name), getattr(theirs, name)
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_poisoned_clip_is_named_and_its_step_left_out(corpus: Path, tmp_path: Path, objective: str) -> None:
    """Bit-equal to a run that lacks that step's update: weights, optimizer, and a JEPA's target encoder."""
    more = [*OBJECTIVES[objective], "optim.steps=10", "optim.ema=[0.9, 0.99]", "run.precision=float32"]
    train_made(settings(corpus, tmp_path / "poisoned", *more), poison=22)
    train_made(settings(corpus, tmp_path / "without", *more), leave_out=6)
    assert_equal_runs(tmp_path / "poisoned", tmp_path / "without")
    train_made(settings(corpus, tmp_path / "with", *more))
    differs = differing(tmp_path / "poisoned", tmp_path / "with")
    for part in ("encoder.", "target_encoder.") if objective == "jepa" else ("encoder.",):
        assert any(name.startswith(part) for name in differs), "the step would have been seen"
    assert [row["step"] for row in read_metrics(tmp_path / "poisoned") if row["skipped"]] == [6]
    with (tmp_path / "poisoned" / "skipped.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["step"], row["clip"], row["draw"], row["reason"]) == ("6", "22", "22", "loss is not finite")
    assert Path(row["path"]).name in ("0.mp4", "1.mp4")


def test_all_ranks_leave_it_out_alike(corpus: Path, tmp_path: Path) -> None:
    """The poisoned clip is on rank 1; rank 0 names it."""
    more = ["optim.steps=8"]
    for status, output in run_ranks(2, tmp_path, settings=settings(corpus, tmp_path / "poisoned", *more), poison=21):
        assert status == 0, output
    train_made(settings(corpus, tmp_path / "without", *more), leave_out=6)
    mine, theirs = (load_checkpoint(checkpoints(tmp_path / name)[-1]).model for name in ("poisoned", "without"))
    assert max((mine[name] - theirs[name]).abs().max().item() for name in mine) < 1e-12
    with (tmp_path / "poisoned" / "skipped.csv").open(newline="") as file:
        assert [row["clip"] for row in csv.DictReader(file)] == ["21"]


def test_the_budget_ends_the_run_and_is_checkpointed(corpus: Path, tmp_path: Path) -> None:
    more = ["optim.steps=8", "optim.skip_budget=0", "run.checkpoint_every=4"]
    with pytest.raises(
        SkipError,
        match=r"(?s)1 of the last 6 steps.*optim\.skip_budget=0.*step 6, clip 20 of .*mp4: loss is not finite",
    ):
        train_made(settings(corpus, tmp_path, *more), poison=20)
    train_made(settings(corpus, tmp_path, "optim.steps=8", "run.checkpoint_every=4"), poison=20)
    assert load_checkpoint(checkpoints(tmp_path)[-1]).state["skipped"] == [6]
    with (tmp_path / "skipped.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 1, "what the first try wrote is not written again"


def test_outliers_are_refused_once_the_run_is_known() -> None:
    generator = torch.Generator().manual_seed(0)
    guard = StepGuard(6.0)
    losses = 1 + 0.1 * torch.randn(MEMORY_STEPS, generator=generator)
    for number, loss in enumerate(losses):
        assert guard.verdict(loss, torch.tensor(1.0)) == 0
        if number == 50:
            assert guard.verdict(torch.tensor(9.0), torch.tensor(1.0)) == 0, "too early to tell"
        guard.remember(loss, torch.tensor(1.0), torch.tensor(0.0))
    assert guard.mean[0].item() == pytest.approx(losses.mean().item(), abs=1e-6)
    assert guard.variance[0].item() == pytest.approx(losses.var(correction=0).item(), abs=1e-6)
    before = {name: value.clone() for name, value in guard.state_dict().items()}
    for loss, norm in ((1.0, 1.5), (2.5, 1.0), (float("nan"), 1.0), (1.0, float("inf"))):
        assert guard.verdict(torch.tensor(loss), torch.tensor(norm)) == 1
        guard.remember(torch.tensor(loss), torch.tensor(norm), torch.tensor(1.0))
    assert all(torch.equal(value, before[name]) for name, value in guard.state_dict().items())
    assert guard.verdict(torch.tensor(1.3), torch.tensor(1.02)) == 0
    assert guard.verdict(torch.tensor(-5.0), torch.tensor(1.0)) == 0, "a small loss is no fault"
    assert StepGuard(None).verdict(torch.tensor(1e30), torch.tensor(1.0)) == 0


def test_a_skipped_step_changes_nothing_in_the_optimizer() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = build_optimizer(model, OptimConfig(steps=1))
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    model(torch.ones(1, 3)).sum().backward()
    step_unless(optimizer, torch.tensor(0.0))
    weights = [p.detach().clone() for p in model.parameters()]
    state = [{key: value.clone() for key, value in optimizer.state[p].items()} for p in model.parameters()]
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(float("nan"))
    step_unless(optimizer, torch.tensor(1.0))
    assert all(torch.equal(p, before) for p, before in zip(model.parameters(), weights, strict=True))
    for parameter, before in zip(model.parameters(), state, strict=True):
        assert all(torch.equal(optimizer.state[parameter][key], value) for key, value in before.items())
