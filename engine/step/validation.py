"""The loss on videos that training never draws: the same clips, cuts and masks every time, so that only the weights change it.

The clips are decoded once, in a side thread while training goes on, each rank's share into its host memory. What is computed then,
every `validation.every` steps, are their forward passes with the weights as they are. Nothing of training is touched: no gradient,
no optimizer state, no generator, no draw; and the host waits for nothing, as the loss travels with the step's other numbers.

Shapes: K clips, k of them on this rank, T frames, R x R pixels.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.fsdp import FSDPModule

from ...loaders.corpus.corpus import Corpus
from ...loaders.cpu import ClipLoader
from ...loaders.draw.augment import CropRecipe
from ...ssl.objective import Objective
from ..config.settings import Config
from ..draws.phases import phases
from ..draws.samplers import build_held_out_sampler
from ..ranks.distributed import World
from .build import autocast, build_masks
from .ignored import IgnoredTargets, without

# Decoding stands behind that of training: it has until the first validation. Processes beside a GPU.
THREADS = 2
CLIPS_AT_A_TIME = 4


class Validation:
    """Validates on all ranks alike. Does nothing where no video is held out.

    steps: of the run; the last is validated too. Raises ConfigError where no video is held out by what should, and VideoError, at
    the first validation, where too many of the clips cannot be read; a few are replaced, like those of training.
    """

    def __init__(self, config: Config, corpus: Corpus, objective: Objective, world: World, steps: int) -> None:
        self.objective, self.world, self.steps = objective, world, steps
        self.settings = config.validation
        self._pool: ThreadPoolExecutor | None = None
        if not self.settings.is_wanted:
            return
        # Clips that grow on the way would put a step into the curve that the weights have no part in.
        self.config = phases(config)[0].config
        self._sampler = build_held_out_sampler(self.config, corpus)
        self._corpus = corpus
        self._masks = build_masks(self.config, objective.encoder)
        self._ignoring = IgnoredTargets.of(self.config, corpus, objective.encoder.patch, self.settings.seed)
        self._ignored: list[NDArray[np.bool_]] = []  # of every clip, once they are decoded
        self.clips = min(self.settings.clips, self._sampler.num_spans)
        # Sharded models need all ranks for every forward pass: shares are filled up to one length with clips that do not count.
        length = -(-self.clips // world.size)
        self._places = np.arange(length) * world.size + world.rank
        self._counted = self._places < self.clips
        self._numbers = self._places % self.clips
        self._closing = threading.Event()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="validation")
        self._frames: Future[torch.Tensor] = self._pool.submit(self._decode)

    def __enter__(self) -> Validation:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._closing.set()
            self._pool.shutdown(wait=True)

    def is_due(self, step: int) -> bool:
        """After optimizer step `step`."""
        return self._pool is not None and (step % self.settings.every == 0 or step == self.steps)

    @torch.no_grad()
    def losses(self) -> dict[str, torch.Tensor]:
        """validation_loss: () float64 on the device, the mean over all K clips, equal on all ranks. To be called on all of them."""
        frames, device = self._frames.result(), self.world.device
        clip_loss = torch.zeros(self.clips, dtype=torch.float64, device=device)
        for first in range(0, len(frames), self.settings.batch):
            part = slice(first, first + self.settings.batch)
            clips = frames[part].to(device, non_blocking=True)
            masks = self._masks(self.settings.seed, self._numbers[part], 0, device)
            if self._ignoring is not None:
                masks = without(masks, np.stack(self._ignored[part]), device)
            with autocast(self.config, device):
                found = self.objective(clips, masks).clip_loss
            counted = self._counted[part]
            places = torch.from_numpy(self._places[part][counted]).to(device)
            clip_loss.index_copy_(0, places, found[: len(places)].double())  # those that do not count stand last
        if isinstance(self.objective, FSDPModule):
            self.objective.reshard()  # no backward pass follows that would
        return {"validation_loss": self.world.sum(clip_loss).mean()}

    def _decode(self) -> torch.Tensor:
        """(k, T, R, R, 3) uint8, in the order of this rank's clips."""
        data = self.config.data
        shape = (len(self._numbers), data.frames, data.resolution, data.resolution, 3)
        frames = torch.empty(shape, dtype=torch.uint8, pin_memory=self.world.device.type == "cuda")
        batches = np.split(self._numbers, range(CLIPS_AT_A_TIME, len(self._numbers), CLIPS_AT_A_TIME))
        with ClipLoader(
            self._corpus,
            self._sampler,
            CropRecipe(data.crop_scale, data.crop_ratio, data.flip),
            batches,
            resolution=data.resolution,
            resize=data.resize,
            content_box=data.content_box,
            square_pixels=data.square_pixels,
            threads=THREADS,
            workers=THREADS if self.world.device.type == "cuda" else 0,
            failure_budget=data.failure_budget,
            clip_timeout=data.clip_timeout,
            background=True,
        ) as loader:
            done = 0
            for batch in loader:
                if self._closing.is_set():
                    break
                frames[done : done + len(batch.frames)] = batch.frames
                if self._ignoring is not None:
                    self._ignored.extend(self._ignoring.tokens(batch))
                done += len(batch.frames)
        for failure in loader.total.failures:
            print(f"trocar: a held-out clip is replaced: {failure.reason}", file=sys.stderr, flush=True)
        return frames
