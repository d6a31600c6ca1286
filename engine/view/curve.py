"""A run's curve: its loss and speed over the steps. PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..draws.changes import Change, marks
from ..inputs.folders import no_metrics
from ..record.metrics import read_metrics
from .numbers import write_numbers

SMOOTHED = 21  # steps, odd


def view_curve(run_dir: Path, out: Path | None = None, numbers: Path | None = None) -> Path:
    """Plots loss, its mean around each step, and speed. numbers: a JSON file of these. Returns the path of the PNG, RUN/curve.png
    where `out` is None."""
    rows = read_metrics(run_dir)
    if not rows:  # or none that is whole
        raise no_metrics(run_dir)
    out = out or run_dir / "curve.png"
    from matplotlib.figure import Figure  # slow to import: only where something is drawn

    figure = Figure(figsize=(8, 5), layout="constrained")
    loss, speed = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = [row["step"] for row in rows]
    loss.plot(steps, [row["loss"] for row in rows], color="0.75", linewidth=0.8, label="each step")
    if len(rows) >= SMOOTHED:
        inner, mean = steps[SMOOTHED // 2 : -(SMOOTHED // 2)], _smooth([row["loss"] for row in rows])
        loss.plot(inner, mean, color="C0", label=f"mean of {SMOOTHED} around a step")
    if validated := [row for row in rows if "validation_loss" in row]:
        held_out = [row["validation_loss"] for row in validated]
        loss.plot([row["step"] for row in validated], held_out, "o-", color="C3", markersize=3, label="held-out videos")
    for step, changes in marks(run_dir):
        loss.axvline(step + 0.5, color="0.3", linestyle="--", linewidth=0.8)
        speed.axvline(step + 0.5, color="0.3", linestyle="--", linewidth=0.8)
        loss.plot([], [], "--", color="0.3", linewidth=0.8, label=shorten(step, changes))
    loss.set_yscale("log")
    loss.set_ylabel("loss")
    loss.set_title(run_dir.name)
    loss.legend(frameon=False)
    speed.plot(steps, [row["clips_per_second"] for row in rows], color="C1", linewidth=0.8)
    speed.set_ylabel("clips/s")
    speed.set_xlabel("step")
    figure.savefig(out, dpi=120)
    if numbers is not None:
        named = ("step", "loss", "validation_loss", "clips_per_second")
        write_numbers(numbers, {name: [row.get(name) for row in rows] for name in named})
    return out


def shorten(step: int, changes: Sequence[Change]) -> str:
    """A line of the legend: behind which step what was changed, at most three settings, each cut to a few words."""
    texts = [textwrap.shorten(f"{change.key} {change.before} -> {change.now}", 60) for change in changes[:3]]
    more = [f"{len(changes) - 3} more (run.json)"] if len(changes) > 3 else []
    return "\n".join([f"from step {step + 1:,} on:", *texts, *more])


def _smooth(values: Sequence[float]) -> NDArray[np.float64]:
    """The mean of the SMOOTHED values around each that has so many."""
    return np.convolve(values, np.full(SMOOTHED, 1 / SMOOTHED), "valid")
