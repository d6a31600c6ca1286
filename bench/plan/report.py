"""`trocar plan`: corpus, recipe and cluster to bottleneck, clips/s, days, hours, storage and money, for each form of the videos.

An epoch is one clip of every span of the corpus, as in training. What was measured and what is assumed stand in lists of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...engine.config.settings import Config, ConfigError
from ...engine.ranks.distributed import World
from ...engine.step.build import build_model
from ...engine.step.micro_batch import fewest_parts, with_parts
from ...loaders.corpus.corpus import Corpus
from ...loaders.draw.sampler import Sampler
from .cluster import Cluster
from .corpus import Measured
from .model import Compute, Demand, Lever, Rate, Share, Step, Videos, levers, plan_step
from .proxies import ProxyCodec, proxy_codecs
from .rates import compute_rates, interpreter_rate, packing_rates, video_rates

FLOAT32_BYTES = 4
TERA, HOUR, DAY = 1e12, 3600, 86400


@dataclass(frozen=True)
class CorpusSize:
    """videos, frames: of the originals. spans: base spans. bytes_per_frame: of the originals' files; None where unknown."""

    videos: int
    frames: int
    spans: int
    bytes_per_frame: Rate | None

    @staticmethod
    def of(corpus: Corpus, config: Config) -> CorpusSize:
        """What a corpus of originals holds."""
        data = config.data
        sampler = Sampler.of(corpus, num_frames=data.frames, stride=data.stride, sample_fps=data.sample_fps)
        frames = int(corpus.frames.sum())
        size = sum(values["size_bytes"] for values in corpus.scan("size_bytes"))
        return CorpusSize(len(corpus), frames, sampler.num_spans, Rate(size / frames, f"files of {corpus.path}"))

    @staticmethod
    def told(videos: int, frames: int, config: Config, cluster: Cluster) -> CorpusSize:
        """From totals: the last part of every video, half a span on average, is too short for one. Raises ConfigError."""
        if config.data.stride is None:
            raise ConfigError(
                "data.sample_fps: spans of a corpus that is not there are counted by data.stride; set it instead"
            )
        span = (config.data.frames - 1) * config.data.stride + 1
        assumed = cluster.originals.bytes_per_frame
        size = None if assumed is None else Rate(assumed.value, assumed.source, False)
        return CorpusSize(videos, frames, max(1, round(frames / span - videos / 2)), size)


@dataclass(frozen=True)
class Form:
    """One form of the videos at one number of views: what it takes. money: None where the cluster has no prices."""

    name: str
    videos: Videos
    step: Step
    levers: list[Lever]
    days: float
    gpu_hours: float
    core_hours: float
    packing_core_hours: float
    terabytes: float | None
    money: float | None


@dataclass(frozen=True)
class Plan:
    config: Config
    cluster: Cluster
    corpus: CorpusSize
    compute: Compute
    clips: int
    arms: list[Form]
    rates: list[tuple[str, Rate]]
    proxies: list[ProxyCodec]


def make_plan(
    config: Config,
    cluster: Cluster,
    corpus: CorpusSize,
    rows: Sequence[dict[str, Any]],
    *,
    views: int = 4,
    measured: Measured | None = None,
) -> Plan:
    """Raises ConfigError where a rate is neither measured nor assumed, or the batch does not divide by the ranks.

    rows: the measurements that rates are taken from. views: a span, in the arms with span reuse. measured: of the corpora
    themselves, before all rows.
    """
    measured = measured or Measured({})
    config = with_number_of_parts(config, cluster)
    optim = config.optim
    if optim.batch % (optim.parts * cluster.ranks):
        raise ConfigError(
            f"optim.batch: {optim.batch} in {optim.parts} parts is not divisible by {cluster.ranks} ranks; set optim.batch "
            "and optim.accumulation so that it is"
        )
    compute = compute_rates(rows, config, cluster)
    own = measured.spans
    kinds = {name: video_rates(rows, config, cluster, name, own.get(name)) for name in ("originals", "proxies")}
    known = {name: videos for name, videos in kinds.items() if videos is not None}
    if not known:
        raise ConfigError(
            f"{cluster.name}: nothing is measured or assumed of how videos load; run trocar bench loading or profile"
        )
    packing, proxy_bytes = measured.packing or packing_rates(rows, cluster)
    clips = optim.steps * optim.batch if optim.steps else round((optim.epochs or 0) * corpus.spans)
    with torch.device("meta"):  # only its shapes count
        parameters = sum(p.numel() for p in build_model(config)[0].parameters() if p.requires_grad)
    gradient_bytes = FLOAT32_BYTES * parameters / optim.parts if cluster.ranks > 1 else 0.0
    interpreter = interpreter_rate(rows)
    share, arms = _share(cluster, config, interpreter), []
    for name, videos in known.items():
        for count in sorted({config.data.views_per_span, views}):
            clips_of_rank = optim.batch / (optim.parts * cluster.ranks)
            demand = Demand(clips_of_rank, count, config.data.prefetch, gradient_bytes, optim.parts)
            step = plan_step(compute, videos, share, demand)
            others = [known["proxies"]] if name == "originals" and "proxies" in known else []
            found = levers(compute, videos, share, demand, others)
            arms.append(_form(name, videos, step, found, cluster, config, corpus, clips, packing, proxy_bytes))
    rates: list[tuple[str, Rate]] = []
    if share.interpreter_seconds and interpreter is not None:
        rates.append(("decoding threads, seconds of the interpreter per span", interpreter))
    rates += [("step, fixed seconds", compute.fixed_seconds), ("step, seconds a clip", compute.seconds_per_clip)]
    for videos in known.values():
        names = ("bytes_per_span", "pictures_per_span", "core_seconds_per_span", "core_seconds_per_view")
        rates += [(f"{videos.name}, {key.replace('_', ' ')}", getattr(videos, key)) for key in names]
        rates += [(f"{videos.name}, idle seconds per span", videos.idle_seconds_per_span)]
        if videos.nvdec_pictures_per_second is not None and share.has_nvdec:
            rates.append((f"{videos.name}, NVDEC pictures per second and GPU", videos.nvdec_pictures_per_second))
    extra = {"packing, core seconds an original frame": packing, "proxies, bytes a frame": proxy_bytes}
    rates += [(key, rate) for key, rate in extra.items() if rate is not None]
    if corpus.bytes_per_frame is not None:
        rates.append(("originals, bytes a frame", corpus.bytes_per_frame))
    return Plan(config, cluster, corpus, compute, clips, arms, rates, proxy_codecs(rows, cluster))


def with_number_of_parts(config: Config, cluster: Cluster) -> Config:
    """`optim.accumulation: auto` as ranks of the cluster would settle it. Raises ConfigError where their memory is not known."""
    if config.optim.accumulation != "auto":
        return config
    if cluster.memory_gigabytes is None:
        raise ConfigError(
            f"{cluster.name}: optim.accumulation is auto, and the cluster's memory_gigabytes is not given; give it, or a number "
            "for optim.accumulation"
        )
    processor, local_size = "cuda" if cluster.gpus_per_node else "cpu", cluster.ranks_per_node
    world = World(torch.device(processor), size=cluster.ranks, local_size=local_size)
    memory = 1e9 * cluster.memory_gigabytes  # without GPUs a node is one rank
    return with_parts(config, fewest_parts(config, world, memory))


def _share(cluster: Cluster, config: Config, interpreter: Rate | None) -> Share:
    """Beside a GPU processes decode, one for each core but one, unless the config says otherwise."""
    workers = config.data.workers if cluster.gpus_per_node else config.data.workers or 0
    cores = cluster.cores_per_node / cluster.ranks_per_node
    readers = cluster.ranks if cluster.storage_is_shared else cluster.ranks_per_node
    return Share(
        ranks=cluster.ranks,
        cores=cores,
        threads=max(1, cores - 1) if workers is None else workers or config.data.threads or cores,
        storage=cluster.storage_gigabytes_per_second * 1e9 / readers,
        exchange=cluster.exchange_gigabytes_per_second * 1e9,
        has_nvdec=cluster.nvdec_per_gpu > 0 and config.data.loader != "cpu",
        interpreter_seconds=interpreter.value if interpreter and cluster.gpus_per_node and workers == 0 else 0.0,
    )


def _form(
    name: str,
    videos: Videos,
    step: Step,
    found: list[Lever],
    cluster: Cluster,
    config: Config,
    corpus: CorpusSize,
    clips: int,
    packing: Rate | None,
    proxy_bytes: Rate | None,
) -> Form:
    hours = clips / step.clips_per_second / HOUR
    is_packed = name == "proxies"
    packing_hours = corpus.frames * packing.value / HOUR if is_packed and packing is not None else 0.0
    size = None if corpus.bytes_per_frame is None else corpus.frames * corpus.bytes_per_frame.value
    if is_packed and size is not None:
        kept = corpus.frames / (config.data.stride or 1)
        size = None if proxy_bytes is None else size + kept * proxy_bytes.value
    gpu_hours = hours * cluster.nodes * cluster.gpus_per_node
    core_hours = (
        packing_hours if cluster.gpus_per_node else packing_hours + hours * cluster.nodes * cluster.cores_per_node
    )
    prices, terabytes = cluster.prices, None if size is None else size / TERA
    costs = [
        (gpu_hours, prices.gpu_hour),
        (core_hours, prices.core_hour),
        (terabytes or 0.0, None if prices.terabyte_month is None else prices.terabyte_month * prices.storage_months),
    ]
    known = [amount * price for amount, price in costs if price is not None]
    label = f"{name}, {step.demand.views} view{'s' * (step.demand.views > 1)} a span"
    return Form(
        label,
        videos,
        step,
        found,
        hours * HOUR / DAY,
        gpu_hours,
        core_hours,
        packing_hours,
        terabytes,
        math.fsum(known) if known else None,
    )


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    """The arms' figures, for JSON."""
    of_step = ("clips_per_second", "spans_per_second", "bottleneck", "seconds_by_resource")
    of_form = ("days", "gpu_hours", "core_hours", "packing_core_hours", "terabytes", "money")
    return [
        {
            "arm": form.name,
            "cluster": plan.cluster.name,
            **{name: getattr(form.step, name) for name in of_step},
            **{name: getattr(form, name) for name in of_form},
            "levers": {lever.name: lever.gain for lever in form.levers},
        }
        for form in plan.arms
    ]


def corpus_size(
    path: Path | None, videos: int | None, frames: int | None, config: Config, cluster: Cluster
) -> CorpusSize:
    """Of a corpus, or of totals, one of which is given in full. Raises ConfigError, CorpusError."""
    if path is not None:
        corpus = Corpus.open(path)
        if corpus.packed_stride.max() > 1:
            raise ConfigError(
                f"--corpus {path}: holds proxies; give the index of their originals, and this one as --packed"
            )
        return CorpusSize.of(corpus, config)
    return CorpusSize.told(videos or 0, frames or 0, config, cluster)
