"""What one GPU showed: the rows of a first run on a card, as Markdown. The good and the bad stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...engine.console.table import Table

Row = dict[str, Any]


def steps(rows: Sequence[Row]) -> str:
    """The training step on resident data."""
    header = (
        "step", "clips", "compile", "clips/s", "of the matrix ceiling", "GPU busy of ms", "host alone, ms", "memory",
    )  # fmt: skip
    mine = _of(rows, "gpu_step")
    cells = []
    for row in mine:
        compiled = f"{row['compile']}, graphs of {row['cuda_graphs']}" if row["cuda_graphs"] else row["compile"]
        busy = f"{row['gpu_busy_milliseconds']:.0f} / {row['milliseconds']:.0f}"
        speed, host = f"{row['clips_per_second']:,.0f}", f"{row['host_milliseconds']:.0f}"
        share, memory = f"{row['of_matrix_ceiling']:.0%}", f"{row['memory_gigabytes']:.1f} GB"
        cells.append((row["model"], f"{row['clips']}", compiled, speed, share, busy, host, memory))
    return _with_conditions(Table(header, cells), mine)


def peers(rows: Sequence[Row]) -> str:
    """The same in a process with Hugging Face's models: equal losses first."""
    header = ("step", "arm", "clips/s", "ours is so many times as fast", "loss differs by at most")
    mine = _peers(rows)
    cells = []
    for row in mine:
        step = f"{row['objective'].upper()}, {row['encoder']}, {row['batch']} clips, ours with compile {row['compile']}"
        ratio, apart = "1", "-"
        if "ours_against_it" in row:
            ratio, apart = f"{row['ours_against_it']['median']:.1f}", f"{row['largest_loss_difference']:.1e}"
        cells.append((step, row["arm"], f"{row['clips_per_second']['median']:,.0f}", ratio, apart))
    return _with_conditions(Table(header, cells), mine)


def kernels(rows: Sequence[Row]) -> str:
    """The GPU's time of a call with its backward pass, and the host's."""
    mine = _of(rows, "gpu_kernel")
    cells = [
        (
            row["operator"],
            f"{row['fused_gpu_us']:,.0f}",
            f"{row['eager_gpu_us'] / row['fused_gpu_us']:.1f}x",
            f"{row['floor_us'] / row['fused_gpu_us']:.0%}",
            f"{row['fused_host_us']:,.0f} ({row['eager_host_us']:,.0f})",
        )
        for row in mine
    ]
    header = ("operator", "GPU us", "against eager", "of its floor", "host us (eager's)")
    return _with_conditions(Table(header, cells), mine)


def videos(rows: Sequence[Row]) -> str:
    """From videos to clips, beside what the step would take."""
    mine = _of(rows, "gpu_video")
    cells = [(row["what"], f"{row['clips_per_second']:,.0f}", row["note"]) for row in mine]
    return _with_conditions(Table(("", "clips/s", ""), cells), mine)


def beside(rows: Sequence[Row]) -> str:
    """A step's milliseconds alone and while clips are decoded."""
    mine = _of(rows, "gpu_beside")
    cells = [(row["step"], f"{row['alone']:.1f}", row["beside"], f"{row['then']:,.1f}") for row in mine]
    return _with_conditions(Table(("MAE ViT-B", "alone, ms", "beside it", "then, ms"), cells), mine)


def short(rows: Sequence[Row]) -> str:
    """README's."""
    mine = _peers(rows)
    ratios = {}
    for row in mine:
        if row["arm"] == "Hugging Face, SDPA":
            ratios.setdefault(row["objective"], []).append(row["ours_against_it"]["median"])
    said = ", ".join(f"{max(found):.1f} times ({name.upper()})" for name, found in ratios.items())
    found = _of(rows, "gpu_video")
    step, run = found[0], next(row for row in found if "pretrain" in row["what"])
    fastest = max(row["of_matrix_ceiling"] for row in _of(rows, "gpu_step"))
    measured = f"{step['machine']['device']} (commit {step['commit']}, {step['time'][:10]})"
    return (
        f"Measured once, on one {measured}. On resident data a step is up to {said} as fast as Hugging Face's with SDPA, not "
        f"compiled, at up to {fastest:.0%} of the card's matrix ceiling. **From videos it is not there yet:** with proxies "
        f"decoded in threads of the same process a run trained {run['clips_per_second']:.0f} clips/s where the step could eat "
        f"{step['clips_per_second']:,.0f}."
    )


def _of(rows: Sequence[Row], benchmark: str) -> list[Row]:
    return [row for row in rows if row["benchmark"] == benchmark]


def _peers(rows: Sequence[Row]) -> list[Row]:
    return [
        row
        for row in _of(rows, "training")
        if row["part"] == "peers" and "capability" in row["machine"] and "clips_per_second" in row and not row["reason"]
    ]


def _with_conditions(table: Table, rows: Sequence[Row]) -> str:
    row = rows[0]
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "triton", "python"))
    note = "; transcribed from the logs, one run of each" if "transcribed_from" in row else ""
    machine = f"{row['machine']['device']}, driver {row['machine']['driver']}"
    return "\n".join([table.markdown(), "", f"{machine}; {versions}; commit {row['commit']}{note}."])
