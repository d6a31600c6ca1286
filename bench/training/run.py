"""The engine's own training step, ready to be measured: a run without its loop, and batches to feed it.

Every arm of `trocar bench training` calls `pretrain.train_step`, the function that training calls; arms differ in where their
batches come from.

Shapes: B clips, T frames, R x R pixels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from ...engine.config.settings import Config
from ...engine.draws.samplers import build_order
from ...engine.ranks.distributed import open_world
from ...engine.ranks.stop import StopRequest, StopVote
from ...engine.ranks.watch import RankWatch
from ...engine.step.device import choose_device
from ...engine.step.run import Run, build_run, claim_cores
from ...loaders.decode.batch import ClipBatch, LoaderCount

SCHEDULE_STEPS = 100_000
PATIENCE_SECONDS = 86_400.0  # a run under measurement stands still while other arms have their turn


@contextmanager
def open_run(config: Config) -> Iterator[Run]:
    """What `pretrain` builds before its loop, on all ranks that were started. Raises ConfigError."""
    settings = config.run
    with (
        open_world(choose_device(config.run.device, "run.device"), settings.rank_timeout) as world,
        RankWatch(world, settings.heartbeat_timeout, PATIENCE_SECONDS) as watch,
    ):
        claim_cores(config, world)
        stop = StopRequest(listen=False)  # a measurement has nothing to save
        yield build_run(config, world, watch, StopVote(stop, 1, 1), SCHEDULE_STEPS)


def clip_numbers(run: Run, *, first_step: int = 0) -> Iterator[NDArray[np.int64]]:
    """This rank's clip numbers from `first_step` on, a part of a batch at a time, without end; their masks are drawn ahead."""
    config, world = run.config, run.world
    part, order = config.optim.clips_at_once, build_order(config)
    batches = (np.arange(n * part, (n + 1) * part) for n in itertools.count(first_step * config.optim.parts))
    shares = (order.share(batch, world.rank, world.size) for batch in batches)
    return run.masks.ahead(config.run.seed, shares, world.device)


def made_clips(config: Config, clips: int, seed: int) -> torch.Tensor:
    """(clips, T, R, R, 3) uint8 in host memory: smooth colours that move, with noise, for where no video is at hand."""
    generator = torch.Generator().manual_seed(seed)
    data = config.data
    coarse = torch.rand(clips, 3, 4, 5, 5, generator=generator)
    size = (data.frames, data.resolution, data.resolution)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="trilinear", align_corners=True)
    noise = torch.randn(smooth.shape, generator=generator)
    return (255 * smooth + 4 * noise).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()


def kept(frames: torch.Tensor, numbers: NDArray[np.int64]) -> ClipBatch:
    """Frames that are at hand, as a batch of these numbers. It cost no decoding."""
    clips = len(numbers)
    nothing, count = np.zeros(clips, np.int64), LoaderCount(clips=clips)
    places = np.zeros((clips, frames.shape[1]))
    labels = [None] * clips
    return ClipBatch(frames, numbers, nothing, nothing, nothing, places.astype(np.int64), places, labels, count)


def resident(run: Run, frames: torch.Tensor, numbers: Iterator[NDArray[np.int64]]) -> Iterator[ClipBatch]:
    """The same frames for every batch, on the run's device: what the step takes when data costs nothing."""
    there = frames.to(run.world.device)
    return (kept(there[: len(part)], part) for part in numbers)


def replayed(run: Run, batches: Sequence[torch.Tensor], numbers: Iterator[NDArray[np.int64]]) -> Iterator[ClipBatch]:
    """Several batches of frames in turn, from host memory: with a transfer to the device, without decoding."""
    is_cuda = run.world.device.type == "cuda"
    held = [batch.pin_memory() if is_cuda else batch for batch in batches]
    turns = zip(itertools.cycle(held), numbers, strict=False)
    return (kept(frames[: len(part)].to(run.world.device, non_blocking=True), part) for frames, part in turns)
