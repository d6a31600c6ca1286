"""Where a training stands, as one safetensors file: modules, AdamW's moments and the epochs done. Whole or not there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from ...loaders.corpus.whole_file import check_readable, write_whole


def save_state(path: Path, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None, epoch: int) -> None:
    """epoch: how many are done. optimizer: None where nothing is left to train."""
    tensors = {f"{n}.{name}": value for n, module in enumerate(modules) for name, value in module.state_dict().items()}
    if optimizer is not None:
        for number, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    write_whole(path, lambda target: save_file(kept, target, metadata={"epoch": str(epoch)}))


def restore_state(path: Path, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer | None) -> int:
    """Puts back what `save_state` wrote and returns the epochs done; 0 where there is no file. What the file holds of a finished
    training is put back without moments."""
    if not path.exists():
        return 0
    states: list[dict[str, torch.Tensor]] = [{} for _ in modules]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    check_readable(path)
    with safe_open(path, "pt") as file:
        epoch = int((file.metadata() or {})["epoch"])
        for key in file.keys():  # noqa: SIM118
            owner, _, name = key.partition(".")
            if owner == "optimizer":
                number, _, name = name.partition(".")
                moments.setdefault(int(number), {})[name] = file.get_tensor(key)
            else:
                states[int(owner)][name] = file.get_tensor(key)
    for module, state in zip(modules, states, strict=True):
        module.load_state_dict(state)
    if optimizer is not None and moments:
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return epoch
