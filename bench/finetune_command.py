"""`trocar finetune DATASET ROOT MODEL`: one cell, from names and folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..engine.config_error import ConfigError
from .audit_command import dataset_table, split_table
from .backbones import load_backbone
from .dataset import load_card, read_table, table_card
from .finetune import finetune
from .protocol import read_protocol
from .task import Task

CACHE = ".trocar"  # in a data set's folder: videos made of folders of pictures


def open_task(
    dataset: str,
    root: Path,
    *,
    split: str = "leak-free",
    csv: Path | None = None,
    table: Path | None = None,
    split_seed: int = 0,
    pieces: float | None = None,
    cache: Path | None = None,
) -> Task:
    """A data set as a task.

    dataset: one of trocar's, a card's path, or a table's (.csv), which needs no card; its relative paths begin at `root`. split,
    csv, table: as of `dataset_table`. pieces: see `Task`. cache: ROOT/.trocar where None. Raises DatasetError and ConfigError.
    """
    if dataset.endswith(".csv"):
        rows = [replace(s, video=os.path.join(root, s.video)) for s in read_table(Path(dataset))]
        card = table_card(Path(dataset), rows)
        rows = split_table(rows, card, split, split_seed)
    else:
        card = load_card(dataset)
        rows = dataset_table(dataset, card, root, split=split, csv=csv, table=table, seed=split_seed)
    return Task(Path(dataset).stem, card, rows, cache=cache or Path(root) / CACHE, pieces=pieces)


def choose_device(name: str) -> torch.device:
    """ "auto", "cpu", "cuda" or "cuda:1". Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: PyTorch finds no CUDA device; run `trocar doctor`, or give --device cpu")
    return torch.device(name)


def finetune_command(
    dataset: str,
    root: Path,
    model: str,
    out: Path,
    *,
    protocol: str,
    settings: list[str],
    seed: int,
    device: str,
    clips: dict[str, Any],
    tell: Callable[[str], None],
    **of_task: Any,
) -> dict[str, Any]:
    """The row of the cell in `out`. clips: of `load_backbone`. of_task: of `open_task`."""
    chosen = read_protocol(protocol, settings)
    task = open_task(dataset, root, **of_task)
    backbone = load_backbone(model, seed=seed, **clips)
    tell(backbone.account)
    extras = {"split": of_task.get("split")}
    where = choose_device(device)
    return finetune(task, backbone, chosen, out, seed=seed, device=where, extras=extras, tell=tell, progress=True)


def lines(row: dict[str, Any]) -> list[str]:
    """A row in words."""
    low, high = (float("nan") if row[name] is None else row[name] for name in ("low", "high"))
    text = [
        f"{row['model']} on {row['dataset']}, {row['protocol']}, seed {row['seed']}: selected {row['selected']['point']}",
        f"{row['metric']} {row['score']:.4f}, 95 % interval {low:.4f} .. {high:.4f} over {row['subjects']} subjects",
        f"majority baseline {row['majority']:.4f}, random {row['random']:.4f}",
    ]
    if row["detectable"] is not None:
        text.append(f"smallest detectable difference {row['detectable']:.4f}")
    text += [f"{name} {value:.4f}" for name, value in row["metrics"].items() if value is not None]
    if row["flags"]:
        text.append(f"flags: {', '.join(row['flags'])}")
    if row["audit"]:
        text.append(f"faults of the split: {', '.join(row['audit'])}")
    if row["left_out"]:
        text.append(f"{row['left_out']} rows stand in no split and are left out")
    return text
