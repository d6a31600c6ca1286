"""Checkpoints of a run: saved in the background, whole or not there, readable on another number of ranks, and without pickle.

RUN/checkpoints/step_00000400/ is written by all ranks through torch.distributed.checkpoint; `checkpoint_storage` says how it looks
on the disk. Tensors are named model/NAME, optimizer/NAME/KEY and guard/NAME.
"""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from .checkpoint_storage import (
    DTYPES,
    SafetensorsReader,
    SafetensorsWriter,
    check_files,
    read_manifest,
    remove_folder,
)
from .distributed import World

PREFIX = "step_"
UNFINISHED = "unfinished_"
Tensors = dict[str, torch.Tensor]


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the path and the fix."""


@dataclass(frozen=True)
class Checkpoint:
    """model: named tensors. optimizer: "parameter/state" to tensor. state: JSON values, with the step under "step"."""

    model: Tensors
    optimizer: Tensors
    state: dict[str, Any]


def checkpoints(run_dir: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob(f"{PREFIX}*"))


def newest_step(run_dir: Path) -> int:
    """The step of the newest finished checkpoint; 0 where there is none."""
    return max((int(path.name[len(PREFIX) :]) for path in checkpoints(run_dir)), default=0)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    return run_dir / "checkpoints" / f"{PREFIX}{step:08d}"


def run_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, guard: nn.Module | None = None) -> Tensors:
    """Everything a checkpoint holds, by name; the live tensors."""
    named = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        named |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    if guard is not None:
        named |= {f"guard/{name}": tensor for name, tensor in guard.state_dict().items()}
    return named


class CheckpointSaver:
    """Saves while training goes on.

    run_dir: where. keep: how many of the newest stay; keep_every: those of steps that are multiples of it stay too. group: of
    processes, for collectives beside the training's; None where there is one process. before_commit: called on the first rank, in
    the background, before a checkpoint counts.
    """

    def __init__(
        self,
        run_dir: Path,
        world: World,
        keep: int,
        keep_every: int | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self.run_dir, self.world, self.keep, self.keep_every = run_dir, world, keep, keep_every
        self.before_commit = before_commit
        self._thread: threading.Thread | None = None
        self._problem: Exception | None = None

    def __enter__(self) -> CheckpointSaver:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # What is being written may be finished, unless another rank is why this one ends.
        if self._thread is not None and (kind is None or self.world.size == 1):
            self._thread.join()

    def save(self, tensors: Tensors, state: dict[str, Any]) -> None:
        """Copies everything to the host, then writes the checkpoint of state["step"] in the background.

        Waits first where the one before is still being written; says so on stderr where that could not be.
        """
        try:
            self.wait()
        except CheckpointError as error:
            if self.world.is_first:
                print(f"trocar: {error}; training goes on, the last good checkpoint stays", file=sys.stderr, flush=True)
        staged = {name: _Staged(tensor) for name, tensor in tensors.items()}
        if torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # the copies to pinned memory
        self._thread = threading.Thread(target=self._write, args=(staged, state), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is being written. Raises CheckpointError, once, where the latest save failed, e.g. on a full disk."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _write(self, staged: dict[str, _Staged], state: dict[str, Any]) -> None:
        folder = self.run_dir / "checkpoints"
        final = checkpoint_path(self.run_dir, state["step"])
        unfinished = folder / f"{UNFINISHED}{state['step']:08d}"
        writer = SafetensorsWriter(unfinished, final, self.world.rank, state, self.before_commit)
        try:
            _save(staged, writer, self.world)
            if self.world.is_first:
                self._remove_old()
        except (OSError, SafetensorError, RuntimeError, dcp.CheckpointException) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            self._problem = CheckpointError(
                f"{final}: cannot be written ({_reason(error)}); free some space or set run.dir elsewhere"
            )
        except Exception as error:  # noqa: BLE001  (a mistake of ours: raised where the training waits)
            self._problem = error

    def _remove_old(self) -> None:
        for old in checkpoints(self.run_dir)[: -self.keep]:
            if self.keep_every is None or int(old.name[len(PREFIX) :]) % self.keep_every:
                remove_folder(old)


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a whole checkpoint onto the CPU, in one process. Raises CheckpointError."""
    try:
        manifest = read_manifest(path)
        check_files(path, manifest["files"])
        tensors = {}
        opened = {name: safe_open(path / name, framework="pt") for name in manifest["files"]}
        for name, entry in manifest["tensors"].items():
            tensor = tensors[name] = torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
            for chunk in entry["chunks"]:
                window = zip(chunk["offsets"], chunk["sizes"], strict=True)
                part = tensor[tuple(slice(start, start + size) for start, size in window)]
                part.copy_(opened[chunk["file"]].get_tensor(chunk["key"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    parts: dict[str, Tensors] = {"model": {}, "optimizer": {}, "guard": {}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        parts[kind][rest] = tensor
    return Checkpoint(parts["model"], parts["optimizer"], manifest["state"])


def restore(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, guard: nn.Module | None, world: World
) -> dict[str, Any]:
    """Puts weights and optimizer state back, on however many ranks, and returns the state: JSON values.

    Raises CheckpointError on all ranks where files are damaged, or where tensors do not fit, naming what does not.
    """
    try:
        manifest = read_manifest(path)
        names = sorted(manifest["files"])
        mine = {name: manifest["files"][name] for name in names[world.rank :: world.size]}
        problem = None
        check_files(path, mine)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = error
    if problem is not None or world.any(problem is not None):
        raise _unreadable(path, problem or "another rank finds it damaged") from problem
    _make_optimizer_state(manifest["tensors"], model, optimizer)
    target = run_tensors(model, optimizer, guard)
    _check_fit(path, manifest["tensors"], target)
    try:
        _load(target, SafetensorsReader(path, manifest), world)
    except (OSError, ValueError, RuntimeError, SafetensorError, dcp.CheckpointException) as error:
        raise _unreadable(path, error) from error
    return manifest["state"]


def remove_unfinished(run_dir: Path) -> None:
    """Deletes what a crash in the middle of saving left behind."""
    for path in (run_dir / "checkpoints").glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


class _Staged:
    """A tensor's local part, copied to the host; it tells torch.distributed.checkpoint where in the whole tensor it belongs."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape = tensor.shape
        self.offsets = torch.Size([0] * tensor.ndim)
        local = tensor.detach()
        if isinstance(local, DTensor):
            _, offsets = compute_local_shape_and_global_offset(local.shape, local.device_mesh, local.placements)
            self.offsets, local = torch.Size(offsets), local.to_local()
        if local.is_cuda:
            self.local = torch.empty(local.shape, dtype=local.dtype, pin_memory=True)
            self.local.copy_(local, non_blocking=True)
        else:
            self.local = local.clone(memory_format=torch.contiguous_format)

    def __create_write_items__(self, name: str, _: object) -> list[WriteItem]:
        if not self.local.numel():  # a rank beyond the end of a small tensor
            return []
        chunk = ChunkStorageMetadata(self.offsets, self.local.shape)
        data = TensorWriteData(chunk, TensorProperties.create_from_tensor(self.local), self.shape)
        return [WriteItem(MetadataIndex(name, self.offsets), WriteItemType.SHARD, tensor_data=data)]


class _SavePlanner(DefaultSavePlanner):
    def lookup_object(self, index: MetadataIndex) -> torch.Tensor:
        return self.state_dict[index.fqn].local


def _save(staged: dict[str, Any], writer: SafetensorsWriter, world: World) -> None:
    planner = _SavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if world.size > 1:
        dcp.save(staged, storage_writer=writer, planner=planner, process_group=world.background)
        return
    # The same steps; dcp.save itself warns that there are no processes to talk to.
    planner.set_up_planner(staged, None, is_coordinator=True)
    writer.set_up_storage_writer(True)
    plans, metadata = planner.create_global_plan([planner.create_local_plan()])
    results = writer.write_data(planner.finish_plan(plans[0]), planner).wait()
    writer.finish(metadata, [results])


def _load(target: Tensors, reader: SafetensorsReader, world: World) -> None:
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if world.size > 1:
        dcp.load(target, storage_reader=reader, planner=planner, process_group=world.background)
        return
    metadata = reader.read_metadata()
    planner.set_up_planner(target, metadata, is_coordinator=True)
    reader.set_up_storage_reader(metadata, True)
    plans = planner.create_global_plan([planner.create_local_plan()])
    reader.read_data(planner.finish_plan(plans[0]), planner).wait()


def _make_optimizer_state(saved: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Optimizers make their state in their first step; to be loaded into, it has to be there."""
    for name, parameter in model.named_parameters():
        prefix = f"optimizer/{name}/"
        for key in (key for key in saved if key.startswith(prefix) and "/" not in key[len(prefix) :]):
            entry = saved[key]
            if entry["shape"] == list(parameter.shape) and parameter.ndim:
                value = torch.zeros_like(parameter, dtype=DTYPES[entry["dtype"]])
            else:
                value = torch.zeros(entry["shape"], dtype=DTYPES[entry["dtype"]], device=parameter.device)
            optimizer.state[parameter][key[len(prefix) :]] = value


def _check_fit(path: Path, saved: dict[str, Any], target: Tensors) -> None:
    missing = sorted(target.keys() - saved.keys())
    left_over = sorted(saved.keys() - target.keys())
    shapes = [
        f"{name} is {saved[name]['shape']} there and {list(tensor.shape)} here"
        for name, tensor in target.items()
        if name in saved and saved[name]["shape"] != list(tensor.shape)
    ]
    for what, names in (("lacks", missing), ("has besides", left_over), ("differs:", shapes)):
        if names:
            raise CheckpointError(
                f"{path}: the checkpoint is of another model; set run.dir elsewhere to start anew: it {what} {', '.join(names[:5])}"
                f"{' ...' if len(names) > 5 else ''}"
            )


def _unreadable(path: Path, error: object) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read ({error}); delete this folder to go back to the one before")


def _reason(error: BaseException) -> str:
    """The first rank's reason out of what torch.distributed.checkpoint collects from all."""
    if isinstance(error, dcp.CheckpointException):
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {cause}"
    return str(error)
