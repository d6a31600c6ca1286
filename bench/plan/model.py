"""`trocar plan`'s model of a training step: which of the things that happen at the same time takes longest.

Decoding runs ahead of the step (`data.prefetch`), reading runs ahead of decoding, and gradients are exchanged while the backward
pass computes. So a step takes as long as the slowest of these, one rank's share of b clips made from b / v spans:

    compute    fixed + b x per clip
    decode     spans x (per span + v x per view + idle) / threads that have work; or spans x pictures / NVDEC's rate, where less
    storage    spans x bytes / this rank's share of the bandwidth
    exchange   2 (R - 1) / R x bytes of gradients / bandwidth     (ring all-reduce over R ranks)
    cores      where the CPU computes too: all processor seconds of a step / cores
    interpreter  where threads of the training's process decode beside a GPU: compute + spans x seconds of Python per span

No time is lost to chance in it: a step whose sides are equally long takes longer than it says.

Pure: numbers in, numbers out. Where they come from: `rates`. b clips of a rank's step, v views a span.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

COMPUTE, DECODE, STORAGE, EXCHANGE, CORES = "compute", "decode", "storage", "exchange", "cores"
INTERPRETER = "interpreter"


@dataclass(frozen=True)
class Rate:
    """A number and where it comes from. is_measured: by a row of ours; else it is assumed."""

    value: float
    origin: str
    is_measured: bool = True


@dataclass(frozen=True)
class Compute:
    """A rank's step on clips that are there: seconds in all, and seconds for each clip. threads: that it keeps busy on a CPU, 0 on
    a GPU. stage: which stage takes most of it, and what share; "" where that was not measured."""

    fixed_seconds: Rate
    seconds_per_clip: Rate
    threads: int = 0
    stage: str = ""
    stage_share: float = 0.0


@dataclass(frozen=True)
class Videos:
    """What a span of some videos costs. core_seconds: of a processor core, for the span and for each view of it. idle_seconds: in
    which its thread waits without a core. pictures: decoded. nvdec: pictures a second of one GPU, None where unknown."""

    name: str
    bytes_per_span: Rate
    pictures_per_span: Rate
    core_seconds_per_span: Rate
    core_seconds_per_view: Rate
    idle_seconds_per_span: Rate
    nvdec_pictures_per_second: Rate | None = None


@dataclass(frozen=True)
class Share:
    """What one rank has. cores: to decode, on a CPU also to compute. storage, exchange: bytes a second of this rank.
    interpreter_seconds: of the training's interpreter that a span takes, 0 where processes decode: it launches no kernels then."""

    ranks: int
    cores: float
    threads: float
    storage: float
    exchange: float
    has_nvdec: bool
    interpreter_seconds: float = 0.0


@dataclass(frozen=True)
class Demand:
    """What one rank does in a part of a step. prefetch: batches that are decoded ahead. gradient_bytes: that all ranks exchange.
    parts: how many of these are accumulated for one step of the optimizer."""

    clips: float
    views: int
    prefetch: int
    gradient_bytes: float
    parts: int = 1


@dataclass(frozen=True)
class Step:
    """Seconds that each resource needs for a step; decoder: "cpu" or "nvdec"."""

    seconds_by_resource: dict[str, float]
    decoder: str
    demand: Demand
    ranks: int

    @property
    def seconds(self) -> float:
        return max(self.seconds_by_resource.values())

    @property
    def bottleneck(self) -> str:
        return max(self.seconds_by_resource, key=lambda name: self.seconds_by_resource[name])

    @property
    def clips_per_second(self) -> float:
        return self.demand.clips * self.ranks / self.seconds

    @property
    def spans_per_second(self) -> float:
        return self.clips_per_second / self.demand.views


def plan_step(compute: Compute, videos: Videos, share: Share, demand: Demand) -> Step:
    """The step of the module's formula."""
    spans = demand.clips / demand.views
    work = videos.core_seconds_per_span.value + demand.views * videos.core_seconds_per_view.value
    computing = compute.fixed_seconds.value + demand.clips * compute.seconds_per_clip.value
    # A thread decodes a span: more threads than spans in flight have nothing to do.
    threads = max(1.0, min(share.threads, (demand.prefetch + 1) * spans))
    seconds = {
        COMPUTE: computing,
        DECODE: spans * (work + videos.idle_seconds_per_span.value) / threads,
        STORAGE: spans * videos.bytes_per_span.value / share.storage,
        EXCHANGE: 2 * (share.ranks - 1) / share.ranks * demand.gradient_bytes / share.exchange,
    }
    if compute.threads:
        seconds[CORES] = (computing * compute.threads + spans * work) / share.cores
    decoder = "cpu"
    if share.has_nvdec and videos.nvdec_pictures_per_second is not None:
        nvdec = spans * videos.pictures_per_span.value / videos.nvdec_pictures_per_second.value
        if nvdec < seconds[DECODE]:
            seconds[DECODE], decoder = nvdec, "nvdec"
    if share.interpreter_seconds and decoder == "cpu" and not compute.threads:
        seconds[INTERPRETER] = computing + spans * share.interpreter_seconds
    return Step(seconds, decoder, demand, share.ranks)


@dataclass(frozen=True)
class Lever:
    """A change, and how many times as many clips/s it brings."""

    name: str
    gain: float


def levers(compute: Compute, videos: Videos, share: Share, demand: Demand, others: list[Videos]) -> list[Lever]:
    """What each change alone would bring, most first. others: the corpus in other forms."""
    now: dict[str, Any] = {"compute": compute, "videos": videos, "share": share, "demand": demand}
    per_clip, fixed = compute.seconds_per_clip, compute.fixed_seconds
    half = replace(
        compute,
        fixed_seconds=replace(fixed, value=fixed.value / 2),
        seconds_per_clip=replace(per_clip, value=per_clip.value / 2),
    )
    changes: dict[str, dict[str, Any]] = {
        **{other.name: {"videos": other} for other in others},
        f"{2 * demand.views} views a span": {"demand": replace(demand, views=2 * demand.views)},
        "twice the cores": {"share": replace(share, cores=2 * share.cores, threads=2 * share.threads)},
        "twice the storage bandwidth": {"share": replace(share, storage=2 * share.storage)},
        "a step twice as fast": {"compute": half},
    }
    if share.interpreter_seconds:
        changes["decoding processes (data.workers)"] = {"share": replace(share, interpreter_seconds=0.0)}
    if share.ranks > 1:
        changes["twice the exchange bandwidth"] = {"share": replace(share, exchange=2 * share.exchange)}
    if (nvdec := videos.nvdec_pictures_per_second) is not None and share.has_nvdec:
        faster = replace(videos, nvdec_pictures_per_second=replace(nvdec, value=2 * nvdec.value))
        changes["twice the NVDEC engines"] = {"videos": faster}
    if demand.parts > 1:
        fewer = max(n for n in range(1, demand.parts) if demand.parts % n == 0)
        times = demand.parts / fewer
        larger = replace(demand, clips=times * demand.clips, gradient_bytes=times * demand.gradient_bytes, parts=fewer)
        changes[f"optim.accumulation={fewer}, {larger.clips:g} clips at a time"] = {"demand": larger}
    speed = plan_step(**now).clips_per_second
    found = [Lever(name, plan_step(**{**now, **change}).clips_per_second / speed) for name, change in changes.items()]
    return sorted(found, key=lambda lever: -lever.gain)
