"""Asked to stop: heard and said so, obeyed between the parts of a step, with nothing lost; checkpoints by the clock."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch
from ranks import TINY, make_corpus, run_ranks, train_made

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.inputs.checkpoints import checkpoints, newest_step
from trocar.engine.ranks import stop as stop_module
from trocar.engine.ranks.stop import StopRequest
from trocar.engine.record.metrics import read_metrics

PARTS = ["optim.batch=6", "optim.accumulation=3", "optim.steps=4"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def unbroken(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken")
    train_made(settings(corpus, run))
    return run


def settings(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, *PARTS, *more]


def parts_read(run: Path, rank: int, step: int) -> int:
    lines = (run / f"read_{rank}.jsonl").read_text().splitlines()
    return sum(json.loads(line)[0] == step for line in lines)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoints(run)[-1]).model


def test_the_first_interrupt_is_heard_and_the_second_stops(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        assert not stop.is_asked
        signal.raise_signal(signal.SIGINT)
        assert stop.is_asked
        assert stop.is_interrupted
        assert capfd.readouterr().err == (
            "trocar: Ctrl-C heard: saving, then stopping; Ctrl-C again stops at once, without saving\n"
        )
        signal.raise_signal(signal.SIGINT)  # the same one, handed on by torchrun
        monkeypatch.setattr(stop_module, "SAME_INTERRUPT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_cluster_s_signals_are_heard(capfd: pytest.CaptureFixture[str], number: signal.Signals) -> None:
    with StopRequest() as stop:
        for _ in range(2):
            signal.raise_signal(number)
    assert stop.is_asked
    assert not stop.is_interrupted
    assert f"trocar: {number.name} heard: saving, then stopping\n" in capfd.readouterr().err


@pytest.mark.parametrize("do", ["term", "interrupt"])
def test_a_step_of_parts_is_left_in_the_middle_and_nothing_is_lost(
    corpus: Path, unbroken: Path, tmp_path: Path, do: str
) -> None:
    result = train_made(settings(corpus, tmp_path), at={"rank": 0, "step": 3, "do": do})
    assert result.is_stopped
    assert result.is_interrupted == (do == "interrupt")
    assert newest_step(tmp_path) == 2
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2]
    assert parts_read(tmp_path, 0, 3) == 1
    assert not train_made(settings(corpus, tmp_path)).is_stopped
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]
    mine, theirs = weights(tmp_path), weights(unbroken)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_asked_before_the_first_step_is_done(corpus: Path, tmp_path: Path) -> None:
    result = train_made(settings(corpus, tmp_path), at={"rank": 0, "step": 1, "do": "term"})
    assert result.is_stopped
    assert checkpoints(tmp_path) == []
    assert result.where_it_stands() == "not a step was done; the same command goes on from there"


def test_all_ranks_leave_the_step_between_the_same_parts(corpus: Path, unbroken: Path, tmp_path: Path) -> None:
    more = ["optim.batch=12", "optim.accumulation=6"]
    at = {"rank": 1, "step": 3, "do": "term"}
    outcome = run_ranks(2, tmp_path, settings=settings(corpus, tmp_path / "run", *more), at=at)
    assert [status for status, _ in outcome] == [75, 75], outcome
    assert "rank 1: SIGTERM heard" in outcome[1][1]
    assert newest_step(tmp_path / "run") == 2
    read = [parts_read(tmp_path / "run", rank, 3) for rank in range(2)]
    assert read[0] == read[1]
    assert 1 <= read[0] <= 3


def test_checkpoints_by_the_clock(corpus: Path, tmp_path: Path) -> None:
    train_made(settings(corpus, tmp_path, "run.checkpoint_minutes=1e-9", "run.keep_checkpoints=9"))
    assert [path.name[-1] for path in checkpoints(tmp_path)] == ["1", "2", "3", "4"]
    train_made(settings(corpus, tmp_path / "seldom", "run.checkpoint_minutes=60", "run.keep_checkpoints=9"))
    assert [path.name[-1] for path in checkpoints(tmp_path / "seldom")] == ["4"]
