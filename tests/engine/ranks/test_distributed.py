"""Several ranks against one process, on the same draws: losses and weights, whoever holds the model and reads the clips."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import OBJECTIVES, TINY, make_corpus, run_ranks, train_made

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import ConfigError
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.ranks.distributed import World, check_shares
from trocar.engine.record.metrics import read_metrics
from trocar.loaders.draw.order import ClipOrder

HOWS: dict[str, tuple[int, list[str]]] = {
    "ddp": (2, []),
    "ddp-parts": (2, ["optim.accumulation=2"]),
    "fsdp-parts": (2, ["run.sharding=full", "optim.accumulation=2", "run.checkpoint_activations=true"]),
    "views": (3, ["data.views_per_span=2"]),  # shares of 4 clips, and of 2 and 6
    "ddp-4": (4, []),
    "fsdp-4": (4, ["run.sharding=full"]),
}
# In `make test`; `make test-slow` runs the others too.
QUICK = {("mae", "ddp-parts"), ("jepa", "fsdp-parts")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def settings(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, *more]


def losses(run_dir: Path, name: str = "loss") -> np.ndarray:
    return np.array([row[name] for row in read_metrics(run_dir) if name in row])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(run_dir)[-1]).model


def furthest(run_dir: Path, other: Path) -> float:
    mine, theirs = weights(run_dir), weights(other)
    assert mine.keys() == theirs.keys()
    return max((mine[name] - theirs[name]).abs().max().item() for name in mine)


# Five clips fall unevenly on 2, 3 and 4 ranks.
HELD_OUT = ["validation.videos=['1']", "validation.every=10", "validation.clips=5", "validation.batch=2"]


@pytest.fixture(scope="module")
def alone(
    request: pytest.FixtureRequest, corpus: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str]]:
    """20 steps in float64 in one process, and the objective's settings."""
    folder = tmp_path_factory.mktemp("alone")
    more = [*OBJECTIVES[request.param], *HELD_OUT, "optim.steps=20"]
    train_made(settings(corpus, folder, *more))
    return folder, more


@pytest.mark.parametrize(
    ("alone", "how"),
    [
        pytest.param(objective, how, marks=[] if (objective, how) in QUICK else pytest.mark.slow)
        for objective in OBJECTIVES
        for how in HOWS
    ],
    indirect=["alone"],
)
def test_ranks_do_not_change_the_run(alone: tuple[Path, list[str]], corpus: Path, tmp_path: Path, how: str) -> None:
    ranks, changes = HOWS[how]
    expected, more = alone
    if how == "views":
        expected = tmp_path / "alone"
        train_made(settings(corpus, expected, *more, *changes))
    run = tmp_path / "run"
    slow = {"rank": 1, "step": 15, "do": "pause"}
    for status, output in run_ranks(ranks, tmp_path, settings=settings(corpus, run, *more, *changes), at=slow):
        assert status == 0, output
    assert len(losses(run)) == 20
    straggler = read_metrics(run)[14]
    assert straggler["slowest_rank"] == 1
    assert min(straggler["slowest_rank_behind_ms"], straggler["slowest_rank_wait_ms"]) > 1000
    np.testing.assert_allclose(losses(run), losses(expected), rtol=0, atol=1e-9)
    assert len(losses(run, "validation_loss")) == 2
    np.testing.assert_allclose(losses(run, "validation_loss"), losses(expected, "validation_loss"), rtol=0, atol=1e-9)
    assert furthest(run, expected) < 1e-9


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_in_float32_over_200_steps(corpus: Path, tmp_path: Path, objective: str) -> None:
    more = [*OBJECTIVES[objective], "optim.steps=200", "run.precision=float32"]
    train_made(settings(corpus, tmp_path / "alone", *more))
    for sharding, ranks in (("none", 2), ("none", 4), ("full", 2), ("full", 4)):
        run = tmp_path / f"{sharding}_{ranks}"
        how = settings(corpus, run, *more, f"run.sharding={sharding}")
        for status, output in run_ranks(ranks, tmp_path, settings=how):
            assert status == 0, output
        difference = np.abs(losses(run) - losses(tmp_path / "alone")).max()
        print(f"{objective}, sharding {sharding}, {ranks} ranks: losses differ by at most {difference:.1e}")
        assert len(losses(run)) == 200
        assert difference < 1e-5


SHORT, WHOLE = ((2, 5), (3, None)), ((4, 5), (2, 8), (3, None))


@pytest.mark.parametrize(
    ("objective", "sharding", "parts"),
    [
        pytest.param("jepa", "full", SHORT, marks=pytest.mark.slow),
        *(pytest.param(name, how, WHOLE, marks=pytest.mark.slow) for name in OBJECTIVES for how in ("none", "full")),
    ],
)
def test_a_run_goes_on_with_other_numbers_of_ranks(
    corpus: Path, tmp_path: Path, objective: str, sharding: str, parts: tuple[tuple[int, int | None], ...]
) -> None:
    """Ranks are killed, others go on, in other numbers: the same losses, every clip once. parts: ranks, the step they die at."""
    more = [*OBJECTIVES[objective], "optim.steps=12"]
    train_made(settings(corpus, tmp_path / "alone", *more))
    run = tmp_path / "run"
    more += ["run.checkpoint_every=3", "run.heartbeat_timeout=3", f"run.sharding={sharding}"]
    common = settings(corpus, run, *more)
    kept: dict[int, list[int]] = {}
    for ranks, killed_at in parts:
        at = None
        if killed_at is not None:
            saved = f"step_{killed_at - 2:08d}"  # saving is asynchronous: it is done, and more steps are too
            at = {"rank": 1, "step": killed_at, "do": "kill", "saved": saved}
        results = run_ranks(ranks, tmp_path, settings=common, at=at)
        assert all((status == 0) == (killed_at is None) for status, _ in results), results
        reached = int(checkpoints(run)[-1].name[-8:])
        assert reached == {5: 3, 8: 6, None: 12}[killed_at]
        for rank in range(ranks):
            path = run / f"read_{rank}.jsonl"
            for step, numbers in map(json.loads, path.read_text().splitlines()):
                if step <= reached:
                    kept.setdefault(step, []).extend(numbers)
            path.unlink()
    assert sorted(number for numbers in kept.values() for number in numbers) == list(range(12 * 12))
    assert all(sorted(numbers) == list(range(12 * step - 12, 12 * step)) for step, numbers in kept.items())
    np.testing.assert_allclose(losses(run), losses(tmp_path / "alone"), rtol=0, atol=1e-9)


def test_a_batch_that_leaves_a_rank_without_clips_is_refused() -> None:
    world = World(torch.device("cpu"), 0, 4)
    for batch, order, fits in (
        (4, ClipOrder(), True),
        (3, ClipOrder(), False),
        (8, ClipOrder(2), True),
        (6, ClipOrder(2), False),
        (4, ClipOrder(2, pool_spans=24, lanes=24), True),
    ):
        base = ["data.corpus=none", "run.dir=none", f"optim.batch={batch}", "optim.accumulation=1"]
        config = load_config("demo_cpu", base)
        if fits:
            check_shares(world, order, config.optim)
            for first in range(50):
                shares = [order.share(np.arange(first * batch, (first + 1) * batch), rank, 4) for rank in range(4)]
                assert all(map(len, shares))
        else:
            with pytest.raises(ConfigError, match=r"leave some of 4 ranks without a clip.*give at least [48]"):
                check_shares(world, order, config.optim)
    with pytest.raises(ConfigError, match="do not divide the pool's 6 lanes"):
        check_shares(
            world, ClipOrder(2, pool_spans=6, lanes=6), load_config("demo_cpu", ["data.corpus=n", "run.dir=n"]).optim
        )
