"""What one GPU showed: the rows of a first run on a card, as Markdown. The good and the bad stand side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def steps(rows: Sequence[Row]) -> str:
    """The training step on resident data."""
    lines = [
        "| step | clips | compile | clips/s | of the matrix ceiling | GPU busy of ms | host alone, ms | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    mine = _of(rows, "gpu_step")
    for row in mine:
        compiled = f"{row['compile']}, graphs of {row['cuda_graphs']}" if row["cuda_graphs"] else row["compile"]
        lines.append(
            f"| {row['model']} | {row['clips']} | {compiled} | {row['clips_per_second']:,.0f} | "
            f"{row['of_matrix_ceiling']:.0%} | {row['gpu_busy_milliseconds']:.0f} / {row['milliseconds']:.0f} | "
            f"{row['host_milliseconds']:.0f} | {row['memory_gigabytes']:.1f} GB |"
        )
    return _with_conditions(lines, mine)


def peers(rows: Sequence[Row]) -> str:
    """The same in a process with Hugging Face's models: equal losses first."""
    lines = [
        "| step | arm | clips/s | ours is so many times as fast | loss differs by at most |",
        "|---|---|---|---|---|",
    ]
    mine = _peers(rows)
    for row in mine:
        step = f"{row['objective'].upper()}, {row['encoder']}, {row['batch']} clips, ours with compile {row['compile']}"
        ratio, apart = "1", "-"
        if "ours_against_it" in row:
            ratio, apart = f"{row['ours_against_it']['median']:.1f}", f"{row['largest_loss_difference']:.1e}"
        lines.append(f"| {step} | {row['arm']} | {row['clips_per_second']['median']:,.0f} | {ratio} | {apart} |")
    return _with_conditions(lines, mine)


def kernels(rows: Sequence[Row]) -> str:
    """The GPU's time of a call with its backward pass, and the host's."""
    lines = ["| operator | GPU us | against eager | of its floor | host us (eager's) |", "|---|---|---|---|---|"]
    mine = _of(rows, "gpu_kernel")
    lines += [
        f"| {row['operator']} | {row['fused_gpu_us']:,.0f} | {row['eager_gpu_us'] / row['fused_gpu_us']:.1f}x | "
        f"{row['floor_us'] / row['fused_gpu_us']:.0%} | {row['fused_host_us']:,.0f} ({row['eager_host_us']:,.0f}) |"
        for row in mine
    ]
    return _with_conditions(lines, mine)


def videos(rows: Sequence[Row]) -> str:
    """From videos to clips, beside what the step would take."""
    lines = ["| | clips/s | |", "|---|---|---|"]
    mine = _of(rows, "gpu_video")
    lines += [f"| {row['what']} | {row['clips_per_second']:,.0f} | {row['note']} |" for row in mine]
    return _with_conditions(lines, mine)


def beside(rows: Sequence[Row]) -> str:
    """A step's milliseconds alone and while clips are decoded."""
    lines = ["| MAE ViT-B | alone, ms | beside it | then, ms |", "|---|---|---|---|"]
    mine = _of(rows, "gpu_beside")
    lines += [f"| {row['step']} | {row['alone']:.1f} | {row['beside']} | {row['then']:,.1f} |" for row in mine]
    return _with_conditions(lines, mine)


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


def _with_conditions(lines: Sequence[str], rows: Sequence[Row]) -> str:
    row = rows[0]
    versions = ", ".join(f"{name} {row['versions'][name]}" for name in ("torch", "triton", "python"))
    note = "; transcribed from the logs, one run of each" if "transcribed_from" in row else ""
    machine = f"{row['machine']['device']}, driver {row['machine']['driver']}"
    return "\n".join([*lines, "", f"{machine}; {versions}; commit {row['commit']}{note}."])
