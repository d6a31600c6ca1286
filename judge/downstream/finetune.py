"""One cell of the downstream benchmark: an encoder, a data set, a protocol, a seed -> one folder, one JSON row.

    train (and validation) -> selection, written down -> test split, opened once -> row

    FOLDER/settings.json      what the cell is; another cell is refused
           state/             where training stands
           validation.json    every point of the grid on the validation split
           selected.json      the point that was chosen
           test_opened.json   when the test split was asked for, and for which selection
           predictions.npz    scores and truth of the test split
           resamples.npy      the score on resamples of the test split's subjects
           weights.safetensors, predictor.json    what `trocar predict` takes
           row.json           the result

Shapes: N rows of a split, K classes.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...engine.inputs.folders import RANDOM
from ...loaders.corpus.whole_file import write_array_whole, write_arrays_whole, write_whole
from ...ssl.encoder import VideoEncoder
from .backbones import Backbone, pooled_as
from .features import Features, ViewPlan, extract
from .judgement import judge
from .metrics import METRICS
from .predictor import PREDICTOR, ROW, WEIGHTS, PredictorRecord
from .probing import feature_scores, train_grid
from .protocol import Protocol
from .task import SELECTED, Split, Task, claim, digest, write_json
from .training_state import restore_state, save_state
from .tuning import build_tuned, clip_scores, train_point

SETTINGS, VALIDATION, PREDICTIONS = "settings.json", "validation.json", "predictions.npz"
RESAMPLES = "resamples.npy"
STATE = "state"
LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class Cell:
    """folder: of the cell. features: where features are kept, which cells of one encoder and data set share. extras: what else the
    row shall say, by name."""

    folder: Path
    task: Task
    backbone: Backbone
    protocol: Protocol
    seed: int
    device: torch.device
    features: Path
    extras: Mapping[str, Any]
    tell: Callable[[str], None]
    progress: bool = False

    def settings(self) -> dict[str, Any]:
        clips = self.backbone.clips
        return {
            "encoder": self.backbone.digest,
            "clips": [clips.frames, clips.stride, clips.sample_fps, clips.resolution],
            "task": self.task.digest,
            "protocol": self.protocol.plain(),
            "seed": self.seed,
        }


def finetune(
    task: Task,
    backbone: Backbone,
    protocol: Protocol,
    folder: Path,
    *,
    seed: int = 0,
    device: torch.device | None = None,
    features: Path | None = None,
    extras: Mapping[str, Any] | None = None,
    pretraining: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """The row of a cell: read where it is done, else trained, or gone on with.

    features: FOLDER/features where None. pretraining: of `compare_pretraining`. Raises ConfigError where the folder holds another
    cell, DatasetError and VideoError.
    """
    device = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    say = tell or (lambda text: print(text, file=sys.stderr, flush=True))
    shared = features or folder / "features"
    backbone = pooled_as(backbone, protocol)
    if "attentive" in protocol.heads and isinstance(backbone.model, VideoEncoder):
        protocol = replace(protocol, attention_heads=protocol.attention_heads or backbone.model.heads)
    cell = Cell(folder, task, backbone, protocol, seed, device, shared, extras or {}, say, progress)
    claim(folder / SETTINGS, cell.settings(), "a cell")
    row_path = folder / ROW
    if row_path.exists():
        _leave_predictor(cell)
        row = json.loads(row_path.read_text(encoding="utf-8"))
        if pretraining is not None and row.get("pretraining") != pretraining:
            write_json(row_path, _with_pretraining(row, pretraining))
        return json.loads(row_path.read_text(encoding="utf-8"))
    scores = _tune(cell) if protocol.kind == "full" else _probe(cell)
    selected = json.loads((folder / SELECTED).read_text(encoding="utf-8"))
    _leave_predictor(cell)
    row, drawn = judge(task, task.open_test(folder).predictions(scores))
    np.save(folder / RESAMPLES, drawn)
    named = {"dataset": task.name, "model": backbone.name, "protocol": protocol.kind, "seed": seed}
    row = {**named, **(extras or {}), **row, "selected": selected, "encoder": backbone.account}
    write_json(row_path, row if pretraining is None else _with_pretraining(row, pretraining))
    shutil.rmtree(folder / STATE, ignore_errors=True)
    return json.loads(row_path.read_text(encoding="utf-8"))


def _leave_predictor(cell: Cell) -> None:
    """What `trocar predict` needs of the cell beside its weights, as an earlier trocar may have left it out."""
    path, backbone, task = cell.folder / PREDICTOR, cell.backbone, cell.task
    if path.exists():
        return
    known = [(s.start, s.end) for s in task.train.segments]
    lengths = [end - start for start, end in known if start is not None and end is not None]
    source = backbone.name.removeprefix(RANDOM)
    if os.path.exists(source):
        source = os.path.abspath(source)
    record = PredictorRecord(
        model=f"{RANDOM if backbone.name.startswith(RANDOM) else ''}{source}",
        options=dict(backbone.options),
        **asdict(backbone.clips),
        encoder=backbone.digest,
        classes=list(task.classes),
        several=task.several,
        protocol=cell.protocol.plain(),
        point=json.loads((cell.folder / SELECTED).read_text(encoding="utf-8"))["point"],
        row_seconds=float(np.median(lengths)) if 2 * len(lengths) > len(known) else None,
    )
    write_json(path, record.as_json())


def _with_pretraining(row: dict[str, Any], pretraining: Mapping[str, Any]) -> dict[str, Any]:
    others = [flag for flag in row["flags"] if flag not in row.get("pretraining", {}).get("flags", ())]
    return {**row, "flags": [*pretraining["flags"], *others], "pretraining": dict(pretraining)}


def _probe(cell: Cell) -> NDArray[np.float64]:
    """Trains the grid on features and returns (N, K) scores of the test split."""
    task, protocol, folder = cell.task, cell.protocol, cell.folder
    view = {"device": cell.device, "batch": 4 * protocol.encode_batch}
    train = _features(cell, task.train, "train", ViewPlan.training_of(protocol))
    state = folder / STATE / "heads.safetensors"
    heads = train_grid(train, task, protocol, state, seed=cell.seed, device=cell.device, tell=cell.tell)
    evaluation = ViewPlan.evaluation_of(protocol)
    found = feature_scores(heads, _features(cell, task.val, "val", evaluation), task.val, task, **view)
    best = _select(cell, found)
    save_state(folder / WEIGHTS, [heads[best]], None, protocol.epochs)

    def test() -> NDArray[np.float64]:
        split = task.open_test(folder)
        return feature_scores([heads[best]], _features(cell, split, "test", evaluation), split, task, **view)[0]

    return _tested(cell, test)


def _tune(cell: Cell) -> NDArray[np.float64]:
    """Trains each point of the grid in full and returns (N, K) scores of the test split."""
    task, protocol, backbone, folder = cell.task, cell.protocol, cell.backbone, cell.folder
    common: dict[str, Any] = {"several": task.several, "device": cell.device}
    sizes = (task.num_classes, protocol, backbone.clips)
    points, found = protocol.grid(), []
    for point in points:
        path = folder / STATE / f"{point.name}.safetensors"
        scores = path.with_suffix(".npy")
        if not scores.exists():
            model = train_point(
                backbone, task, protocol, point, path, seed=cell.seed, tell=cell.tell, device=cell.device
            )
            found_here = clip_scores(model, task.val.rows, task.val.videos, *sizes, **common)
            write_array_whole(scores, found_here)
        found.append(np.load(scores))
    best = _select(cell, found)
    chosen = folder / STATE / f"{points[best].name}.safetensors"
    if chosen.exists():
        write_whole(folder / WEIGHTS, partial(shutil.copyfile, chosen))

    def test() -> NDArray[np.float64]:
        model = build_tuned(backbone, task.num_classes, points[best], protocol, cell.seed)
        restore_state(folder / WEIGHTS, [model], None)
        split = task.open_test(folder)
        return clip_scores(model.to(cell.device), split.rows, split.videos, *sizes, **common)

    return _tested(cell, test)


def _select(cell: Cell, scores: list[NDArray[np.float64]]) -> int:
    """The best point on the validation split, written down once. Of equal ones the log loss decides, then the order."""
    task, metric, selected = cell.task, METRICS[cell.task.main_metric], cell.folder / SELECTED
    if selected.exists():
        name = json.loads(selected.read_text(encoding="utf-8"))["point"]
        return [point.name for point in cell.protocol.grid()].index(name)
    table = []
    for point, found in zip(cell.protocol.grid(), scores, strict=True):
        row: dict[str, Any] = {"point": point.name, "score": None, "log_loss": None}
        if np.isfinite(found).all():
            row |= {
                "score": metric(task.val.predictions(found)),
                "log_loss": negative_log_likelihood(task.val.truth, found),
            }
        table.append(row)
    ranked = [
        (-row["score"], row["log_loss"], number)
        for number, row in enumerate(table)
        if row["score"] is not None and np.isfinite(row["score"])
    ]
    if not ranked:
        raise ConfigError(f"{cell.folder}: no point of the grid has a finite score; give smaller learning rates")
    best = min(ranked)[2]
    write_json(cell.folder / VALIDATION, table)
    write_json(selected, {"metric": task.main_metric, "of": len(table), **table[best]})
    return best


def _tested(cell: Cell, test: Callable[[], NDArray[np.float64]]) -> NDArray[np.float64]:
    """The scores of the test split: read where they were made already, so that nothing is predicted twice."""
    path = cell.folder / PREDICTIONS
    if not path.exists():
        scores = test()
        truth = cell.task.open_test(cell.folder).truth
        write_arrays_whole(path, {"scores": scores, "truth": truth})
    with np.load(path) as known:
        return known["scores"]


def _features(cell: Cell, split: Split, name: str, plan: ViewPlan) -> Features:
    averaged = "attentive" not in cell.protocol.heads
    identity = digest([cell.backbone.digest, split.identity, repr(plan), repr(cell.protocol.recipe()), str(averaged)])
    return extract(
        cell.features / f"{name}_{identity[:12]}",
        split,
        plan,
        cell.backbone,
        cell.protocol,
        averaged=averaged,
        seed=0,
        device=cell.device,
        progress=cell.progress,
    )


def negative_log_likelihood(truth: NDArray, scores: NDArray[np.float64]) -> float:
    """The mean over rows, and over labels where a row may have several."""
    clipped = scores.clip(LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    if truth.ndim == 2:
        return float(-np.where(truth, np.log(clipped), np.log(1 - clipped)).mean())
    return float(-np.log(clipped[np.arange(len(truth)), truth]).mean())
