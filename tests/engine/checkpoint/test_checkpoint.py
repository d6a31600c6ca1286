"""Checkpoints: whole or not there, never a pickle, kept by the rules, refused where damaged."""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import TINY, make_corpus, train_made
from safetensors import safe_open
from safetensors.torch import load_file

from trocar.engine import pretrain as pretrain_module
from trocar.engine.checkpoint import storage as checkpoint_storage
from trocar.engine.checkpoint.checkpoint import load_checkpoint
from trocar.engine.cli import main
from trocar.engine.inputs.checkpoints import CheckpointError, checkpoints, newest_step
from trocar.engine.record.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"))


def settings(corpus: Path, run_dir: Path, *more: str) -> list[str]:
    return [f"data.corpus={corpus}", f"run.dir={run_dir}", *TINY, "optim.batch=2", *more]


def names(run_dir: Path) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


class Bomb:
    """Unpickling it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize(
    "place", [".metadata", "manifest.json", "rank_00000.safetensors", "__0_0.distcp", "config.yaml", "run.json"]
)
def test_no_pickle_is_executed(corpus: Path, tmp_path: Path, place: str) -> None:
    run, mark = tmp_path / "run", tmp_path / "executed"
    train_made(settings(corpus, run, "optim.steps=2"))
    (saved,) = checkpoints(run)
    bomb = pickle.dumps(Bomb(mark))
    pickle.loads(bomb)  # noqa: S301
    assert mark.exists(), "the bomb is a dud"
    mark.unlink()
    target = (run if place in ("config.yaml", "run.json") else saved) / place
    target.write_bytes(bomb)
    for read in (lambda: load_checkpoint(saved), lambda: train_made(settings(corpus, run, "optim.steps=3"))):
        if place in ("manifest.json", "rank_00000.safetensors"):
            with pytest.raises(
                CheckpointError, match=r"damaged .*; to go on from the one before: mv .*/step_\d+ .*/damaged_step_\d+$"
            ):
                read()
        elif place != "run.json":
            read()
        assert not mark.exists()


def test_torch_save_takes_no_part(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither saving nor resuming goes through pickle at all."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickle")

    for module, name in (
        (torch, "save"),
        (torch, "load"),
        (pickle, "dump"),
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
    ):
        monkeypatch.setattr(module, name, refuse)
    train_made(settings(corpus, tmp_path, "optim.steps=2"))
    assert train_made(settings(corpus, tmp_path, "optim.steps=3")).resumed_from == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("flip", "does not match its SHA-256"),
        ("cut", "bytes, not"),
        ("missing", "No such file"),
        ("elsewhere", "names '../../other', which is no file of a checkpoint"),
        ("format", "is not of format 1"),
    ],
)
def test_damage_is_found(corpus: Path, tmp_path: Path, damage: str, reason: str) -> None:
    train_made(settings(corpus, tmp_path, "optim.steps=2"))
    (saved,) = checkpoints(tmp_path)
    file, manifest = saved / "rank_00000.safetensors", saved / "manifest.json"
    content, table = bytearray(file.read_bytes()), json.loads(manifest.read_text())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-1])
    elif damage == "missing":
        file.unlink()
    elif damage == "elsewhere":
        table["files"]["../../other"] = {"bytes": 0, "sha256": ""}
        manifest.write_text(json.dumps(table))
    else:
        manifest.write_text(json.dumps(table | {"format": 2}))
    for read in (lambda: load_checkpoint(saved), lambda: train_made(settings(corpus, tmp_path, "optim.steps=3"))):
        with pytest.raises(CheckpointError, match=reason):
            read()


def test_which_ones_stay(corpus: Path, tmp_path: Path) -> None:
    more = ["optim.steps=9", "run.checkpoint_every=1", "run.keep_checkpoints=2", "run.keep_every=3"]
    train_made(settings(corpus, tmp_path, *more))
    assert names(tmp_path) == [f"step_{step:08d}" for step in (3, 6, 8, 9)]


def test_training_goes_on_over_a_full_disk(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The save of step 4 fails in the middle, the later ones do not; nothing is lost but that checkpoint."""
    save_file = checkpoint_storage.save_file

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "00000004" in str(path):
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint_storage, "save_file", full)
    train_made(settings(corpus, tmp_path / "full", "optim.steps=6", "run.checkpoint_every=2"))
    said = capsys.readouterr().err
    assert "step_00000004: cannot be written ([Errno 28] No space left on device); free some space" in said
    assert "training goes on, the last good checkpoint stays" in said
    assert names(tmp_path / "full") == ["step_00000002", "step_00000006"]
    train_made(settings(corpus, tmp_path / "whole", "optim.steps=6", "run.checkpoint_every=2"))
    mine, theirs = (load_checkpoint(checkpoints(tmp_path / name)[-1]).model for name in ("full", "whole"))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("how", ["dies", "hangs"])
def test_a_thread_that_saves_no_more_ends_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Before the next save, and what it was at does not count."""
    save_file, go_on = checkpoint_storage.save_file, threading.Event()

    def fatal(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "00000008" in str(path):
            if how == "dies":
                raise SystemExit(0)
            go_on.wait()
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint_storage, "save_file", fatal)
    more = ["optim.steps=100", "run.checkpoint_every=4", "run.save_timeout=1.5"]
    monkeypatch.setattr(pretrain_module, "collect_garbage_seldom", lambda: nullcontext(slow_down))
    says = r"step_00000008: " + (
        r"the thread that writes it ended with SystemExit\(0\)" if how == "dies" else r"not written after 1\.5 s"
    )
    try:
        with pytest.raises(CheckpointError, match=says):
            train_made(settings(corpus, tmp_path, *more))
        assert read_metrics(tmp_path)[-1]["step"] < 12
        assert [path.name for path in checkpoints(tmp_path)] == ["step_00000004"]
    finally:
        go_on.set()


def slow_down(step: int) -> None:
    if step > 8:
        time.sleep(0.8)


def test_rows_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trocar.engine.record.metrics import MetricsLog

    class Full:
        """A file on a disk that takes three more bytes."""

        def __init__(self, file: Any) -> None:
            self.file, self.is_full = file, True

        def write(self, data: bytes) -> int:
            return self.file.write(data[:3] if self.is_full else data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        log.write({"step": 1})
        disk = Full(log._file)
        monkeypatch.setattr(log, "_file", disk)
        log.write({"step": 2})
        assert [row["step"] for row in read_metrics(tmp_path)] == [1]
        with pytest.raises(OSError, match="No space left"):
            log.flush()
        disk.is_full = False
        log.write({"step": 3})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]


def test_an_older_checkpoint_is_never_half_removed(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash while an old checkpoint is deleted leaves none that looks whole."""
    more = ["optim.steps=4", "run.checkpoint_every=2", "run.keep_checkpoints=1"]

    def crash(folder: Path, *_: object, **__: object) -> None:
        if folder.name.endswith("_old") and folder.exists():
            (folder / "manifest.json").unlink()
            raise OSError("the machine is gone")

    monkeypatch.setattr(checkpoint_storage.shutil, "rmtree", crash)
    with pytest.raises(CheckpointError, match="the machine is gone"):
        train_made(settings(corpus, tmp_path, *more))
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path)] == ["step_00000004"]
    assert train_made(settings(corpus, tmp_path, *more)).resumed_from == 4
    assert names(tmp_path) == ["step_00000004"]
    assert newest_step(tmp_path) == 4


def test_export_is_one_file_for_other_tools(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_made(settings(corpus, tmp_path, "optim.steps=2"))
    assert main(["export", str(tmp_path)]) == 0
    assert main(["export", str(tmp_path), "--whole", "--out", str(tmp_path / "all.safetensors")]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / "encoder.safetensors"), str(tmp_path / "all.safetensors")]
    model = load_checkpoint(checkpoints(tmp_path)[-1]).model
    encoder, whole = load_file(tmp_path / "encoder.safetensors"), load_file(tmp_path / "all.safetensors")
    assert all(torch.equal(whole[name], model[name]) for name in model)
    assert all(torch.equal(encoder[name], model[f"encoder.{name}"]) for name in encoder)
    assert len(encoder) == sum(name.startswith("encoder.") for name in model)
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        assert file.metadata()["step"] == "2"
    assert main(["export", str(tmp_path / "none")]) == 1
