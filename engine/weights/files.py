"""Files of weights, opened without running what is in them: safetensors, and PyTorch's with `weights_only`.

A pickle is a program. PyTorch's restricted reader makes tensors and plain values, and fails at anything else; the one class that is
let through besides is argparse.Namespace, the settings that VideoMAE's checkpoints carry, which has no behaviour.
"""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ...loaders.corpus.whole_file import check_readable, unreadable
from ...loaders.video.error import TrocarError

Tensors = dict[str, torch.Tensor]

# Where checkpoints keep the model's tensors, the most useful first: V-JEPA is evaluated by its target encoder.
CONTAINERS = (
    "target_encoder",
    "ema_encoder",
    "encoder",
    "model",
    "module",
    "state_dict",
    "model_state",
    "teacher",
    "student",
)


class WeightsError(TrocarError):
    """Weights that cannot be used; the message names the file, what was found and the fix."""


def read_weights(path: Path) -> Tensors:
    """The tensors of a file, by their names there: see `read_parts`."""
    return read_parts(path)[0]


def read_parts(path: Path, part: str | None = None) -> tuple[Tensors, dict[str, Tensors]]:
    """(the tensors of a file by their names there, the tensors of the other dictionaries of its top level).

    part: the key under which they stand, "encoder" for example; None: the first of the usual ones, or the file itself. Raises
    WeightsError.
    """
    try:
        check_readable(path)
        if path.suffix == ".safetensors":
            return load_file(path), {}
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(unreadable(path, error, "correct the path")) from error
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise WeightsError(
            f"{path}: not tensors that can be read without running the file ({reason}); save its state dict as safetensors"
        ) from error
    beside = {
        str(key): {str(name): value for name, value in other.items() if isinstance(value, torch.Tensor)}
        for key, other in (tree.items() if isinstance(tree, Mapping) else ())
        if isinstance(other, Mapping)
    }
    return _tensors(path, tree, part), beside


def _tensors(path: Path, tree: Any, part: str | None) -> Tensors:
    if not isinstance(tree, Mapping):
        raise WeightsError(f"{path}: holds {type(tree).__name__}, not a dictionary of tensors")
    if part is not None:
        if not isinstance(tree.get(part), Mapping):
            raise WeightsError(f"{path}: has no dictionary {part!r}; its keys are {', '.join(map(str, tree))}")
        return _tensors(path, tree[part], None)
    for name in CONTAINERS:
        if isinstance(tree.get(name), Mapping):
            return _tensors(path, tree[name], None)
    tensors = {str(name): value for name, value in tree.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        keys = ", ".join(map(str, list(tree)[:20]))
        raise WeightsError(f"{path}: no tensors in it; its keys are {keys}; name one of them with --part")
    return tensors
