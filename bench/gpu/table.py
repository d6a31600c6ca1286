"""What one GPU showed: the rows of a first run on a card, as Markdown. The good and the bad stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.console.table import Table
from ..rows.cells import known_cell
from ..rows.row import select_rows

Row = dict[str, Any]
STEPS = {
    "step": "{model}",
    "clips": "{clips}",
    "compile": lambda row: row["compile"] + f", graphs of {row['cuda_graphs']}" * bool(row["cuda_graphs"]),
    "clips/s": "{clips_per_second:,.0f}",
    "of the matrix ceiling": "{of_matrix_ceiling:.0%}",
    "GPU busy of ms": "{gpu_busy_milliseconds:.0f} / {milliseconds:.0f}",
    "host alone, ms": "{host_milliseconds:.0f}",
    "memory": "{memory_gigabytes:.1f} GB",
}
PEERS = {
    "step": lambda row: (
        f"{row['objective'].upper()}, {row['encoder']}, {row['batch']} clips, ours with compile {row['compile']}"
    ),
    "arm": "{arm}",
    "clips/s": "{clips_per_second[median]:,.0f}",
    "ours is so many times as fast": known_cell("ours_against_it", "{[median]:.1f}", "1"),
    "loss differs by at most": known_cell("largest_loss_difference", "{:.1e}"),
}
KERNELS = {
    "operator": "{operator}",
    "GPU us": "{fused_gpu_us:,.0f}",
    "against eager": lambda row: f"{row['eager_gpu_us'] / row['fused_gpu_us']:.1f}x",
    "of its floor": lambda row: f"{row['floor_us'] / row['fused_gpu_us']:.0%}",
    "host us (eager's)": "{fused_host_us:,.0f} ({eager_host_us:,.0f})",
}
BESIDE = {"MAE ViT-B": "{step}", "alone, ms": "{alone:.1f}", "beside it": "{beside}", "then, ms": "{then:,.1f}"}


def steps(rows: Sequence[Row]) -> str:
    """The training step on resident data."""
    mine = select_rows(rows, "gpu_step")
    return _with_conditions(Table.of(mine, STEPS), mine)


def peers(rows: Sequence[Row]) -> str:
    """The same in a process with Hugging Face's models: equal losses first."""
    mine = _peers(rows)
    return _with_conditions(Table.of(mine, PEERS), mine)


def kernels(rows: Sequence[Row]) -> str:
    """The GPU's time of a call with its backward pass, and the host's."""
    mine = select_rows(rows, "gpu_kernel")
    return _with_conditions(Table.of(mine, KERNELS), mine)


def videos(rows: Sequence[Row]) -> str:
    """From videos to clips, beside what the step would take."""
    mine = select_rows(rows, "gpu_video")
    cells = [(row["what"], f"{row['clips_per_second']:,.0f}", row["note"]) for row in mine]
    return _with_conditions(Table(("", "clips/s", ""), cells), mine)


def beside(rows: Sequence[Row]) -> str:
    """A step's milliseconds alone and while clips are decoded."""
    mine = select_rows(rows, "gpu_beside")
    return _with_conditions(Table.of(mine, BESIDE), mine)


def short(rows: Sequence[Row]) -> str:
    """README's."""
    mine = _peers(rows)
    ratios = {}
    for row in mine:
        if row["arm"] == "Hugging Face, SDPA":
            ratios.setdefault(row["objective"], []).append(row["ours_against_it"]["median"])
    said = ", ".join(f"{max(found):.1f} times ({name.upper()})" for name, found in ratios.items())
    found = select_rows(rows, "gpu_video")
    step, run = found[0], next(row for row in found if "pretrain" in row["what"])
    fastest = max(row["of_matrix_ceiling"] for row in select_rows(rows, "gpu_step"))
    measured = f"{step['machine']['device']} (commit {step['commit']}, {step['time'][:10]})"
    return (
        f"Measured once, on one {measured}. On resident data a step is up to {said} as fast as Hugging Face's with SDPA, not "
        f"compiled, at up to {fastest:.0%} of the card's matrix ceiling. **From videos it is not there yet:** with proxies "
        f"decoded in threads of the same process a run trained {run['clips_per_second']:.0f} clips/s where the step could eat "
        f"{step['clips_per_second']:,.0f}."
    )


def _peers(rows: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in select_rows(rows, "training", part="peers")
        if "capability" in row["machine"] and "clips_per_second" in row and not row["reason"]
    ]


def _with_conditions(table: Table, rows: Sequence[Row]) -> str:
    row = rows[0]
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "triton", "python"))
    note = "; transcribed from the logs, one run of each" if "transcribed_from" in row else ""
    machine = f"{row['machine']['device']}, driver {row['machine']['driver']}"
    return "\n".join([table.markdown(), "", f"{machine}; {versions}; commit {row['commit']}{note}."])
