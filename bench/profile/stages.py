"""Where the steps of a trace went: by stage, and the bottleneck in one sentence.

The training thread is the one with the steps; each moment of it belongs to the innermost stage there: the stage's *host* time. What
holds up a step is, where the GPU works, the stage whose work it does, and where it idles, what the training thread is in. Without a
GPU that is the host time.
"""

from __future__ import annotations

import itertools
from collections import Counter as Counts
from dataclasses import dataclass, field
from typing import Any

from .stage_work import BETWEEN, NANO, Owners, Part, Piece, host_syncs, kernels, operators
from .trace import DeviceWork, Event, Trace, busy, innermost

# What a stage is called in a sentence.
NAMES = {
    "patch_embed": "patch embed",
    "ema": "EMA",
    "step": "the step outside its stages",
    "forward": "the forward pass outside its stages",
    BETWEEN: "what the host does between steps",
}


@dataclass(frozen=True)
class StageTimes:
    """One stage, seconds a step. host: on the training thread. device: of kernels and copies. critical: what it adds to the step.
    in_operators: the part of host that is inside operators of PyTorch; 0 where the trace does not tell."""

    name: str
    host: float = 0.0
    device: float = 0.0
    critical: float = 0.0
    calls: float = 0.0
    in_operators: float = 0.0


@dataclass
class StepProfile:
    """steps: how many. seconds: a step. stages: by what they add, most first. parts: kernels, operators where there is no GPU.
    idle: seconds a step in which the GPU does nothing for the training, by the stage that the host is in. syncs: (call, stage) ->
    calls and seconds a step. decode_seconds: a step, of all decoding threads together. decode_ids: those that were seen. spans:
    decoded, a step. counters: the GPU's, means in percent."""

    tool: str
    trace_file: str
    steps: int
    seconds: float
    has_device: bool
    stages: list[StageTimes]
    parts: list[Part]
    decode_seconds: float
    decode_ids: tuple[int, ...]
    spans: float
    idle: dict[str, float] = field(default_factory=dict)
    syncs: dict[tuple[str, str], tuple[float, float]] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def decode_threads(self) -> int:
        return len(self.decode_ids)

    @property
    def bottleneck(self) -> StageTimes:
        """The stage that adds most to a step."""
        return self.stages[0]

    def stage(self, name: str) -> StageTimes:
        return next((stage for stage in self.stages if stage.name == name), StageTimes(name))

    def sentence(self) -> str:
        """The bottleneck, and what is known of it."""
        worst = self.bottleneck
        share = f"{_ms(worst.critical)} of the {_ms(self.seconds)} of a step ({worst.critical / self.seconds:.0%})"
        if worst.name == "wait":
            text = f"The bottleneck is the loader: training waits for clips {share}"
            if self.decode_threads:
                is_busy = self.decode_seconds / (self.seconds * self.decode_threads)
                each = self.decode_seconds / self.spans if self.spans else 0.0
                text += (
                    f"; {self.decode_threads} decoding threads were busy {is_busy:.0%} of the time, {_ms(each)} a span"
                )
            return f"{text}."
        text = f"The bottleneck is {NAMES.get(worst.name, worst.name)}: {share}"
        idle = self.idle.get(worst.name, 0.0)
        if idle > worst.critical / 2:
            return f"{text}, in {_ms(idle)} of which the GPU has nothing to do: the host is too slow there."
        if not self.has_device and worst.in_operators < worst.host / 2:
            outside = "the rest is Python, or code outside PyTorch"
            return f"{text}, of which PyTorch's operators take {_ms(worst.in_operators)}: {outside}."
        part = next((part for part in self.parts if part.stage == worst.name), None)
        return f"{text}; most of it in {part.name} ({_ms(part.seconds)})." if part else f"{text}."

    def row(self) -> dict[str, Any]:
        """The figures of a JSON row, seconds a step."""
        return {
            "tool": self.tool,
            "steps": self.steps,
            "seconds_per_step": self.seconds,
            "bottleneck": self.bottleneck.name,
            "stages": {
                stage.name: {"host": stage.host, "device": stage.device, "critical": stage.critical}
                for stage in self.stages
            },
            "decode_thread_seconds_per_step": self.decode_seconds,
            "decode_threads": self.decode_threads,
            "spans_per_step": self.spans,
            "counters_percent": self.counters,
        }


def analyse(trace: Trace) -> StepProfile:
    """Raises TraceError where the trace holds no step."""
    found = trace.steps
    thread, begin, end, steps = found[0].thread, found[0].start, found[-1].end, len(found)
    pieces = _pieces([event for event in trace.ranges if event.thread == thread], begin, end)
    owners = Owners(trace, pieces, thread)
    work = [(item, owners.of(item)) for item in trace.device if item.end > begin and (item.call or item).start < end]
    training_work = [(item, stage) for item, stage in work if stage != "decode"]
    # The GPU is behind the host: the steps last until it is done.
    if training_work and (done := max(item.end for item, _ in training_work)) > end:
        pieces.append((end, done, BETWEEN))
        end = done
    host: Counts[str] = Counts()
    for start, stop, name in pieces:
        host[name] += stop - start
    device: Counts[str] = Counts()
    for item, stage in work:
        device[stage] += item.duration
    critical, idle = _critical(pieces, training_work) if training_work else (host, Counts())
    calls = Counts(event.name for event in trace.ranges if begin <= event.start < end)
    decoding = [event for event in trace.ranges if event.name == "decode" and event.end > begin and event.start < end]
    inside, parts = operators(trace, pieces, thread, steps)
    per_step = NANO / steps
    stages = [
        StageTimes(
            name,
            host[name] * per_step,
            device[name] * per_step,
            critical[name] * per_step,
            calls[name] / steps,
            inside[name] * per_step,
        )
        for name in {*host, *device} - {"decode"}
    ]
    return StepProfile(
        tool=trace.tool,
        trace_file=trace.file,
        steps=steps,
        seconds=(end - begin) * per_step,
        has_device=bool(work),
        stages=sorted(stages, key=lambda stage: -stage.critical),
        parts=kernels(work, steps) if work else parts,
        decode_seconds=sum(min(event.end, end) - max(event.start, begin) for event in decoding) * per_step,
        decode_ids=tuple(sorted({event.thread for event in decoding})),
        spans=sum(begin < event.end <= end for event in decoding) / steps,
        idle={name: value * per_step for name, value in idle.items()},
        syncs=host_syncs(trace, pieces, thread, steps),
        counters={
            counter.name: sum(chosen) / len(chosen)
            for counter in trace.counters
            if (chosen := [v for t, v in zip(counter.times, counter.values, strict=True) if begin <= t <= end])
        },
        notes=list(trace.notes),
    )


def _pieces(mine: list[Event], begin: int, end: int) -> list[Piece]:
    """The training thread's time from begin to end."""
    found: list[Piece] = []
    reached = begin
    for start, stop, event in innermost(mine):
        start, stop = max(start, begin), min(stop, end)
        if stop <= start:
            continue
        if start > reached:
            found.append((reached, start, BETWEEN))
        found.append((start, stop, event.name))
        reached = stop
    return found


def _critical(pieces: list[Piece], work: list[tuple[DeviceWork, str]]) -> tuple[Counts[str], Counts[str]]:
    """Nanoseconds by stage: of the GPU's work where it works, of the training thread where it idles; and the idle part alone."""
    begin, end = pieces[0][0], pieces[-1][1]
    critical: Counts[str] = Counts()
    reached = begin
    for item, stage in sorted(work, key=lambda pair: pair[0].start):
        start, stop = max(item.start, reached), min(item.end, end)
        if stop > start:  # where work overlaps, what began first has the time
            critical[stage] += stop - start
            reached = stop
    edges = [(begin, begin), *busy([(max(item.start, begin), min(item.end, end)) for item, _ in work]), (end, end)]
    gaps = [(before[1], after[0]) for before, after in itertools.pairwise(edges) if after[0] > before[1]]
    idle: Counts[str] = Counts()
    place = 0
    for start, stop in gaps:
        while pieces[place][1] <= start:
            place += 1
        for piece_start, piece_stop, name in pieces[place:]:
            if piece_start >= stop:
                break
            idle[name] += min(stop, piece_stop) - max(start, piece_start)
    return critical + idle, idle


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
