"""Whether a JEPA's representation collapses: what a run's metrics say, as one row and as a line of a table.

Runs are those of `trocar pretrain demo_jepa_cpu` with other settings; the slow tests of the signals print the same lines.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...engine.console.table import Table
from ...engine.record.metrics import read_metrics
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


def table(rows: Sequence[dict[str, Any]]) -> str:
    header = (
        "peak rate, `ema`",
        "`feature_std`, first and last 20 steps",
        "`rankme`, first and last third (error of the difference), lowest",
        "loss, first and last 20 steps",
        "`collapse`",
    )
    cells = []
    for item in rows:
        first, last, error = rank_trend(item["rankme"])
        std, loss = (", ".join(f"{value:.3g}" for value in item[name]) for name in ("feature_std", "loss"))
        flagged = "never" if item["collapse_from"] is None else f"from step {item['collapse_from']}"
        rank = f"{first:.2f}, {last:.2f} ({error:.2f}), {min(item['rankme']):.2f}"
        cells.append((item["setting"], std, rank, loss, flagged))
    return Table(header, cells).markdown()
