"""From a config to a run's model and masks, and what it says of itself when it starts."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from ...loaders.corpus.corpus import Corpus
from ...loaders.draw.sampler import Sampler
from ...ssl.ahead import DrawnAhead
from ...ssl.block_masks import MultiBlockMask
from ...ssl.choices import SIZES
from ...ssl.encoder import VideoEncoder
from ...ssl.jepa import JointEmbedding
from ...ssl.mae import MaskedAutoencoder
from ...ssl.masks import TubeMask
from ...ssl.objective import MaskSource, Objective
from ...ssl.predictor import MeanOfContext, Predictor
from ..config.settings import Config, ConfigError
from ..draws.phases import Phase, clip_grid, phases
from ..draws.samplers import held_out, repeats_line
from ..weights.run_encoder import build_encoder
from .sizes import PhasedMasks
from .teacher import load_teacher

PARAMETER_CLIPS_OF_A_CPU = 1e10  # of a step; demo_cpu has 3e7, surgrec_mae 1e11
SLOW_ON_CPU = (
    "\nwarning: a step of this size takes a CPU minutes to hours; it is meant for GPUs (demo_cpu for a CPU), or set a smaller "
    "model.encoder, data.resolution or optim.batch"
)


def describe(
    config: Config,
    model: Objective,
    corpus: Corpus,
    sampler: Sampler,
    steps: int,
    first_step: int,
    device: torch.device,
) -> str:
    """What is about to happen, in two or more lines."""
    encoder, whole = (sum(p.numel() for p in part.parameters()) / 1e6 for part in (model.encoder, model))
    clips = steps * config.optim.batch
    resumed = f", resumed after step {first_step}" if first_step else ""
    held = held_out(config, corpus)
    num_held = 0 if held is None else int(held.sum())
    beside = f", {num_held:,} more held out" if num_held else ""
    return (
        f"{config.model.encoder} encoder of {encoder:.1f} M parameters ({whole:.1f} M with all that goes with it) on {device}, "
        f"{config.run.precision}\n"
        f"{steps:,} steps of {config.optim.batch:,} clips{resumed}: {clips / sampler.num_spans:.1f} passes over "
        f"{sampler.num_spans:,} spans of {len(corpus) - num_held:,} videos{beside}"
        + (f"\n{repeats}" if (repeats := repeats_line(sampler.order)) else "")
        + (SLOW_ON_CPU if device.type == "cpu" and whole * 1e6 * config.optim.batch > PARAMETER_CLIPS_OF_A_CPU else "")
    )


def build_model(config: Config) -> tuple[Objective, MaskSource]:
    """The objective, freshly initialised from PyTorch's generator, and its masks. Raises ConfigError where sizes do not fit."""
    found = phases(config)
    try:
        return OBJECTIVES[config.objective.kind](config, found)
    except ValueError as error:
        raise ConfigError(f"model, data and objective do not fit together: {error}") from error


def _build_mae(config: Config, found: list[Phase]) -> tuple[Objective, MaskSource]:
    choice, size = config.model, SIZES[config.model.encoder]
    if choice.positions == "rope":
        raise ValueError("model.positions rope is the JEPA's; the MAE's decoder takes flat or axes")
    encoder = build_encoder(config)
    model = MaskedAutoencoder(
        encoder,
        decoder_width=choice.decoder_width or size.decoder_width,
        decoder_depth=choice.decoder_depth,
        decoder_heads=choice.decoder_heads or size.decoder_heads,
        normalization=config.objective.targets,
        starts_as_videomae=choice.start == "videomae",
    )
    masks = [build_masks(phase.config, encoder) for phase in found]
    return model, masks[0] if len(masks) == 1 else PhasedMasks(found, masks)


def _build_jepa(config: Config, found: list[Phase]) -> tuple[Objective, MaskSource]:
    choice, objective = config.model, config.objective
    encoder, teacher = build_encoder(config), load_teacher(config)
    if choice.predictor_depth:
        predictor = Predictor(
            encoder.width,
            choice.predictor_width,
            choice.predictor_depth,
            choice.predictor_heads or choice.heads or SIZES[choice.encoder].heads,
            grid=encoder.grid,
            positions=choice.positions,
            mask_tokens=choice.predictor_mask_tokens or len(objective.masks),
            out_width=teacher.width if teacher else None,
        )
    else:
        predictor = MeanOfContext()
    masks = [build_masks(phase.config, encoder) for phase in found]
    model = JointEmbedding(encoder, predictor, distance=objective.distance, teacher=teacher)
    return model, DrawnAhead(masks[0] if len(masks) == 1 else PhasedMasks(found, masks))


OBJECTIVES = {"mae": _build_mae, "jepa": _build_jepa}


def build_masks(config: Config, encoder: VideoEncoder) -> Any:
    """The masks of clips of one size, that of `config`."""
    objective, grid = config.objective, clip_grid(config)
    if objective.kind == "jepa":
        cut_batch = objective.truncate_batch if objective.truncate == "batch" else 0
        return MultiBlockMask(grid, tuple(mask.recipe() for mask in objective.masks), objective.bucket, cut_batch)
    return TubeMask(grid, objective.mask_ratio, objective.decoder_mask_ratio)


def autocast(config: Config, device: torch.device) -> AbstractContextManager:
    if config.run.precision != "bfloat16":
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
