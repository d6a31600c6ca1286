"""What the dry run says of two ranks, against what two ranks hold and send: numbers and bytes exactly, activations within 10 %."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from ranks import CONTEXT, OBJECTIVES, TINY, free_port, made_batch, make_corpus, train_made

from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.step import dry_run as dry_run_module
from trocar.engine.step.dry_run import LiveMemory, Traffic, dry_run

WIDE = [
    *TINY,
    "data.corpus=none",
    "run.dir=none",
    "data.resolution=32",
    "model.width=96",
    "optim.batch=8",
    "run.precision=float32",
]


@pytest.mark.parametrize(
    ("objective", "sharding"),
    [
        ("mae", "none"),
        pytest.param("mae", "full", marks=pytest.mark.slow),
        pytest.param("jepa", "full", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_hold_and_send_what_it_says(tmp_path: Path, objective: str, sharding: str) -> None:
    settings = [*WIDE, *OBJECTIVES[objective], f"run.sharding={sharding}", "optim.accumulation=2"]
    said = dry_run(load_config("demo_cpu", settings), 2)
    port, found = free_port(), tmp_path / "found.json"
    ranks = [CONTEXT.Process(target=measure, args=(rank, port, settings, str(found))) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
        assert process.exitcode == 0
    real = json.loads(found.read_text())
    for name in ("parameters_here", "weights", "gradients", "optimizer"):
        assert getattr(said, name) == real[name], name
    assert (
        said.sent["all-reduce of gradients" if sharding == "none" else "reduce-scatter of gradients"][1]
        == real["exchanged"]
    )
    if sharding == "full":
        assert said.sent["all-gather of weights"] == tuple(real["gathered"])
        assert said.parameters_here < 0.6 * said.parameters
    print(f"{objective}, {sharding}: {said.activations + said.gradients + said.buckets} said, {real['peak']} measured")
    assert said.activations + said.gradients + said.buckets == pytest.approx(real["peak"], rel=0.1)


def measure(rank: int, port: int, settings: list[str], found: str) -> None:
    """One rank of a real step over gloo, with real tensors."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    config = load_config("demo_cpu", settings)
    from trocar.engine.draws.samplers import build_order
    from trocar.engine.ranks.distributed import distribute, gradients_exchanged, open_world, whole
    from trocar.engine.step.build import build_model
    from trocar.engine.step.optim import build_optimizer, step_unless

    with open_world(torch.device("cpu"), 60) as world:
        objective, masks = build_model(config)
        model, optimizer = distribute(objective, config.run, world), build_optimizer(objective, config.optim)
        numbers = build_order(config).share(range(4), rank, 2)
        frames = made_batch(numbers, config.data.frames, config.data.resolution).frames
        drawn = masks(0, numbers, 0, world.device)
        local = dry_run_module._local

        def step() -> tuple[Traffic, LiveMemory, int]:
            traffic, memory = Traffic(), LiveMemory()
            with memory, traffic:
                for part in range(2):
                    with gradients_exchanged(model, part == 1):
                        loss = model(frames, drawn, 1.0).loss
                        loss.backward()
                    del loss
            gradients = sum(local(p.grad).nbytes for p in objective.parameters() if p.grad is not None)
            whole(torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0))
            step_unless(optimizer, torch.zeros(()))
            optimizer.zero_grad(set_to_none=True)
            return traffic, memory, gradients

        step()
        traffic, memory, gradients = step()
        sent = traffic.sent()
        state = [local(value) for values in optimizer.state.values() for value in values.values()]
        if rank == 0:
            result = {
                "parameters_here": sum(local(p).numel() for p in objective.parameters()),
                "weights": sum(local(t).nbytes for t in [*objective.parameters(), *objective.buffers()]),
                "gradients": gradients,
                "optimizer": sum(value.nbytes for value in state),
                "exchanged": sent.get(
                    "reduce-scatter of gradients", sent.get("all-reduce of gradients", (0, gradients))
                )[1],
                "gathered": sent.get("all-gather of weights", (0, 0)),
                "peak": memory.peak,
            }
            Path(found).write_text(json.dumps(result))


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "demo_cpu", "--dry-run", "4", *WIDE]) == 0
    printed = capsys.readouterr().out
    for text in ("4 ranks; ", "optimizer state", "activations at their most", "all-reduce of gradients"):
        assert text in printed
    assert not torch.distributed.is_initialized()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="leave some of 16 ranks without a clip"):
        dry_run(load_config("demo_cpu", WIDE), 16)


def test_a_teacher_is_held_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Its weights count on every rank, though nothing of it is sharded, trained or sent."""
    corpus, teacher = make_corpus(tmp_path / "videos"), tmp_path / "teacher"
    train_made([f"data.corpus={corpus}", f"run.dir={teacher}", *TINY, *OBJECTIVES["jepa"], "optim.steps=1"])
    student = [*TINY, *OBJECTIVES["jepa"], "data.corpus=none", f"run.dir={tmp_path / 'run'}", "run.sharding=full"]
    taught = dry_run(load_config("demo_cpu", [*student, f"objective.teacher={teacher}"]), 2)
    alone = dry_run(load_config("demo_cpu", student), 2)
    encoder = alone.parameters - taught.parameters
    assert encoder > 0, "the copy that follows is part of the model, the teacher is not"
    assert taught.weights - (alone.weights - 8 * encoder / 2) == pytest.approx(8 * encoder, rel=0.2)
    assert taught.sent["reduce-scatter of gradients"] == alone.sent["reduce-scatter of gradients"]
    assert taught.optimizer == alone.optimizer
    assert not (tmp_path / "run").exists()
