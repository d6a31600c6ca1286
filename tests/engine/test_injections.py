"""Runs that are killed, stopped, starved of disk at random moments go on and end bit-equal to one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from ranks import TINY, make_corpus, start_ranks, train_made

from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.inputs.checkpoints import checkpoints
from trocar.engine.record.metrics import read_metrics

KINDS = ("kill", "term", "full", "kill in save")
STEPS_BETWEEN = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def settings(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, "optim.batch=2", "run.precision=float32", *more]


@pytest.mark.parametrize("injections", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_every_injection_can_be_resumed_from(corpus: Path, tmp_path: Path, injections: int) -> None:
    steps = STEPS_BETWEEN * (injections + 2)
    more = [f"optim.steps={steps}", "run.checkpoint_every=3", "run.keep_checkpoints=2"]
    train_made(settings(corpus, tmp_path / "whole", *more))
    run, chance = tmp_path / "run", random.Random(injections)
    survived: dict[int, list[int]] = {}
    for number in range(injections):
        kind = KINDS[number % len(KINDS)]
        in_save = {1: "kill"} if kind == "kill in save" else {1: "full"} if kind == "full" else None
        ((process, out),) = start_ranks(1, tmp_path, settings=settings(corpus, run, *more), in_save=in_save)
        reached, seen = newest(run), rows(run)
        deadline = time.monotonic() + 120
        # Random moments of a run that goes forward: a few rows after where it stood, or while it saves.
        while process.exitcode is None and rows(run) < max(seen, reached) + chance.randint(2, STEPS_BETWEEN):
            assert time.monotonic() < deadline, out.read_text()
            time.sleep(chance.random() * 0.01)
        if kind in ("kill", "term", "full") and process.pid and process.exitcode is None:
            os.kill(process.pid, signal.SIGTERM if kind == "term" else signal.SIGKILL)
        process.join(120)
        assert process.exitcode in ({"term": (75, 0)}.get(kind, (-signal.SIGKILL, 0))), out.read_text()
        check(run)
        collect(run, survived)
    train_made(settings(corpus, run, *more))
    collect(run, survived)
    clips = Counter(clip for numbers in survived.values() for clip in numbers)
    assert set(clips) == set(range(2 * steps))
    assert set(clips.values()) == {1}, "a clip was used twice or never"
    mine, theirs = (load_checkpoint(checkpoints(path)[-1]) for path in (run, tmp_path / "whole"))
    assert all(torch.equal(mine.model[name], theirs.model[name]) for name in theirs.model)
    assert all(torch.equal(mine.optimizer[name], theirs.optimizer[name]) for name in theirs.optimizer)
    assert [row["loss"] for row in read_metrics(run)] == [row["loss"] for row in read_metrics(tmp_path / "whole")]


def newest(run: Path) -> int:
    return max((int(path.name[-8:]) for path in checkpoints(run)), default=0)


def rows(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def check(run: Path) -> None:
    """Whatever has a checkpoint's name is whole and of that step."""
    for path in checkpoints(run):
        assert load_checkpoint(path).state["step"] == int(path.name[-8:])


def collect(run: Path, survived: dict[int, list[int]]) -> None:
    """Adds the clips of the steps that the newest checkpoint holds: later ones are taken again."""
    path, reached = run / "read_0.jsonl", newest(run)
    if not path.exists():
        return
    for line in path.read_text().split("\n")[:-1]:
        step, numbers = json.loads(line)
        if step <= reached:
            survived.setdefault(step, []).extend(numbers)
    path.unlink()


@pytest.mark.parametrize(
    "signals", [[signal.SIGUSR1], pytest.param([signal.SIGTERM, signal.SIGUSR1], marks=pytest.mark.slow)]
)
def test_sigterm_and_sigusr1_save_and_ask_for_a_requeue(
    corpus: Path, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    run = tmp_path / "run"
    for number in signals:
        before = newest(run)
        started = start_ranks(
            2, tmp_path, settings=settings(corpus, run, "optim.steps=100000", "run.checkpoint_every=50000")
        )
        while rows(run) <= before:
            assert started[0][0].is_alive(), started[0][1].read_text()
            time.sleep(0.02)
        assert started[1][0].pid
        os.kill(started[1][0].pid, number)  # one rank is told, both stop
        for process, out in started:
            process.join(120)
            assert process.exitcode == 75, out.read_text()
        assert newest(run) > before
        assert rows(run) == newest(run)
        check(run)


@pytest.mark.slow
def test_a_disk_that_is_really_full(corpus: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here; test_checkpoint.py has a full disk without one")
    try:
        run, ballast = disk / "run", disk / "ballast"
        more = ["optim.steps=200", "run.checkpoint_every=4", "run.keep_checkpoints=1"]
        ((process, out),) = start_ranks(1, tmp_path, settings=settings(corpus, run, *more))
        while not checkpoints(run):
            assert process.is_alive(), out.read_text()
            time.sleep(0.01)
        kept = newest(run)
        try:
            ballast.write_bytes(bytes(3 << 20))
        except OSError:
            assert ballast.stat().st_size
        while "No space left on device" not in out.read_text():
            assert process.is_alive(), out.read_text()
            time.sleep(0.05)
        assert newest(run) >= kept
        ballast.unlink()
        process.join(200)
        assert process.exitcode == 0, out.read_text()
        check(run)
        assert [row["step"] for row in read_metrics(run)] == list(range(1, 201))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
