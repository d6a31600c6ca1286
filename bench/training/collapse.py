"""Whether a JEPA's representation collapses: what a run's metrics say, as one row and as a line of a table.

Runs are those of `trocar pretrain demo_jepa_cpu` with other settings; the slow tests of the signals print the same lines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.record.metrics import read_metrics
from ..rows.cells import known_cell, table_of
from ..rows.row import row

ENDS = 20  # steps at either end over which noisy values are averaged


def collapse_row(run_dir: Path, setting: str) -> dict[str, Any]:
    """setting: how the table names the run. Raises ValueError where the run has too few steps."""
    rows = read_metrics(run_dir)
    ranks = [step["rankme"] for step in rows if "rankme" in step]
    if len(rows) < 2 * ENDS or len(ranks) < 6:
        raise ValueError(
            f"{run_dir}: {len(rows)} steps with {len(ranks)} values of rankme; at least {2 * ENDS} and 6 are needed"
        )
    ends = {
        name: [statistics.mean(step[name] for step in part) for part in (rows[:ENDS], rows[-ENDS:])]
        for name in ("feature_std", "loss")
    }
    flagged = next((step["step"] for step in rows if step.get("collapse")), None)
    return row(
        "jepa_collapse",
        torch.device("cpu"),
        {"setting": setting, "steps": len(rows), **ends, "rankme": ranks, "collapse_from": flagged},
    )


def rank_trend(ranks: Sequence[float]) -> tuple[float, float, float]:
    """The mean of the first and of the last third, and the standard error of their difference."""
    third = len(ranks) // 3
    parts = ranks[:third], ranks[-third:]
    first, last = (statistics.mean(part) for part in parts)
    return first, last, (sum(statistics.variance(part) for part in parts) / third) ** 0.5


def _ends(key: str) -> Callable[[Any], str]:
    return lambda row: ", ".join(f"{value:.3g}" for value in row[key])


def _rank(row: dict[str, Any]) -> str:
    first, last, error = rank_trend(row["rankme"])
    return f"{first:.2f}, {last:.2f} ({error:.2f}), {min(row['rankme']):.2f}"


table = table_of(
    {
        "peak rate, `ema`": "{setting}",
        "`feature_std`, first and last 20 steps": _ends("feature_std"),
        "`rankme`, first and last third (error of the difference), lowest": _rank,
        "loss, first and last 20 steps": _ends("loss"),
        "`collapse`": known_cell("collapse_from", "from step {}", "never"),
    }
)
