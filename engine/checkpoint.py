"""Checkpoints: whole or not there, and without pickle.

RUN/checkpoints/step_00000400/ holds model.safetensors, optimizer.safetensors and state.json. It is written under another name,
flushed to the disk and renamed, so that a crash in the middle of saving leaves the last good one as it was.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

PREFIX = "step_"
UNFINISHED = "unfinished_"


class CheckpointError(Exception):
    """A checkpoint that cannot be written or read; the message names the path and the fix."""


@dataclass(frozen=True)
class Checkpoint:
    """model: named tensors. optimizer: "parameter/state" to tensor. state: JSON values, with the step under "step"."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def checkpoints(run_dir: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    return sorted((run_dir / "checkpoints").glob(f"{PREFIX}*"))


def save_checkpoint(
    run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], keep: int
) -> Path:
    """Writes the checkpoint of state["step"] and deletes all but the newest `keep`. Raises CheckpointError, e.g. on a full disk."""
    folder = run_dir / "checkpoints"
    final = folder / f"{PREFIX}{state['step']:08d}"
    unfinished = folder / f"{UNFINISHED}{state['step']:08d}"
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file(_contiguous(model.state_dict()), unfinished / "model.safetensors")
        save_file(_contiguous(_optimizer_tensors(model, optimizer)), unfinished / "optimizer.safetensors")
        (unfinished / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in (*unfinished.iterdir(), unfinished):
            _flush(path)
        if final.exists():
            shutil.rmtree(final)
        unfinished.rename(final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise CheckpointError(
            f"{final}: cannot be written ({error}); free some space or set run.dir elsewhere"
        ) from error
    for old in checkpoints(run_dir)[:-keep]:
        shutil.rmtree(old)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint onto the CPU. Raises CheckpointError."""
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return Checkpoint(load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), state)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error}); delete this folder to go back to the one before"
        ) from error


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Puts weights and optimizer state back. Raises CheckpointError where they do not fit, naming what does not."""
    try:
        model.load_state_dict(checkpoint.model, strict=True)
    except RuntimeError as error:
        raise CheckpointError(
            f"the checkpoint is of another model; set run.dir elsewhere to start anew: {error}"
        ) from error
    tensors = dict(checkpoint.optimizer)
    for name, parameter in _trained(model):
        keys = [key for key in tensors if key.rpartition("/")[0] == name]
        if not keys:
            raise CheckpointError(
                f"the checkpoint has no optimizer state for {name}; delete it to go back to the one before"
            )
        state = {key.rpartition("/")[2]: tensors.pop(key) for key in keys}
        optimizer.state[parameter] = {key: value.to(parameter.device) for key, value in state.items()}
    if tensors:
        raise CheckpointError(f"optimizer state without a parameter: {sorted(tensors)}")


def remove_unfinished(run_dir: Path) -> None:
    """Deletes what a crash in the middle of saving left behind."""
    for path in (run_dir / "checkpoints").glob(f"{UNFINISHED}*"):
        shutil.rmtree(path)


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in _trained(model)
        for key, value in optimizer.state[parameter].items()
    }


def _trained(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
