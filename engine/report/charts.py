"""Charts as inline SVG by matplotlib, whose colours the page's style sets: one drawing for light, dark and paper.

matplotlib writes the colours of PALETTE, which stand for variables of the page. Names of runs are no part of a drawing.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .curves import Curve

WIDTH, HEIGHT = 6.4, 2.6  # inches
LOG_FROM = 10.0  # of the largest value over the least
INK, FAINT = "#010203", "#010204"
RUN_COLOURS = tuple(f"#0102{number:02x}" for number in range(0x10, 0x18))  # runs beyond these begin anew
PALETTE = {INK: "var(--ink)", FAINT: "var(--faint)", **{c: f"var(--run{i})" for i, c in enumerate(RUN_COLOURS)}}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # letters stay letters
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Line:
    """run: its place on the page. name: what the reader under the pointer says. dashed: to tell two curves of a run apart."""

    run: int
    name: str
    curve: Curve
    dashed: bool = False


def chart(
    title: str, unit: str, lines: Sequence[Line], marks: Mapping[int, Sequence[int]] | None = None, log: bool = False
) -> str:
    """A figure: mean of every stretch, with the range from its least to its largest value behind; "" where nothing is there.

    marks: by run, the steps behind which its settings changed. log: where all values are positive and a power of ten apart.
    """
    drawn = [(line, points) for line in lines if len((points := line.curve.points())["step"])]
    if not drawn:
        return ""
    import matplotlib as mpl  # slow to import: only where something is drawn
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axis = figure.add_axes((0.12, 0.17, 0.86, 0.78))
        for line, points in drawn:
            colour = RUN_COLOURS[line.run % len(RUN_COLOURS)]
            if (points["high"] > points["low"]).any():
                axis.fill_between(points["step"], points["low"], points["high"], color=colour, alpha=0.25, linewidth=0)
                for end in ("low", "high"):  # a single step's spike has no area to speak of
                    axis.plot(points["step"], points[end], color=colour, alpha=0.6, linewidth=0.5)
            one = "o" if len(points["step"]) == 1 else None
            axis.plot(points["step"], points["mean"], "--" if line.dashed else "-", color=colour, marker=one, lw=1.3)
        for run, steps in (marks or {}).items():
            for step in steps:
                axis.axvline(step + 0.5, color=RUN_COLOURS[run % len(RUN_COLOURS)], linestyle=":", linewidth=0.8)
        low = min(float(points["low"].min()) for _, points in drawn)
        high = max(float(points["high"].max()) for _, points in drawn)
        if log and 0 < LOG_FROM * low < high:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        else:
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5), useMathText=False)
        axis.set_xlabel("step")
        axis.set_ylabel(unit)
        axis.locator_params(axis="x", integer=True, min_n_ticks=1)
        axis.xaxis.set_major_formatter(lambda step, _: f"{step:,.0f}")
        figure.draw_without_rendering()
        left, right = axis.get_xlim()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    readings = [{"name": line.name, **{k: _numbers(v) for k, v in points.items()}} for line, points in drawn]
    data = {"left": left, "right": right, "lines": readings}
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    name = html.escape(title)
    return (
        f'<figure class="chart" tabindex="0" role="group" aria-label="{name}"><figcaption>{name}</figcaption>'
        f'<div class="plot">{_themed(buffer.getvalue())}<i></i></div><output></output>'
        f'<script type="application/json">{text}</script></figure>'
    )


def _numbers(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def _themed(svg: str) -> str:
    """The drawing alone, of the page's width and colours; names that nothing refers to would stand twice on a page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true"', svg, count=1)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    return re.sub("|".join(PALETTE), lambda found: PALETTE[found[0]], svg)
