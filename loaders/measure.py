"""Which loader decodes which kind of video faster, and with how many decoders: measured on the run's own clips when it starts.

A decoder on the GPU is not always the faster one: a session costs the same for a small picture as for a large one, and there are
few engines beside many cores. So draws of every kind of video (codec, pixel format, size) are read by every candidate, whose clips
are compared with the CPU's. What a candidate fails at, the CPU does: also all, where it does not even start.

All kinds go through one loader, round after round, as starting a loader is what takes long. It decodes ahead and delivers in order,
so the time between two batches is what the second one's spans took. It is asked for no more than its share of the time allows.

Shapes: B clips of a batch.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .choice import Choice
from .decode.loader import BaseClipLoader
from .decode.recipe import ClipSource, VideoSource
from .decode.threads import LoaderError
from .video.video import Kind, VideoError

SECONDS = 10.0
DRAWS_LOOKED_AT = 2048
LEAST_CLIPS = 8  # of a batch
REPEATS = 4
MEASURED_KINDS = 8
COMPARED_CLIPS = 4
# Two decoders of the same pictures differ by rounding in the conversion to RGB and in the resize; frames beside each other by more.
LARGEST_DIFFERENCE = 4.0
# More decoders take more memory: they have to bring this much more clips.
LEAST_GAIN = 1.1
NEXT_TO_NOTHING = 1e-9
UNMEASURED = "too few clips to measure it"


@dataclass(frozen=True)
class Candidate:
    """A loader that may serve a run. make: opens it, of batches of draws, with the run's threads and processes, and `decoders`.

    decoders: the numbers among which the fastest is to be found, in the order in which they are tried: upwards from the first, and
    those below it at the end. Empty where the number is settled, or there is none.
    """

    name: str
    make: Callable[..., BaseClipLoader[Any]]
    decoders: tuple[int, ...] = ()

    def open(self, batches: Iterable[NDArray[np.int64]], decoders: int | None) -> BaseClipLoader[Any]:
        return self.make(batches) if decoders is None else self.make(batches, decoders=decoders)


@dataclass
class _Rates:
    """What one candidate did. clips: of a batch. seconds: what each batch of a kind took. pictures: some clips of each kind.
    failures: why it does not decode a kind. broken: why it decodes nothing."""

    clips: int
    seconds: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(list))
    pictures: dict[Kind, torch.Tensor] = field(default_factory=dict)
    failures: dict[Kind, str] = field(default_factory=dict)
    broken: str = ""

    def rate(self, kind: Kind) -> float | None:
        """Clips per second; None where it was not measured."""
        seconds = self.seconds.get(kind, [])
        # The first batch of a kind opens files and decoders, and before the very first one the loader itself had to start.
        counted = seconds[1:] or [taken for taken in seconds if np.isfinite(taken)]
        return self.clips * len(counted) / max(sum(counted), 1e-9) if counted else None


def measure_loaders(
    videos: VideoSource,
    sampler: ClipSource,
    candidates: Sequence[Candidate],
    *,
    seconds: float = SECONDS,
    repeats: int = REPEATS,
) -> list[Choice]:
    """Decides for every kind among the first draws, frequent ones first: the CPU, or the other candidate that is best on the whole.

    candidates: the first is the CPU's. seconds: that all of it takes at most, but for a batch that is under way then. repeats:
    batches that are timed. Kinds of which there are few draws stay on the CPU, unmeasured.
    """
    deadline = time.monotonic() + seconds
    draws = np.arange(min(DRAWS_LOOKED_AT, max(64, 8 * sampler.num_videos)))
    groups: dict[Kind, list[int]] = defaultdict(list)
    kinds: dict[str, Kind] = {}
    for clip in sampler.clips(draws):
        facts = videos.video(clip.video).facts
        kinds[facts.path] = kind = Kind.of(facts)
        groups[kind].append(clip.draw)
    shares = {kind: len(groups[kind]) / len(draws) for kind in sorted(groups, key=lambda kind: -len(groups[kind]))}
    measured = {kind: np.array(groups[kind]) for kind in list(shares)[:MEASURED_KINDS]}
    cpu, *others = candidates
    if not measured or not others:
        return [Choice(kind, share, cpu.name, UNMEASURED) for kind, share in shares.items()]
    # Whether the others start at all is found first: where none does, there is nothing to compare the CPU with.
    parts = len(others) + 1 + any(len(candidate.decoders) > 1 for candidate in others)
    found: dict[str, _Rates] = {}
    for candidate in others:
        part = (deadline - time.monotonic()) / (parts - len(found))
        found[candidate.name] = _measure(candidate, first_of(candidate.decoders), measured, kinds, part, repeats)
    by_cpu = _Rates(LEAST_CLIPS)
    if not all(rates.broken for rates in found.values()):
        part = (deadline - time.monotonic()) / (parts - len(found))
        by_cpu = _measure(cpu, None, measured, kinds, part, repeats)
    verdicts = {
        name: {kind: _verdict(cpu.name, by_cpu, name, rates, kind) for kind in measured}
        for name, rates in found.items()
    }

    def duration(candidate: Candidate) -> float:
        """Of the measured clips, where the candidate does what it is faster at."""
        fit = {kind: found[candidate.name] if verdicts[candidate.name][kind][0] else by_cpu for kind in measured}
        return sum(shares[kind] / (fit[kind].rate(kind) or NEXT_TO_NOTHING) for kind in measured)

    best = min(others, key=duration)
    faster_at = [kind for kind in measured if verdicts[best.name][kind][0]]
    decoders = first_of(best.decoders)
    if faster_at and decoders is not None:
        most = faster_at[0]
        rate = found[best.name].rate(most) or NEXT_TO_NOTHING
        decoders = _enough_decoders(best, most, {most: measured[most]}, rate, kinds, deadline, repeats)
    choices = []
    for kind, share in shares.items():
        if kind in faster_at:
            choices.append(Choice(kind, share, best.name, _reasons(verdicts, kind), decoders))
        else:
            choices.append(Choice(kind, share, cpu.name, _reasons(verdicts, kind) if kind in measured else UNMEASURED))
    return choices


def first_of(decoders: Sequence[int]) -> int | None:
    return decoders[0] if decoders else None


def _reasons(verdicts: Mapping[str, Mapping[Kind, tuple[bool, str]]], kind: Kind) -> str:
    return "; ".join(dict.fromkeys(by_kind[kind][1] for by_kind in verdicts.values()))


def _measure(
    candidate: Candidate,
    decoders: int | None,
    groups: Mapping[Kind, NDArray[np.int64]],
    kinds: Mapping[str, Kind],
    seconds: float,
    repeats: int,
) -> _Rates:
    """What a candidate does in so many seconds, its start included. groups: draws of each kind. kinds: by the videos' paths."""
    rates = _Rates(max(LEAST_CLIPS, decoders or 0))
    end, asked, arrivals, took = time.monotonic() + seconds, list[Kind](), 0, 0.0

    def batches() -> Iterator[NDArray[np.int64]]:
        for _ in range(1 + repeats):
            for kind, draws in groups.items():
                under_way = len(asked) - arrivals
                if asked and time.monotonic() + (under_way + 1) * took > end:
                    return
                asked.append(kind)
                yield np.resize(draws, rates.clips)

    try:
        with candidate.open(batches(), decoders) as loader:
            loader.wait_until_ready()
            before = time.monotonic()
            for batch in loader:
                if batch.frames.is_cuda:
                    torch.cuda.synchronize(batch.frames.device)
                now, kind = time.monotonic(), asked[arrivals]
                took = now - before
                # The very first batch is not what its spans took: nothing was under way before.
                rates.seconds[kind].append(took if arrivals else float("inf"))
                if kind not in rates.pictures:
                    rates.pictures[kind] = batch.frames[:COMPARED_CLIPS].cpu()
                arrivals, before = arrivals + 1, now
                if now > end:
                    break
            for path in loader.taken_over.keys() & kinds.keys():
                rates.failures[kinds[path]] = loader.taken_over[path]
    except VideoError as error:
        rates.broken = f"not measured: {error}"
    except (RuntimeError, LoaderError) as error:
        began = "fails" if asked else "does not start"
        rates.broken = f"as {candidate.name} {began}: {_first_line(error)}"
    return rates


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _verdict(cpu: str, by_cpu: _Rates, name: str, rates: _Rates, kind: Kind) -> tuple[bool, str]:
    """Whether a candidate reads a kind faster than the CPU and as well, and the reason in words."""
    if broken := rates.broken or by_cpu.broken:
        return False, broken
    if failure := rates.failures.get(kind):
        return False, f"as {name} fails: {failure}"
    rate, cpu_rate = rates.rate(kind), by_cpu.rate(kind)
    if rate is None or cpu_rate is None:
        return False, f"as the time was up before {name if rate is None else cpu} was measured"
    pairs = zip(rates.pictures[kind], by_cpu.pictures[kind], strict=False)
    difference = float(np.mean([(one.short() - other.short()).abs().float().mean() for one, other in pairs]))
    if difference > LARGEST_DIFFERENCE:
        return False, f"as the clips of {name} differ from the CPU's by {difference:.1f} of 255 on average"
    return rate > cpu_rate, f"{rate:.0f} clips/s by {name}, {cpu_rate:.0f} by {cpu}"


def _enough_decoders(
    candidate: Candidate,
    kind: Kind,
    group: Mapping[Kind, NDArray[np.int64]],
    rate: float,
    kinds: Mapping[str, Kind],
    deadline: float,
    repeats: int,
) -> int:
    """Where more decoders bring no more clips of a kind. rate: what the first number reached."""

    def rate_with(number: int) -> float:
        # Half of what is left, so that there is something left for the next one.
        measured = _measure(candidate, number, group, kinds, (deadline - time.monotonic()) / 2, repeats)
        return 0.0 if measured.broken or measured.failures else measured.rate(kind) or 0.0

    first = best = candidate.decoders[0]
    for number in sorted(number for number in candidate.decoders if number > first):
        if time.monotonic() > deadline or (found := rate_with(number)) < LEAST_GAIN * rate:
            break
        best, rate = number, found
    if best > first:
        return best
    for number in sorted((number for number in candidate.decoders if number < first), reverse=True):
        if time.monotonic() > deadline or rate_with(number) * LEAST_GAIN < rate:
            break
        best = number
    return best
