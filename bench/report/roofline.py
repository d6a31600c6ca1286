"""Rooflines of GPU rows: what every kernel reaches beside what its bytes and FLOPs allow, and where the GPU's time of a step goes.

A kernel lies at FLOPs per byte against FLOP/s, under min(bandwidth x intensity, matrix units); one without products, which only
moves bytes, is drawn at the left edge against the bandwidth. Ceilings are those measured in the same run. Stages of
`trocar profile` have times but no counted bytes: of these the second panel shows the GPU's time a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .render import ReportError

LEFT_EDGE = 0.05  # FLOP a byte: where kernels without products are drawn


def plot_rooflines(rows: Sequence[dict[str, Any]], path: Path) -> Path:
    """Writes a PNG. Raises ReportError where there is no GPU's row of `trocar bench kernels` or `trocar profile`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    gpu = [row for row in rows if "capability" in row["machine"]]
    kernels = [row for row in gpu if row["benchmark"] == "kernels"]
    profiles = [row for row in gpu if row["benchmark"] == "profile"]
    if not kernels and not profiles:
        raise ReportError(
            "no row of a GPU: rooflines need `trocar bench kernels` or `trocar profile` on one (`make gpu`)"
        )
    panels = bool(kernels) + bool(profiles)
    figure = Figure(figsize=(7 * panels, 5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, panels, squeeze=False)[0]
    if kernels:
        _kernels(grid[0], kernels)
    if profiles:
        _stages(grid[-1], profiles[-1])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def points(kernels: Sequence[dict[str, Any]]) -> list[tuple[str, float, float, float]]:
    """(name, FLOP a byte, TFLOP/s, TFLOP/s allowed there); a kernel without products counts LEFT_EDGE FLOPs for every byte."""
    found = []
    for row in kernels:
        bandwidth, matrix = row["copy_gigabytes_per_second"] / 1e3, row["matrix_teraflops_per_second"]
        moved = row["gigabytes_per_second"] / 1e3
        intensity = row["teraflops_per_second"] / moved or LEFT_EDGE
        found.append((row["operator"], intensity, intensity * moved, min(bandwidth * intensity, matrix)))
    return found


def _kernels(axes: Any, kernels: Sequence[dict[str, Any]]) -> None:
    bandwidth = kernels[0]["copy_gigabytes_per_second"] / 1e3
    matrix = kernels[0]["matrix_teraflops_per_second"]
    ridge = matrix / bandwidth
    right = max(10 * ridge, *(2 * intensity for _, intensity, _, _ in points(kernels)))
    axes.plot([LEFT_EDGE / 2, ridge, right], [bandwidth * LEFT_EDGE / 2, matrix, matrix], color="0.4")
    for name, intensity, reached, allowed in points(kernels):
        axes.plot(intensity, reached, "o")
        axes.annotate(
            f"{name} {reached / allowed:.0%}",
            (intensity, reached),
            textcoords="offset points",
            xytext=(6, -3),
            fontsize=8,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP a byte")
    axes.set_ylabel("TFLOP/s")
    axes.set_title(
        f"{kernels[0]['machine']['device']}: {bandwidth:.2f} TB/s, {matrix:.0f} TFLOP/s ({kernels[0]['dtype']})",
        fontsize=9,
    )


def _stages(axes: Any, row: dict[str, Any]) -> None:
    stages = sorted(row["stages"].items(), key=lambda item: item[1]["device"])
    axes.barh(
        [name for name, _ in stages], [1e3 * times["critical"] for _, times in stages], color="0.8", label="of the step"
    )
    axes.barh([name for name, _ in stages], [1e3 * times["device"] for _, times in stages], height=0.4, label="GPU")
    axes.set_xlabel("ms a step")
    axes.legend(frameon=False)
    axes.set_title(f"{row['config']}, {1e3 * row['seconds_per_step']:.1f} ms a step", fontsize=9)
