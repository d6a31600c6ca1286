"""A step profile as text and as one picture: the training thread, the decoding threads, the GPU and its counters over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ...engine.console.table import Table
from .stage_work import BETWEEN
from .stages import StepProfile
from .trace import Event, Trace, innermost

SHOWN_STEPS, SHOWN_THREADS, SHOWN_PARTS = 4, 8, 10


def table(profile: StepProfile) -> str:
    """Markdown: the stages, the top kernels or operators, gaps, host syncs, counters, notes, and the bottleneck."""
    unit = "GPU" if profile.has_device else "operators"
    lines = [
        f"{profile.steps} steps of {1000 * profile.seconds:.1f} ms ({profile.tool}, {profile.trace_file})",
        "",
    ]
    stages = []
    for stage in profile.stages:
        beside = stage.device if profile.has_device else stage.in_operators
        share = f"{stage.critical / profile.seconds:.1%}"
        seconds = [f"{1000 * value:.2f}" for value in (stage.critical, stage.host, beside)]
        stages.append((stage.name, seconds[0], share, *seconds[1:], f"{stage.calls:g}"))
    if profile.decode_threads:
        decoding = f"{1000 * profile.decode_seconds:.2f} of {profile.decode_threads} threads"
        stages.append(("decode (beside the step)", decoding, "", "", "", f"{profile.spans:g} spans"))
    parts = [
        (_short(part.name), part.stage, f"{1000 * part.seconds:.2f}", f"{part.calls:g}")
        for part in profile.parts[:SHOWN_PARTS]
    ]
    kind = "kernel" if profile.has_device else "operator"
    lines += [
        Table(("stage", "ms a step", "share", "host ms", f"{unit} ms", "calls a step"), stages).markdown(),
        "",
        Table((kind, "stage", "ms a step", "calls a step"), parts).markdown(),
    ]
    return "\n".join([*lines, "", *_gaps(profile), *_syncs(profile), *_counters(profile), "", profile.sentence()])


def _short(name: str, most: int = 80) -> str:
    name = name.replace("|", "/")
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _gaps(profile: StepProfile) -> list[str]:
    if not profile.has_device:
        seconds = profile.stage(BETWEEN).host
        return [f"Gaps: {1000 * seconds:.2f} ms a step between steps, in no stage."]
    total = sum(profile.idle.values())
    where = ", ".join(
        f"{1000 * value:.2f} in {name}" for name, value in sorted(profile.idle.items(), key=lambda item: -item[1])
    )
    return [
        f"Gaps: the GPU has nothing to do for {1000 * total:.2f} ms a step ({total / profile.seconds:.1%}): {where}."
    ]


def _syncs(profile: StepProfile) -> list[str]:
    if not profile.has_device:
        return ["Host syncs: none without a GPU."]
    if not profile.syncs:
        return ["Host syncs: none found."]
    found = sorted(profile.syncs.items(), key=lambda item: -item[1][1])
    return ["Host syncs:"] + [
        f"- {name} in {stage}: {calls:g} a step, {1000 * seconds:.2f} ms" for (name, stage), (calls, seconds) in found
    ]


def _counters(profile: StepProfile) -> list[str]:
    means = ", ".join(f"{name} {value:.0f} %" for name, value in profile.counters.items())
    return ([f"Counters, mean: {means}."] if means else []) + [f"Note: {note}." for note in profile.notes]


def timeline_picture(trace: Trace, profile: StepProfile, path: Path) -> None:
    """Writes a PNG of at most four steps from the middle of the trace."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = trace.steps
    first = max(0, len(steps) // 2 - SHOWN_STEPS // 2)
    shown = steps[first : first + SHOWN_STEPS]
    begin, end = shown[0].start, shown[-1].end
    lanes = _lanes(trace, shown[0].thread, begin, end)
    colours = _colours(sorted({name for _, bars in lanes for name, _, _ in bars}))
    counters = [c for c in trace.counters if any(begin <= time <= end for time in c.times)]
    figure = Figure(figsize=(12, 1.6 + 0.4 * len(lanes) + (2 if counters else 0)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(
        2 if counters else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if counters else [1]
    )
    axes = grid[0, 0]
    for height, (_, bars) in enumerate(lanes):
        for name in {bar[0] for bar in bars}:
            spans = [((start - begin) / 1e6, (stop - start) / 1e6) for other, start, stop in bars if other == name]
            axes.broken_barh(spans, (height - 0.4, 0.8), facecolors=colours[name], label=name)
    axes.set_yticks(range(len(lanes)), [label for label, _ in lanes])
    axes.invert_yaxis()
    for step in shown:
        axes.axvline((step.start - begin) / 1e6, color="0.6", linewidth=0.8)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    axes.legend(
        handles.values(), handles.keys(), loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False
    )
    axes.set_title(profile.sentence(), fontsize=9, loc="left", wrap=True)
    for counter in counters:
        grid[1, 0].plot([(t - begin) / 1e6 for t in counter.times], counter.values, label=counter.name, linewidth=0.8)
    if counters:
        grid[1, 0].set_ylim(0, 105)
        grid[1, 0].set_ylabel("percent")
        grid[1, 0].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    grid[-1, 0].set_xlim(0, (end - begin) / 1e6)
    grid[-1, 0].set_xlabel("ms")
    figure.savefig(path, dpi=110)


def _lanes(trace: Trace, thread: int, begin: int, end: int) -> list[tuple[str, list[tuple[str, int, int]]]]:
    """(label, bars) from top to bottom; a bar is (stage, start, end)."""
    by_thread: dict[int, list[Event]] = defaultdict(list)
    for event in trace.ranges:
        if event.end > begin and event.start < end:
            by_thread[event.thread].append(event)
    lanes = [("training", _cut([(e.name, s, t) for s, t, e in innermost(by_thread.pop(thread))], begin, end))]
    for number, events in enumerate(list(by_thread.values())[:SHOWN_THREADS]):
        lanes.append((f"thread {number}", _cut([(e.name, e.start, e.end) for e in events], begin, end)))
    streams: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for item in trace.device:
        streams[item.stream].append(("copy" if item.copy else "kernel", item.start, item.end))
    lanes += [
        (f"GPU stream {stream}", bars) for stream, work in sorted(streams.items()) if (bars := _cut(work, begin, end))
    ]
    return lanes


def _cut(bars: Sequence[tuple[str, int, int]], begin: int, end: int) -> list[tuple[str, int, int]]:
    return [(name, max(start, begin), min(stop, end)) for name, start, stop in bars if stop > begin and start < end]


def _colours(names: Sequence[str]) -> dict[str, str]:
    fixed = {"wait": "#d62728", "decode": "#7f7f7f", "step": "#dddddd", "kernel": "#1f77b4", "copy": "#ff7f0e"}
    free = [
        "#1f77b4",
        "#2ca02c",
        "#9467bd",
        "#8c564b",
        "#e377c2",
        "#bcbd22",
        "#17becf",
        "#aec7e8",
        "#ffbb78",
        "#98df8a",
        "#c5b0d5",
    ]
    rest = [name for name in names if name not in fixed]
    return fixed | {name: free[number % len(free)] for number, name in enumerate(rest)}
