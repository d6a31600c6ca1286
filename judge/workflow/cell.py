"""One cell: an encoder's vectors of a data set, one head, one seed. Trained, selected on the validation videos, tested once.

A cell is a folder: `settings.json`, `state.safetensors` while it trains, `weights.safetensors`, `selected.json`,
`test_opened.json`, `predictions.npz`, `resamples.npz`, `predictor.json` for `trocar phases`, and `row.json`, which says that it
is done.

Shapes: V test videos, T moments of one, K classes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.inputs.folders import RANDOM
from ...loaders.corpus.whole_file import write_arrays_whole
from ..downstream.backbones import Backbone
from ..downstream.predictor import PREDICTOR, ROW, WEIGHTS
from ..downstream.task import SELECTED, claim, write_json
from ..downstream.training_state import restore_state, save_state
from .cell_record import PhasePredictor, read_phase_predictor
from .choices import FeatureChoices, HeadChoices, MetricChoices
from .heads import TemporalHead
from .labels import DenseVideo, WorkflowTask
from .relaxed import jumps_of
from .scores import BASELINES, at_shares, baseline_scores, component_groups, judge_videos
from .training import Example, Trained, probabilities, train_head

SETTINGS, STATE, PREDICTIONS, RESAMPLES = "settings.json", "state.safetensors", "predictions.npz", "resamples.npz"
Vectors = Callable[[str], list[NDArray[np.float16]]]


@dataclass(frozen=True)
class WorkflowCell:
    """vectors: those of a split's videos, in the order of the task; those of the test split are asked for last."""

    folder: Path
    task: WorkflowTask
    backbone: Backbone
    features: FeatureChoices
    head: HeadChoices
    metrics: MetricChoices
    seed: int
    device: torch.device
    vectors: Vectors
    extras: dict[str, Any]


def run_cell(cell: WorkflowCell, tell: Callable[[str], None]) -> dict[str, Any]:
    """The row of a cell: read where it is done, else trained, or gone on with. Raises ConfigError and DatasetError."""
    cell.head.check_clips(cell.features)
    claim(cell.folder / SETTINGS, _settings(cell), "a cell")
    row_path = cell.folder / ROW
    if row_path.exists():
        return json.loads(row_path.read_text(encoding="utf-8"))
    rate = cell.features.rate
    train_vectors, val_vectors = cell.vectors("train"), cell.vectors("val")
    train = _examples(train_vectors, cell.task.labels("train", list(map(len, train_vectors)), rate))
    val = _examples(val_vectors, cell.task.labels("val", list(map(len, val_vectors)), rate))
    classes, place = len(cell.task.classes), {"seed": cell.seed, "device": cell.device}
    if not (cell.folder / SELECTED).exists():
        found = train_head(train, val, classes, cell.head, cell.folder / STATE, tell=tell, **place)
        save_state(cell.folder / WEIGHTS, [found.head], None, found.epoch)
        _leave_predictor(cell)
        write_json(cell.folder / SELECTED, _selection(found))
    test_vectors = cell.vectors("test")
    test = cell.task.labels("test", list(map(len, test_vectors)), rate, folder=cell.folder)
    scores = _tested(cell, test_vectors, test)
    row = _judged(cell, train, test, scores)
    write_json(row_path, row)
    (cell.folder / STATE).unlink(missing_ok=True)
    return row


def read_predictions(folder: Path) -> tuple[list[DenseVideo], list[NDArray[np.float64]]]:
    """(test videos with their labels, (T, K) scores of each) of a cell that is done."""
    with np.load(folder / PREDICTIONS) as known:
        names, subjects = known["names"].tolist(), known["subjects"].tolist()
        videos = [
            DenseVideo(name, subject, known[f"truth{n}"], known[f"known{n}"])
            for n, (name, subject) in enumerate(zip(names, subjects, strict=True))
        ]
        return videos, [known[f"scores{n}"] for n in range(len(names))]


def load_head(folder: Path, record: PhasePredictor, device: torch.device) -> TemporalHead:
    """The head that a cell has trained."""
    head = TemporalHead(record.head_choices(), record.values, len(record.classes))
    restore_state(folder / WEIGHTS, [head], None)
    return head.to(device).eval().requires_grad_(False)


def _settings(cell: WorkflowCell) -> dict[str, Any]:
    return {
        "encoder": cell.backbone.digest,
        "clips": asdict(cell.backbone.clips),
        "task": cell.task.digest,
        "features": asdict(cell.features),
        "head": cell.head.plain(),
        "metrics": asdict(cell.metrics),
        "seed": cell.seed,
    }


def _examples(vectors: Sequence[NDArray[np.float16]], labels: Sequence[DenseVideo]) -> list[Example]:
    return [Example(found, video) for found, video in zip(vectors, labels, strict=True)]


def _selection(found: Trained) -> dict[str, Any]:
    return {"epoch": found.epoch, "score": found.score, "epochs": found.epochs, "leak": found.leaked}


def _tested(
    cell: WorkflowCell, vectors: Sequence[NDArray[np.float16]], test: Sequence[DenseVideo]
) -> list[NDArray[np.float64]]:
    """(T, K) scores of each test video: read where they were made already."""
    path = cell.folder / PREDICTIONS
    if not path.exists():
        head = load_head(cell.folder, read_phase_predictor(cell.folder), cell.device)
        arrays: dict[str, NDArray] = {
            "names": np.array([video.name for video in test]),
            "subjects": np.array([video.subject for video in test]),
        }
        for n, (found, video) in enumerate(zip(vectors, test, strict=True)):
            arrays[f"scores{n}"] = probabilities(head, found, cell.task.several, cell.device)
            arrays[f"truth{n}"], arrays[f"known{n}"] = video.truth, video.known
        write_arrays_whole(path, arrays)
    return read_predictions(cell.folder)[1]


def _judged(
    cell: WorkflowCell, train: Sequence[Example], test: Sequence[DenseVideo], scores: Sequence[NDArray[np.float64]]
) -> dict[str, Any]:
    rate, classes = cell.features.rate, cell.task.classes
    # The rule counts phases in the order of the operation, which a table without a card does not tell.
    jumps = jumps_of(classes) if cell.task.card.classes else None
    groups = component_groups(classes) if cell.task.several else None
    judged = judge_videos(test, scores, rate, cell.metrics, jumps, groups=groups)
    write_arrays_whole(cell.folder / RESAMPLES, judged.drawn)
    shares = [at_shares(one_hot(e.labels, len(classes)), e.labels.known) for e in train]
    baselines = {}
    for name in BASELINES:
        said = [
            baseline_scores(name, shares, one_hot(video, len(classes)), video.known, len(classes)) for video in test
        ]
        found = judge_videos(test, said, rate, cell.metrics, jumps, groups=groups, resamples=0).row["metrics"]
        baselines[name] = {metric: value["score"] for metric, value in found.items()}
    selected = json.loads((cell.folder / SELECTED).read_text(encoding="utf-8"))
    return {
        **cell.extras,
        "seed": cell.seed,
        "mode": cell.head.mode,
        "classes": list(classes),
        "several": cell.task.several,
        "rate": rate,
        **judged.row,
        "baselines": baselines,
        "selected": selected,
        "encoder": cell.backbone.account,
        "split_videos": {split: len(videos) for split, videos in cell.task.videos.items()},
        "choices": cell.metrics.in_words(),
        "test_paths": {video.name: video.path for video in cell.task.videos["test"]},
    }


def one_hot(video: DenseVideo, classes: int) -> NDArray[np.bool_]:
    """(T, K) the labels of each moment, none where unknown."""
    truth = video.truth if video.truth.ndim == 2 else video.truth[:, None] == np.arange(classes)
    return truth & video.known[:, None]


def _leave_predictor(cell: WorkflowCell) -> None:
    backbone = cell.backbone
    source = backbone.name.removeprefix(RANDOM)
    source = os.path.abspath(source) if os.path.exists(source) else source
    record = PhasePredictor(
        model=f"{RANDOM if backbone.name.startswith(RANDOM) else ''}{source}",
        options=dict(backbone.options),
        **asdict(backbone.clips),
        encoder=backbone.digest,
        values=backbone.width,
        classes=list(cell.task.classes),
        several=cell.task.several,
        features=asdict(cell.features),
        head=cell.head.plain(),
    )
    write_json(cell.folder / PREDICTOR, asdict(record))
