"""`trocar bench workflow`: encoders x data sets x heads x seeds on whole videos, each cell a folder that is done once.

Cells of one encoder and one data set share its vectors, which are made once. The test videos are encoded, and their labels opened,
behind the first selection. What is missing or fails is a line of the report, not the end of the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...engine.inputs.checkpoints import CheckpointError
from ...engine.inputs.folders import RANDOM
from ...engine.step.device import choose_device
from ...engine.weights.files import WeightsError
from ...loaders.corpus.folder import CorpusError
from ...loaders.video.video import VideoError
from ..downstream.downstream import FAILURES, resolve_weights
from ..downstream.matrix import ModelEntry, Places, folder_name
from ..downstream.predictor import ROW
from ..downstream.pretraining import compare_pretraining, find_pretraining
from ..downstream.task import digest, write_json
from ..labels.dataset import DatasetError
from .cell import WorkflowCell, run_cell
from .feature_shards import as_told, loaded
from .features import extract_features, read_vectors
from .labels import WorkflowTask, open_workflow_task
from .matrix import FEATURES, HeadEntry, WorkflowDataset, WorkflowMatrix, cell_folder

CLIPS = ("frames", "resolution", "stride", "sample_fps", "kind", "positions", "part", "minimum")


def bench_workflow(
    matrix: WorkflowMatrix, places: Places, *, device: str = "auto", workers: int = 1, tell: Callable[[str], None]
) -> list[dict[str, str]]:
    """Runs what is not done yet. workers: processes that encode videos. Returns what could not be done: data set, model, reason."""
    failures = []
    for dataset in matrix.judged:
        for model in matrix.models:
            named = {"dataset": dataset.title, "model": model.name}
            try:
                done = _run_pair(matrix, dataset, model, places, device, workers, tell)
                tell(f"{model.name} on {named['dataset']}: {f'{done} cells done now' if done else 'was done'}")
            except (
                DatasetError,
                WeightsError,
                CheckpointError,
                CorpusError,
                VideoError,
                ConfigError,
                OSError,
            ) as error:
                failures.append({**named, "reason": f"{error or type(error).__name__}"})
                tell(f"{model.name} on {named['dataset']}: not done: {error}")
    places.out.mkdir(parents=True, exist_ok=True)
    write_json(places.out / FAILURES, failures)
    return failures


def open_entry(matrix: WorkflowMatrix, dataset: WorkflowDataset, places: Places) -> WorkflowTask:
    """The data set of an entry as whole videos. Raises DatasetError and ConfigError."""
    name = str(places.data / dataset.name) if Path(dataset.name).suffix else dataset.name
    return open_workflow_task(
        name,
        places.data / dataset.root,
        matrix.metrics,
        cache=places.out / FEATURES / Path(dataset.name).stem / "videos",
        split=dataset.split,
        seed=dataset.split_seed,
        table=None if dataset.table is None else places.data / dataset.table,
        unlabelled=dataset.unlabelled,
    )


def _run_pair(
    matrix: WorkflowMatrix,
    dataset: WorkflowDataset,
    model: ModelEntry,
    places: Places,
    device: str,
    workers: int,
    tell: Callable[[str], None],
) -> int:
    """All cells of one encoder on one data set. Returns how many were not done before."""
    cells = [
        (head, seed, cell_folder(places, dataset, model, head, seed)) for head in matrix.heads for seed in matrix.seeds
    ]
    cells = [cell for cell in cells if not (cell[2] / ROW).exists()]
    if not cells:
        return 0
    task = open_entry(matrix, dataset, places)
    weights = resolve_weights(model.weights, places.weights)
    corpus = None if model.corpus is None else str(places.weights / model.corpus)
    pretraining = compare_pretraining(task, find_pretraining(weights, corpus))
    options = {key: getattr(model, key) for key in CLIPS}
    extras = {"dataset": task.name, "model": model.name, "split": dataset.split, "pretraining": pretraining}
    # Random weights are drawn anew for each seed; all others are the same for all.
    for head, seed, folder in sorted(cells, key=lambda cell: cell[1]):
        drawn = seed if weights.startswith(RANDOM) else 0
        backbone = loaded(weights, as_told(options), drawn)
        # One folder holds the vectors of one encoder, on whichever data sets.
        mark = digest([backbone.digest, str(backbone.clips), str(matrix.features)])[:8]
        store = places.out / FEATURES / f"{folder_name(model.name)}_{mark}"
        vectors = partial(
            _vectors,
            task,
            store,
            weights,
            matrix,
            options=options,
            seed=drawn,
            device=device,
            workers=workers,
            tell=tell,
        )
        cell = WorkflowCell(
            folder,
            task,
            backbone,
            matrix.features,
            head.head,
            matrix.metrics,
            seed,
            choose_device(device),
            vectors,
            {**extras, "head": head.name},
        )
        row = run_cell(cell, lambda _: None)
        tell(f"  {_told(head, seed, row)}")
    return len(cells)


def _vectors(
    task: WorkflowTask,
    store: Path,
    model: str,
    matrix: WorkflowMatrix,
    split: str,
    *,
    tell: Callable[[str], None],
    **more: Any,
) -> list[NDArray[np.float16]]:
    """The vectors of a split's videos, made where they are missing. Raises VideoError where a video cannot be read: scores without
    it would be those of another split."""
    paths = [video.path for video in task.videos[split]]
    found = extract_features(paths, store, model, matrix.features, **more)
    if found.failed:
        raise VideoError("\n".join(f"{path}: {reason}" for path, reason in found.failed))
    if found.made:
        tell(f"  {split}: {found.lines()[1]}")
    return [read_vectors(found.folders[path]) for path in paths]


def _told(head: HeadEntry, seed: int, row: dict[str, Any]) -> str:
    name = "mean_average_precision" if row["several"] else "accuracy"
    score = row["metrics"][name]["score"]
    best = row["selected"]
    return f"{head.name}, seed {seed}: {name} {score:.4f}, best after {best['epoch']} of {best['epochs']} epochs"
