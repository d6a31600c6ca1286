"""From a config to what a run is made of: device, model, masks, sampler, loader."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from ..loaders.corpus import Corpus
from ..loaders.phases import DrawSettings, PlannedOrder, plan_order
from ..loaders.sampler import Sampler
from ..ssl.encoder import SIZES, VideoEncoder
from ..ssl.mae import MaskedAutoencoder
from ..ssl.masks import TubeMask
from .config import Config, ConfigError


def describe(
    config: Config,
    model: MaskedAutoencoder,
    corpus: Corpus,
    sampler: Sampler,
    steps: int,
    first_step: int,
    device: torch.device,
) -> str:
    """What is about to happen, in two lines."""
    encoder, whole = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model))
    clips = steps * config.optim.batch
    resumed = f", resumed after step {first_step}" if first_step else ""
    return (
        f"{config.model.encoder} encoder of {encoder:.1f} M parameters ({whole:.1f} M with decoder) on {device}, "
        f"{config.run.precision}\n"
        f"{steps:,} steps of {config.optim.batch:,} clips{resumed}: {clips / sampler.num_spans:.1f} passes over "
        f"{sampler.num_spans:,} spans of {len(corpus):,} videos"
    )


def choose_device(config: Config) -> torch.device:
    if config.run.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "run.device: 'cuda' is asked for, but PyTorch finds no CUDA device; run `trocar doctor`, or set run.device=cpu"
        )
    if config.run.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.run.device)


def build_model(config: Config) -> tuple[MaskedAutoencoder, TubeMask]:
    """The model, freshly initialised from PyTorch's generator, and its masks. Raises ConfigError where sizes do not fit."""
    choice, size = config.model, SIZES[config.model.encoder]
    try:
        encoder = VideoEncoder(
            choice.width or size.width,
            choice.depth or size.depth,
            choice.heads or size.heads,
            frames=config.data.frames,
            resolution=config.data.resolution,
            tubelet=choice.tubelet,
            patch=choice.patch,
            positions=choice.positions,
        )
        model = MaskedAutoencoder(
            encoder,
            decoder_width=choice.decoder_width or size.decoder_width,
            decoder_depth=choice.decoder_depth,
            decoder_heads=choice.decoder_heads or size.decoder_heads,
            normalization=config.objective.targets,
        )
        return model, TubeMask(encoder.grid, config.objective.mask_ratio)
    except ValueError as error:
        raise ConfigError(f"model, data and objective do not fit together: {error}") from error


def build_sampler(config: Config, corpus: Corpus) -> Sampler:
    """The sampler of originals and proxies alike: data.stride counts frames of the originals.

    Raises ConfigError where the proxies hold too few frames or pixels for what is asked.
    """
    data, packed = config.data, corpus.packed_stride
    _check_proxies(config, corpus)
    make = partial(
        Sampler,
        corpus.frames,
        num_frames=data.frames,
        stride=None if data.stride is None else data.stride // packed,
        sample_fps=data.sample_fps,
        video_fps=corpus.fps,
        seed=config.run.seed,
    )
    plan = plan_draws(config, corpus, make().span_frames)
    return make(order=None if plan is None else plan.order)


def plan_draws(config: Config, corpus: Corpus, span_frames: NDArray[np.int64]) -> PlannedOrder | None:
    """The order of a run that draws otherwise than from all spans alike. span_frames: (V,) frames of a span of each video."""
    data = config.data
    names = [item.name for item in fields(DrawSettings)]
    settings = [DrawSettings(**{name: getattr(data, name) for name in names if name != "first_draw"})]
    if settings == [DrawSettings()] and not data.phases:
        return None
    for phase in data.phases:
        changed = {name: getattr(phase, name) for name in names if getattr(phase, name) is not None}
        settings.append(replace(settings[-1], **changed))
    try:
        return plan_order(corpus, settings, span_frames, config.run.seed)
    except ValueError as error:
        raise ConfigError(f"data: {error}") from error


def _check_proxies(config: Config, corpus: Corpus) -> None:
    data, packed = config.data, corpus.packed_stride
    if data.stride is not None and (unfit := packed[data.stride % packed != 0]).size:
        raise ConfigError(
            f"data.stride: {data.stride} is not a multiple of {unfit[0]}, the stride with which {corpus.path} was packed; give a "
            f"multiple, or pack the originals again: trocar pack --stride {data.stride}"
        )
    if data.sample_fps is not None:
        slow = np.flatnonzero((packed > 1) & (corpus.fps < data.sample_fps * 0.999))
        if slow.size:
            raise ConfigError(
                f"data.sample_fps: {data.sample_fps:g} is more than the {corpus.fps[slow].min():g} frames a second that "
                f"proxies in "
                f"{corpus.path} hold; give less, or pack the originals again with a smaller trocar pack --stride"
            )
    sides = [min(v["width"], v["height"]) for v in corpus.scan("original", "width", "height") if v["original"]]
    # Proxies are no larger than their originals, so a few small ones say nothing.
    if sides and max(sides) < data.resolution:
        raise ConfigError(
            f"data.resolution: {data.resolution} is more than the {max(sides)} pixels of the largest proxy's short side in "
            f"{corpus.path}; set data.resolution={max(sides)}, or pack larger originals again: trocar pack --short-side "
            f"{data.resolution + data.resolution % 2}"
        )


def check_same_corpus(config: Config, corpus: Corpus, fingerprint: str) -> None:
    if fingerprint != corpus.fingerprint and not config.data.allow_changed_corpus:
        raise ConfigError(
            f"data.corpus: {config.data.corpus} has changed since the run in {config.run.dir} began, so its draws would be "
            f"others; "
            "restore the corpus, set run.dir elsewhere, or accept it with data.allow_changed_corpus=true"
        )


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    if config.run.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
