"""`trocar finetune DATASET ROOT MODEL`: one cell, from names and folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...engine.inputs.folders import backbone_source
from ...loaders.corpus.folder import corpus_folder
from ..labels.audit_command import labelled
from ..labels.table import Unlabelled
from .metrics import OVER_CLASSES
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
    unlabelled: Unlabelled = "refuse",
) -> Task:
    """A data set as a task.

    dataset, split, csv, table, unlabelled: as of `labelled`. pieces: see `Task`. cache: ROOT/.trocar where None. Raises
    DatasetError and ConfigError.
    """
    more = {"csv": csv, "table": table, "seed": split_seed, "unlabelled": unlabelled}
    card, rows, origin = labelled(dataset, root, split=split, **more)
    return Task(Path(dataset).stem, card, rows, cache=cache or Path(root) / CACHE, pieces=pieces, origin=origin)


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
    corpus: str | None = None,
    tell: Callable[[str], None],
    **of_task: Any,
) -> dict[str, Any]:
    """The row of the cell in `out`. clips: of `load_backbone`. corpus: of `find_pretraining`. of_task: of `open_task`."""
    chosen = read_protocol(protocol, settings)
    backbone_source(model)
    if corpus is not None:
        corpus_folder(corpus)
    task = open_task(dataset, root, **of_task)
    from .backbones import load_backbone  # by PyTorch: behind all that can be told without
    from .finetune import finetune
    from .pretraining import compare_pretraining, find_pretraining

    for note in task.notes:
        tell(note)
    backbone = load_backbone(model, seed=seed, **clips)
    tell(f"{backbone.name}: {backbone.account}")
    pretraining = compare_pretraining(task, find_pretraining(model, corpus))
    extras = {"split": of_task.get("split")}
    from ...engine.step.device import choose_device

    where = choose_device(device)
    more = {"extras": extras, "pretraining": pretraining}
    return finetune(task, backbone, chosen, out, seed=seed, device=where, tell=tell, progress=True, **more)


def lines(row: dict[str, Any]) -> list[str]:
    """A row in words."""
    from .judgement import classes_covered, missing_classes
    from .pretraining import pretraining_lines

    covered = classes_covered(row)

    def of_classes(metric: str) -> str:
        return f" (over {covered})" if covered and metric in OVER_CLASSES else ""

    if row["low"] is None:
        interval = "no interval: " + ("one subject" if row["subjects"] == 1 else "its resamples do not vary")
    else:
        interval = f"95 % interval {row['low']:.4f} .. {row['high']:.4f} over {row['subjects']} subjects"
    text = [
        f"{row['model']} on {row['dataset']}, {row['protocol']}, seed {row['seed']}: selected {row['selected']['point']}",
        f"{row['metric']} {row['score']:.4f}{of_classes(row['metric'])}, {interval}",
        f"majority baseline {row['majority']:.4f}, random {row['random']:.4f}{of_classes(row['metric'])}",
    ]
    if missing := missing_classes(row):
        text.append(f"splits without some classes: {missing}")
    if row["detectable"] is not None:
        text.append(f"smallest detectable difference {row['detectable']:.4f}")
    text += [f"{name} {value:.4f}{of_classes(name)}" for name, value in row["metrics"].items() if value is not None]
    if row["flags"]:
        text.append(f"flags: {', '.join(row['flags'])}")
    if "pretraining" in row:
        text += pretraining_lines(row["pretraining"], row["rows"]["test"])
    if row["audit"]:
        text.append(f"faults of the split: {', '.join(row['audit'])}")
    if row["left_out"]:
        text.append(f"{row['left_out']} rows stand in no split and are left out")
    return text
