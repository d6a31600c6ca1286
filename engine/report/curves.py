"""What a run has written down step by step, in bounded memory: of millions of steps the least, the largest and the mean of each
of some thousand stretches, so that no spike is lost. Reading goes on where it stopped.

Shapes: S stretches.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.json as pa_json
from numpy.typing import NDArray

from ..config.error import ConfigError
from ..inputs.folders import METRICS_FILE

STRETCHES = 1024  # at most, of a curve; even, as two become one
BLOCK_BYTES = 2**25  # read at a time
LATEST_STEPS = 1000


class Curve:
    """A number over the steps. width: steps of a stretch, a power of two: stretch i holds steps i * width .. (i + 1) * width - 1.
    not_finite: values that were NaN or infinite; they stand in no stretch."""

    def __init__(self) -> None:
        self.width, self.not_finite = 1, 0
        self._count = np.zeros(STRETCHES, np.int64)
        self._total = np.zeros(STRETCHES)
        self._low, self._high = np.full(STRETCHES, np.inf), np.full(STRETCHES, -np.inf)

    def add(self, steps: NDArray[np.int64], values: NDArray[np.float64]) -> None:
        """steps: (n,) from 0 on, in any order. values: (n,)."""
        finite = np.isfinite(values)
        self.not_finite += int((~finite).sum())
        steps, values = steps[finite], values[finite]
        if not steps.size:
            return
        while steps.max() // self.width >= STRETCHES:
            self._halve()
        places = steps // self.width
        self._count += np.bincount(places, minlength=STRETCHES)
        self._total += np.bincount(places, values, minlength=STRETCHES)
        np.minimum.at(self._low, places, values)
        np.maximum.at(self._high, places, values)

    def _halve(self) -> None:
        self.width *= 2
        for name, both, empty in (
            ("_count", np.add, 0),
            ("_total", np.add, 0.0),
            ("_low", np.minimum, np.inf),
            ("_high", np.maximum, -np.inf),
        ):
            old = getattr(self, name)
            new = np.full_like(old, empty)
            new[: STRETCHES // 2] = both(old[0::2], old[1::2])
            setattr(self, name, new)

    @property
    def total(self) -> float:
        return float(self._total.sum())

    def points(self) -> dict[str, NDArray[np.float64]]:
        """step (the middle of a stretch), low, high, mean: (S,) each, of the stretches that hold a value."""
        kept = np.flatnonzero(self._count)
        steps = (kept * self.width + (self.width - 1) / 2).astype(np.float64)
        mean = self._total[kept] / self._count[kept]
        return {"step": steps, "low": self._low[kept], "high": self._high[kept], "mean": mean}


@dataclass
class Curves:
    """All curves of a run, by their names in metrics.jsonl. steps: rows. last: the newest row. latest: means over the newest
    tenth of the rows, LATEST_STEPS at most, by name. seconds: that all steps took, by their clips and clips per second."""

    by_name: dict[str, Curve] = field(default_factory=dict)
    steps: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    _recent: pa.Table | None = None
    _before: tuple[NDArray[np.float64], NDArray[np.float64]] = (
        np.empty(0),
        np.empty(0),
    )  # first clip and speed of the last row

    def add(self, rows: pa.Table) -> None:
        steps = rows["step"].to_numpy()
        self.steps += len(rows)
        for name in rows.column_names:
            kind = rows.schema.field(name).type
            if name == "step" or not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
                continue
            values = rows[name].to_numpy().astype(np.float64)
            there = ~rows[name].is_null().to_numpy()
            self.by_name.setdefault(name, Curve()).add(steps[there], values[there])
        if {"first_clip", "clips_per_second"} <= {*rows.column_names}:
            self._time(rows)
        joined = [rows.slice(max(0, len(rows) - LATEST_STEPS))]
        if self._recent is not None:
            joined.insert(0, self._recent)
        recent = pa.concat_tables(joined, promote_options="permissive")
        self._recent = recent = recent.slice(max(0, len(recent) - LATEST_STEPS))
        (last,) = recent.slice(len(recent) - 1).to_pylist()
        self.last = {name: value for name, value in last.items() if value is not None}
        latest = recent.slice(max(0, len(recent) - max(1, self.steps // 10)))
        self.latest = {name: _mean(latest[name]) for name in latest.column_names if name in self.by_name}

    def _time(self, rows: pa.Table) -> None:
        first, speed = (rows[name].to_numpy().astype(np.float64) for name in ("first_clip", "clips_per_second"))
        first, speed = np.append(self._before[0], first), np.append(self._before[1], speed)
        self._before = first[-1:], speed[-1:]
        clips = np.diff(first)
        timed = (clips > 0) & (speed[:-1] > 0)
        self.seconds += float((clips[timed] / speed[:-1][timed]).sum())


def _mean(column: pa.ChunkedArray) -> float:
    values = column.drop_null().to_numpy().astype(np.float64)
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else float("nan")


class MetricsReader:
    """Follows RUN/metrics.jsonl. A run that is resumed writes that file anew without the steps behind its checkpoint: then the
    curves begin anew as well. A last line that is not whole is left for the next time."""

    def __init__(self, run_dir: Path) -> None:
        self.path, self.curves = run_dir / METRICS_FILE, Curves()
        self._offset, self._file = 0, (0, 0)

    def read(self) -> Curves:
        """What is there by now. Raises ConfigError where a line is no JSON."""
        if not self.path.exists():
            return self.curves
        with self.path.open("rb") as file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            if identity != self._file or status.st_size < self._offset:
                self.curves, self._offset, self._file = Curves(), 0, identity
            file.seek(self._offset)
            for block in _whole_lines(file):
                self._offset += len(block)
                self._add(block)
        return self.curves

    def _add(self, block: bytes) -> None:
        options = pa_json.ReadOptions(use_threads=False, block_size=max(len(block), 1))
        try:
            self.curves.add(pa_json.read_json(io.BytesIO(block), read_options=options))
        except (pa.ArrowInvalid, KeyError) as error:
            raise ConfigError(
                f"{self.path}: a line is no row of metrics ({error}); take it out, or name another run"
            ) from error


def _whole_lines(file: io.BufferedReader) -> Iterator[bytes]:
    rest = b""
    while block := file.read(BLOCK_BYTES):
        whole, newline, rest = (rest + block).rpartition(b"\n")
        if newline:
            yield whole + newline


def read_probe(path: Path) -> Curve:
    """The balanced accuracies of RUN/probe.jsonl; probes that failed are left out."""
    curve = Curve()
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    rows: list[Mapping[str, Any]] = [json.loads(line) for line in lines]
    done = [(row["step"], row["balanced_accuracy"]) for row in rows if "balanced_accuracy" in row]
    if done:
        steps, values = zip(*done, strict=True)
        curve.add(np.array(steps, np.int64), np.array(values, np.float64))
    return curve
