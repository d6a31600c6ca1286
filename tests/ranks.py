"""Runs of several processes on one machine, on clips that are made of their numbers: a step costs next to nothing.

The processes are forked from one that has imported everything, as imports would take most of the time.
"""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clips import write_numbered

from trocar.engine import pretrain as pretrain_module
from trocar.engine.checkpoint import storage as checkpoint_storage
from trocar.engine.config.file import load_config
from trocar.engine.step import body as body_module
from trocar.engine.step import run as run_module
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.decode.batch import ClipBatch, LoaderCount

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["ranks"])

TINY = [
    "data.frames=4",
    "data.stride=2",
    "data.resolution=16",
    "model.patch=8",
    "model.width=24",
    "model.heads=2",
    "model.depth=2",
    "model.decoder_depth=1",
    "model.decoder_width=24",
    "model.decoder_heads=2",
    "optim.batch=12",
    "optim.clip_gradient=1.0",
    "run.precision=float64",
    "run.threads=1",
    "run.tensorboard=false",
]
# What turns such a run into a small JEPA.
JEPA = [
    "objective.kind=jepa",
    "objective.bucket=32",
    "data.resolution=32",
    "model.positions=axes",
    "model.predictor_depth=1",
    "model.predictor_width=24",
    "model.predictor_heads=2",
]
OBJECTIVES = {"mae": [], "jepa": JEPA}


def make_corpus(folder: Path) -> Path:
    """A corpus of two short videos: the run wants one, though its clips are made here."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(2):
        write_numbered(folder / f"{number}.mp4", 60, video_id=number, gop=12)
    index_corpus([folder], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


class MadeLoader:
    """Stands in for a ClipLoader: the frames of clip n are random numbers keyed by n.

    Appends (step, rank, clip numbers) to RUN/read_RANK.jsonl. at: what happens before a rank's batch of a step, as
    {"rank": r, "step": s, "do": "kill" | "stop" | "sleep" | "pause" | "raise" | "term"}, once RUN/checkpoints holds "saved"
    where given.
    """

    def __init__(self, config: Any, numbers: Iterator[Any], at: dict[str, Any] | None) -> None:
        self.config, self.numbers, self.at = config, numbers, at
        self.rank = int(os.environ.get("RANK", "0"))
        self.total = LoaderCount()
        self.log = (Path(config.run.dir) / f"read_{self.rank}.jsonl").open("a", buffering=1)

    def __enter__(self) -> MadeLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.close()

    def __iter__(self) -> MadeLoader:
        return self

    def __next__(self) -> ClipBatch:
        numbers = next(self.numbers)
        step = int(numbers[0]) // self.config.optim.batch + 1
        if self.at and (self.at["rank"], self.at["step"]) == (self.rank, step):
            while "saved" in self.at and not (Path(self.config.run.dir) / "checkpoints" / self.at["saved"]).exists():
                time.sleep(0.01)
            happen(self.at["do"])
        self.log.write(json.dumps([step, numbers.tolist()]) + "\n")
        return made_batch(numbers, self.config.data.frames, self.config.data.resolution)


def made_batch(numbers: np.ndarray, frames: int, resolution: int) -> ClipBatch:
    shape = (frames, resolution, resolution, 3)
    clips = [np.random.default_rng(int(number)).integers(0, 256, shape, dtype=np.uint8) for number in numbers]
    count = LoaderCount(
        packets_decoded=len(numbers) * frames, frames_used=len(numbers) * frames, spans=len(numbers), clips=len(numbers)
    )
    places, seconds = np.zeros((len(numbers), frames), np.int64), np.zeros((len(numbers), frames))
    return ClipBatch(
        torch.from_numpy(np.stack(clips)),
        numbers,
        numbers,
        numbers * 0,
        numbers * 0,
        places,
        seconds,
        [None] * len(numbers),
        count,
    )


def happen(what: str) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif what == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    elif what == "sleep":
        time.sleep(600)
    elif what == "pause":
        time.sleep(1.5)
    elif what == "raise":
        raise ValueError("a clip of another shape")


def train_made(
    settings: list[str],
    at: dict[str, Any] | None = None,
    poison: int | None = None,
    leave_out: int | None = None,
    in_save: dict[int, str] | None = None,
) -> Any:
    """`pretrain` of demo_cpu with these settings on made clips, in this process.

    poison: the clip whose loss and gradients become NaN. leave_out: the step whose updates, of weights and of a target encoder, are
    left out. in_save: what happens in the middle of writing the n-th checkpoint of this process: "kill", or "full", a full disk.
    """
    if in_save:
        checkpoint_storage.save_file = _disturbed(checkpoint_storage.save_file, in_save)
    before = pretrain_module.build_loader, body_module.step_unless, run_module.build_model
    # These tests go on to more steps than they began with.
    config = load_config("demo_cpu", ["run.allow_changes=true", *settings])

    def build_loader(
        config: Any, corpus: Any, sampler: Any, numbers: Any, device: Any, *, report: bool, world: Any
    ) -> Any:
        return MadeLoader(config, numbers, at)

    updates, moves = iter(range(1, 1 << 30)), iter(range(1, 1 << 30))

    def step_unless(optimizer: Any, skip: torch.Tensor) -> None:
        if next(updates) != leave_out:
            before[1](optimizer, skip)

    def build_model(config: Any) -> Any:
        model, masks = before[2](config)
        update_target = model.update_target

        def move(*arguments: Any) -> None:
            if next(moves) != leave_out:
                update_target(*arguments)

        object.__setattr__(model, "update_target", move)
        if poison is not None:
            model.register_forward_hook(spoil)
        return model, masks

    def spoil(model: Any, arguments: Any, output: Any) -> Any:
        clean = made_batch(np.array([poison]), config.data.frames, config.data.resolution).frames[0]
        is_poisoned = (arguments[0] == clean).flatten(1).all(dim=1)
        factor = torch.where(is_poisoned, float("nan"), 1.0).to(output.loss.dtype)
        return output._replace(loss=output.loss * factor.prod(), clip_loss=output.clip_loss * factor)

    pretrain_module.build_loader = build_loader  # type: ignore[assignment]
    body_module.step_unless = step_unless
    if poison is not None or leave_out is not None:
        run_module.build_model = build_model
    try:
        return pretrain_module.pretrain(config, progress=False)
    finally:
        pretrain_module.build_loader, body_module.step_unless, run_module.build_model = before


def _disturbed(save_file: Any, in_save: dict[int, str]) -> Any:
    saves = iter(range(1, 1 << 30))

    def save(tensors: Any, path: Path) -> None:
        what = in_save.get(next(saves))
        if what:
            path.write_bytes(b"half of it")
        if what == "kill":
            happen(what)
        if what == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save_file(tensors, path)

    return save


def _rank(rank: int, size: int, port: int, out: str, arguments: dict[str, Any]) -> None:
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    sys.stdout = sys.stderr = Path(out).open("w", buffering=1)  # noqa: SIM115  (open to the end of the process)
    os.dup2(sys.stderr.fileno(), 1)
    os.dup2(sys.stderr.fileno(), 2)
    status = 0
    try:
        result = train_made(**arguments)
        status = 75 if result.is_stopped else 0
    except BaseException as error:  # noqa: BLE001  (all that a process says)
        traceback.print_exc()
        print(f"{type(error).__name__}: {error}")
        status = 1
    os._exit(status)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(size: int, folder: Path, **arguments: Any) -> list[tuple[BaseProcess, Path]]:
    """`train_made(**arguments)` on `size` ranks: each process and the file of its output."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    started = []
    for rank in range(size):
        out = folder / f"out_{size}_{rank}.txt"
        process = CONTEXT.Process(target=_rank, args=(rank, size, port, str(out), arguments), daemon=True)
        process.start()
        started.append((process, out))
    return started


def run_ranks(size: int, folder: Path, *, seconds: float = 300, **arguments: Any) -> list[tuple[int | None, str]]:
    """(exit status, output) of each rank; None where it did not end in time, and is killed."""
    started = start_ranks(size, folder, **arguments)
    deadline = time.monotonic() + seconds
    results = []
    for process, out in started:
        process.join(max(0.0, deadline - time.monotonic()))
        status = process.exitcode
        if status is None:
            process.kill()
            process.join()
        results.append((status, out.read_text()))
    return results
