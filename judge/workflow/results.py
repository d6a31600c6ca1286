"""The cells of a workflow matrix, gathered: seeds merged, every metric with its interval.

Shapes: R resamples.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..downstream.judgement import interval_of
from ..downstream.matrix import ModelEntry, Places
from ..downstream.predictor import ROW
from .cell import RESAMPLES
from .matrix import HeadEntry, WorkflowDataset, WorkflowMatrix, cell_folder


@dataclass(frozen=True)
class Merged:
    """One metric over the seeds. deviation: over videos (or phases, as the row says), the mean of the seeds'. over_seeds: of their
    scores. low, high: 95 % of resamples of the mean over seeds. detectable: the smallest difference found in 80 % of the cases."""

    score: float
    deviation: float
    over_seeds: float
    low: float
    high: float
    detectable: float


@dataclass(frozen=True)
class WorkflowResult:
    """One head on one encoder's vectors of a data set. rows, folders: of its seeds, as far as they are done."""

    dataset: WorkflowDataset
    model: ModelEntry
    head: HeadEntry
    rows: tuple[dict[str, Any], ...]
    folders: tuple[Path, ...]
    metrics: dict[str, Merged]

    @property
    def title(self) -> str:
        return self.dataset.title


def gather(matrix: WorkflowMatrix, places: Places) -> list[WorkflowResult]:
    """All that have a seed done, in the order of the matrix."""
    found = []
    for dataset in matrix.judged:
        for model in matrix.models:
            for head in matrix.heads:
                folders = [cell_folder(places, dataset, model, head, seed) for seed in matrix.seeds]
                folders = [folder for folder in folders if (folder / ROW).exists()]
                if folders:
                    rows = tuple(json.loads((folder / ROW).read_text(encoding="utf-8")) for folder in folders)
                    found.append(WorkflowResult(dataset, model, head, rows, tuple(folders), _merged(rows, folders)))
    return found


def over_folds(results: list[WorkflowResult], dataset: WorkflowDataset) -> dict[tuple[str, str], list[WorkflowResult]]:
    """By (model, head), the folds of a data set that are done."""
    found: dict[tuple[str, str], list[WorkflowResult]] = {}
    for result in results:
        if result.dataset in dataset.parts():
            found.setdefault((result.model.name, result.head.name), []).append(result)
    return found


def _merged(rows: tuple[dict[str, Any], ...], folders: list[Path]) -> dict[str, Merged]:
    drawn = []
    for folder in folders:
        with np.load(folder / RESAMPLES) as known:
            drawn.append({name: known[name] for name in known.files})
    found = {}
    for name in rows[0]["metrics"]:
        scores = [_number(row["metrics"][name]["score"]) for row in rows]
        interval = interval_of(float(np.mean(scores)), np.mean([resamples[name] for resamples in drawn], axis=0))
        deviation = float(np.mean([_number(row["metrics"][name]["deviation"]) for row in rows]))
        over_seeds = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
        found[name] = Merged(interval.score, deviation, over_seeds, interval.low, interval.high, interval.detectable)
    return found


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
