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
from .matrix import DatasetEntry, Matrix, ModelEntry, Places, ProtocolEntry
from .metrics import Interval, interval_of


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
    results = list(results)
    table: dict[str, dict[str, float]] = {}
    for protocol in matrix.protocols:
        columns = []
        for dataset in matrix.datasets:
            scores = [
                next(
                    (
                        r.interval.score
                        for r in results
                        if (r.dataset, r.protocol, r.model) == (dataset, protocol, model)
                    ),
                    None,
                )
                for model in matrix.models
            ]
            if None not in scores:
                columns.append(rankdata(-np.array(scores, float)))
        if columns:
            means = np.mean(columns, axis=0)
            table[protocol.name] = {m.name: float(rank) for m, rank in zip(matrix.models, means, strict=True)}
    return table


def domain_means(results: Iterable[Result], matrix: Matrix) -> dict[tuple[str, str], dict[str, float]]:
    """(protocol, encoder) -> domain -> the mean of the main metrics of its data sets; "mean" over all of them."""
    table: dict[tuple[str, str], dict[str, float]] = {}
    results = list(results)
    for protocol in matrix.protocols:
        for model in matrix.models:
            own = [r for r in results if r.protocol == protocol and r.model == model]
            if own:
                domains = sorted({r.rows[0]["domain"] for r in own})
                means = {
                    d: float(np.mean([r.interval.score for r in own if r.rows[0]["domain"] == d])) for d in domains
                }
                means["mean"] = float(np.mean([r.interval.score for r in own]))
                table[protocol.name, model.name] = means
    return table


def _result(dataset: DatasetEntry, model: ModelEntry, protocol: ProtocolEntry, folders: list[Path]) -> Result:
    rows = tuple(json.loads((folder / ROW).read_text(encoding="utf-8")) for folder in folders)
    scores = [row["score"] for row in rows]
    drawn = np.mean([np.load(folder / RESAMPLES) for folder in folders], axis=0)
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan")
    paper = dataset.paper.get(model.column) if protocol.is_papers else None
    interval = interval_of(float(np.mean(scores)), drawn)
    return Result(dataset, model, protocol, rows, interval, deviation, None if paper is None else paper / 100)
