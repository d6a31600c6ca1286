"""Checkpoints of a run: found, read and put back, on whatever number of ranks, and without pickle.

RUN/checkpoints/step_00000400/ is written by all ranks through torch.distributed.checkpoint; `checkpoint_storage` says how it looks
on the disk. Tensors are named model/NAME, optimizer/NAME/KEY and guard/NAME.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load

from ...loaders.corpus.whole_file import set_aside, unreadable
from ..inputs.checkpoints import UNFINISHED, CheckpointError
from ..ranks.distributed import World
from .storage import (
    DTYPES,
    SafetensorsReader,
    check_files,
    read_manifest,
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """model: named tensors. optimizer: "parameter/state" to tensor. state: JSON values, with the step under "step"."""

    model: Tensors
    optimizer: Tensors
    state: dict[str, Any]


def run_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, guard: nn.Module | None = None) -> Tensors:
    """Everything a checkpoint holds, by name; the live tensors."""
    named = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        named |= {f"optimizer/{name}/{key}": value for key, value in optimizer.state.get(parameter, {}).items()}
    if guard is not None:
        named |= {f"guard/{name}": tensor for name, tensor in guard.state_dict().items()}
    return named


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
    manifest, problem = {}, None
    try:
        manifest = read_manifest(path)
        names = sorted(manifest["files"])
        mine = {name: manifest["files"][name] for name in names[world.rank :: world.size]}
        check_files(path, mine)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = error
    is_bad_elsewhere = world.any(problem is not None)
    if problem is not None:
        raise _unreadable(path, problem) from problem
    if is_bad_elsewhere:
        raise CheckpointError(f"{path}: another rank cannot read it, and says why")
    _make_optimizer_state(manifest["tensors"], model, optimizer)
    target = run_tensors(model, optimizer, guard)
    _check_fit(path, manifest["tensors"], target)
    try:
        _load(target, SafetensorsReader(path, manifest), world)
    except (OSError, ValueError, RuntimeError, SafetensorError, CheckpointException) as error:
        raise _unreadable(path, error) from error
    return manifest["state"]


def remove_unfinished(run_dir: Path) -> None:
    """Deletes what a crash in the middle of saving left behind."""
    for path in (run_dir / "checkpoints").glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def _load(target: Tensors, reader: SafetensorsReader, world: World) -> None:
    planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    if world.size > 1:
        load(target, storage_reader=reader, planner=planner, process_group=world.background)
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


def _unreadable(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(unreadable(path, error, f"to go on from the one before: {set_aside(path)}"))
