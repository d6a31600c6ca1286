"""The parts of a page of runs: each takes the runs in the order of their colours and returns HTML whose text is escaped."""

from __future__ import annotations

import csv
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..config.settings import Config
from ..console.table import Table, hours
from ..curate.draws import plan, shares
from ..draws.changes import marks
from ..draws.samplers import build_order
from ..inputs.folders import PROBE_FILE
from ..record.device_time import held_up_by
from ..record.metrics import QUARANTINE_FILE
from ..record.run_record import read_starts
from ..record.skips import SKIPPED_FILE
from .charts import RUN_COLOURS, Line, chart
from .curves import LATEST_STEPS, Curve, Curves, read_probe
from .page import paragraph, table

STRETCHES, STRETCH_CLIPS = 10, 10_000  # clips that are looked at
LISTED = 20  # rows of a table of what failed
UNKNOWN = "unknown"
# Titles, units, and which numbers of the log are drawn; the second of them dashed.
TRAINING = (
    ("Loss; dashed: of held-out videos", "loss", ("loss", "validation_loss")),
    ("Probe: balanced accuracy on the labelled table", "share", ("probe",)),
    ("RankMe: how many directions the features use", "directions", ("rankme",)),
    ("Spread of the features over clips", "feature_std", ("feature_std",)),
    ("Learning rate", "rate", ("learning_rate",)),
    ("Gradient norm", "norm", ("gradient_norm",)),
    ("Steps that were left out", "share of steps", ("skipped",)),
)
LOGARITHMIC = ("loss", "norm")  # units
SPEED = (
    ("Speed", "clips/s", ("clips_per_second",)),
    ("Waiting for clips", "% of a step", ("data_wait_percent",)),
    ("The GPU computes", "% of a step", ("gpu_busy_percent",)),
    ("The host holds up", "% of a step", ("host_bound_percent",)),
    ("Packets decoded for each frame used", "amplification", ("amplification",)),
)


@dataclass
class ShownRun:
    """A run on the page. label: unlike all others' there. curves: as far as the run has come."""

    run_dir: Path
    label: str
    config: Config
    curves: Curves
    probe: Curve = field(default_factory=Curve)
    starts: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(cls, run_dir: Path, label: str, config: Config, curves: Curves) -> ShownRun:
        return cls(run_dir, label, config, curves, read_probe(run_dir / PROBE_FILE), read_starts(run_dir))

    def curve(self, name: str) -> Curve:
        return self.probe if name == "probe" else self.curves.by_name.get(name, Curve())


def key(number: int, label: str) -> str:
    """A run's name behind its colour."""
    return f'<span class="key key{number % len(RUN_COLOURS)}"></span>{html.escape(label)}'


def overview(runs: Sequence[ShownRun]) -> str:
    """Runs side by side: a column each."""
    columns = [_facts(run) for run in runs]
    header = ("", *(run.label for run in runs))
    rows = [(name, *(column[name] for column in columns)) for name in columns[0]]
    keys = "".join(f"<li>{key(number, run.label)}</li>" for number, run in enumerate(runs))
    return f'<ul class="runs">{keys}</ul>{table(Table(header, rows))}'


def _facts(run: ShownRun) -> dict[str, str]:
    curves, config, start = run.curves, run.config, run.starts[-1] if run.starts else {}
    git, machine = start.get("git") or {}, start.get("machine", {})

    def last(curve: Curve) -> str:
        points = curve.points()
        return f"{points['mean'][-1]:.4g} (step {points['step'][-1]:,.0f})" if len(points["step"]) else "none"

    return {
        "steps": f"{curves.last.get('step', 0):,}",
        "objective": config.objective.kind,
        "encoder": config.model.encoder,
        "clips": f"{config.data.frames} frames, {config.data.resolution} pixels, {config.optim.batch} a step",
        "loss, newest steps": f"{curves.latest['loss']:.4g}" if "loss" in curves.latest else "none",
        "loss, held-out videos": last(run.curve("validation_loss")),
        "probe": last(run.probe),
        "RankMe": last(run.curve("rankme")),
        "steps left out": f"{run.curve('skipped').total:,.0f}",
        "hours of steps": hours(curves.seconds / 3600),
        "processes": str(start.get("ranks", UNKNOWN)),
        "device": str(machine.get("gpu") or machine.get("device", UNKNOWN)),
        "started": f"{start.get('started', UNKNOWN)}" + (f", {len(run.starts)} times" if len(run.starts) > 1 else ""),
        "commit": git.get("commit", UNKNOWN)[:12] + (" (changed since)" if git.get("changed") else ""),
    }


def charts(runs: Sequence[ShownRun], wanted: Sequence[tuple[str, str, tuple[str, ...]]]) -> str:
    """Those of TRAINING or SPEED that any run has values of."""
    changed = {number: [step for step, _ in marks(run.run_dir)] for number, run in enumerate(runs)}
    figures = []
    for title, unit, names in wanted:
        lines = [
            Line(number, run.label if place == 0 else f"{run.label}, {names[place]}", run.curve(name), place > 0)
            for number, run in enumerate(runs)
            for place, name in enumerate(names)
        ]
        figures.append(chart(title, unit, lines, changed, log=unit in LOGARITHMIC))
    drawn = "".join(figures)
    note = "Lines are means of stretches of steps, areas reach from the least to the largest value. Dotted: settings changed."
    return f'{paragraph(note)}<div class="charts">{drawn}</div>' if drawn else paragraph("No step is written down yet.")


def speed(runs: Sequence[ShownRun]) -> str:
    """In words what holds each run up, then the charts."""
    said = "".join(
        f"<p>{key(number, run.label)}: {html.escape(_speed_words(run.curves))}</p>" for number, run in enumerate(runs)
    )
    return said + charts(runs, SPEED)


def _speed_words(curves: Curves) -> str:
    latest = curves.latest
    if "clips_per_second" not in latest:
        return "no step is written down yet."
    sentences = [
        f"{latest['clips_per_second']:,.1f} clips/s",
        f"waiting for clips took {latest['data_wait_percent']:.1f} % of a step",
    ]
    if "gpu_busy_percent" in latest:
        sentences.append(f"the GPU computed for {latest['gpu_busy_percent']:.1f} %")
        sentences.append(f"and for {latest['host_bound_percent']:.1f} % it waited for the host to launch work")
    sentences.append(f"decoding took {latest['amplification']:.1f} packets for each frame used")
    sentences.append(f"held up by: {held_up_by(latest)}")
    return f"{'; '.join(sentences)}. Means of the newest tenth of the steps, {LATEST_STEPS:,} at most."


def drawn(run: ShownRun) -> str:
    """Sources, domains and leaves among the clips that the run has drawn; of a long run some stretches, evenly spread.

    Raises ConfigError or CorpusError where its corpus or tree is not there.
    """
    clips = int(run.curves.last.get("first_clip", -1)) + run.config.optim.batch
    if "first_clip" not in run.curves.last:
        return paragraph("No clip is drawn yet.")
    planned = plan(str(run.run_dir / "config.yaml"))
    length = min(clips, STRETCH_CLIPS)
    starts = np.linspace(0, clips - length, min(STRETCHES, -(-clips // length))).astype(np.int64)
    numbers = np.unique(starts[:, None] + np.arange(length))
    found, lines = shares(planned, np.unique(build_order(run.config).clips(numbers)[0]))
    return (
        paragraph(f"{len(numbers):,} of {clips:,} clips.")
        + table(found)
        + "".join(map(paragraph, [*planned.notes, *lines]))
    )


def failures(run: ShownRun) -> str:
    """Videos whose clips could not be read, and steps that were left out: the most frequent and the latest ones."""
    counts: dict[str, tuple[int, str]] = {}
    stem = Path(QUARANTINE_FILE).stem
    for file in sorted(run.run_dir.glob(f"{stem}*.csv")):
        for row in _rows(file):
            count, reason = counts.get(row["path"], (0, row["reason"]))
            counts[row["path"]] = (count + 1, reason)
    most = sorted(counts.items(), key=lambda item: -item[1][0])
    cells = [(Path(path).name, f"{count:,}", reason) for path, (count, reason) in most[:LISTED]]
    total = sum(count for count, _ in counts.values())
    parts = [paragraph(f"{total:,} clips of {len(counts):,} videos could not be read and were replaced.")]
    parts.append(table(Table(("video", "clips", "why, the first time"), cells)))
    skipped = list(_rows(run.run_dir / SKIPPED_FILE))
    parts.append(paragraph(f"{len({row['step'] for row in skipped}):,} steps were left out."))
    latest = [(row["step"], Path(row["path"]).name, row["loss"], row["reason"]) for row in skipped[-LISTED:]]
    parts.append(table(Table(("step", "clip's video", "loss", "why"), latest)))
    return "".join(parts)


def _rows(file: Path) -> list[dict[str, str]]:
    """A last line that a killed run has left half written is no row."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as opened:
        return [row for row in csv.DictReader(opened) if None not in row.values()]
