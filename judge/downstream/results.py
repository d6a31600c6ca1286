"""The cells of a matrix, gathered: seeds merged, baselines beside them, ranks and means over data sets.

Shapes: S seeds, R resamples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from .downstream import FAILURES
from .finetune import RESAMPLES, ROW
from .judgement import Interval, interval_of
from .matrix import DatasetEntry, Matrix, ModelEntry, Places, ProtocolEntry


@dataclass(frozen=True)
class Result:
    """One encoder on one data set under one protocol. rows: of its seeds, as far as they are done. interval: of the mean over
    seeds, by resamples of the same subjects for all of them. deviation: of the seeds' scores; NaN for one. paper: what the paper
    reports, 0 .. 1, where the protocol is the paper's."""

    dataset: DatasetEntry
    model: ModelEntry
    protocol: ProtocolEntry
    rows: tuple[dict[str, Any], ...]
    interval: Interval
    deviation: float
    paper: float | None

    @property
    def title(self) -> str:
        return Path(self.dataset.name).stem

    @property
    def flags(self) -> list[str]:
        """Those of any seed, and with how many of them where not all have it."""
        names = list(dict.fromkeys(flag for row in self.rows for flag in row["flags"]))
        counts = [sum(name in row["flags"] for row in self.rows) for name in names]
        return [
            name if count == len(self.rows) else f"{name} ({count} of {len(self.rows)} seeds)"
            for name, count in zip(names, counts, strict=True)
        ]

    def mean(self, metric: str) -> float:
        """Of another metric over the seeds; NaN where it is not known."""
        values = [row["metrics"].get(metric) for row in self.rows]
        return float(np.mean(values)) if values and None not in values else float("nan")


def gather(matrix: Matrix, places: Places) -> list[Result]:
    """All that have a seed done."""
    found = []
    for dataset in matrix.datasets:
        for protocol in matrix.protocols:
            for model in matrix.models:
                folders = [places.cell(dataset, model, protocol, seed) for seed in matrix.seeds]
                folders = [folder for folder in folders if (folder / ROW).exists()]
                if folders:
                    found.append(_result(dataset, model, protocol, folders))
    return found


def failures(places: Places) -> list[dict[str, str]]:
    path = places.out / FAILURES
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def ranks(results: Iterable[Result], matrix: Matrix) -> dict[str, dict[str, float]]:
    """protocol -> encoder -> its mean rank, 1 is best, over the data sets on which all encoders have a result."""
    scores = {(r.protocol.name, r.dataset.name, r.model.name): r.interval.score for r in results}
    names = [model.name for model in matrix.models]
    table: dict[str, dict[str, float]] = {}
    for protocol in matrix.protocols:
        own = [[scores.get((protocol.name, dataset.name, name)) for name in names] for dataset in matrix.datasets]
        columns = [rankdata(-np.array(values, float)) for values in own if None not in values]
        if columns:
            table[protocol.name] = dict(zip(names, np.mean(columns, axis=0).tolist(), strict=True))
    return table


def domain_means(results: Iterable[Result], matrix: Matrix) -> dict[tuple[str, str], dict[str, float]]:
    """(protocol, encoder) -> domain -> the mean of the main metrics of its data sets; "mean" over all of them."""
    scores: dict[tuple[str, str], dict[str, list[float]]] = {
        (protocol.name, model.name): {} for protocol in matrix.protocols for model in matrix.models
    }
    for result in results:
        own = scores[result.protocol.name, result.model.name]
        for name in (result.rows[0]["domain"], "mean"):
            own.setdefault(name, []).append(result.interval.score)
    return {key: {name: float(np.mean(values)) for name, values in own.items()} for key, own in scores.items() if own}


def _result(dataset: DatasetEntry, model: ModelEntry, protocol: ProtocolEntry, folders: list[Path]) -> Result:
    rows = tuple(json.loads((folder / ROW).read_text(encoding="utf-8")) for folder in folders)
    scores = [row["score"] for row in rows]
    drawn = np.mean([np.load(folder / RESAMPLES) for folder in folders], axis=0)
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
    paper = dataset.paper.get(model.column) if protocol.is_papers else None
    interval = interval_of(float(np.mean(scores)), drawn)
    return Result(dataset, model, protocol, rows, interval, deviation, None if paper is None else paper / 100)
