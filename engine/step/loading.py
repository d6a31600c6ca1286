"""Which loader feeds a run, and how it is built.

With data.loader "auto" on a GPU it is measured once, at the run's start, on every rank; the ranks agree, and what they agreed on is
kept in RUN/loader.json: a run that goes on neither waits for a measurement nor decodes otherwise than it did.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...loaders.choice import Choice, agree
from ...loaders.choose import DaliOptions, choose_loader
from ...loaders.corpus.corpus import Corpus
from ...loaders.corpus.whole_file import write_text_whole
from ...loaders.decode.loader import BaseClipLoader
from ...loaders.draw.augment import CropRecipe
from ...loaders.draw.order import ClipOrder
from ...loaders.draw.sampler import Sampler
from ..config.settings import Config, ConfigError
from ..draws.phases import phases
from ..draws.samplers import build_order, build_sampler
from ..ranks.distributed import World
from .sizes import PhasedLoader

CHOICES_FILE = "loader.json"
DIVERSITY_EVERY = 10  # steps; it takes the host a millisecond
Numbers = Iterable[NDArray[np.int64]]


def build_loader(
    config: Config,
    corpus: Corpus,
    sampler: Sampler,
    numbers: Numbers,
    device: torch.device,
    *,
    report: bool = False,
    world: World | None = None,
) -> BaseClipLoader[Any] | PhasedLoader:
    """The loader of the clips `numbers`, a batch each. report: say on stderr what was chosen and why. world: of the ranks that
    choose together and keep their choice in the run's folder; None chooses for this process, for this time.

    data.loader "auto" takes the CPU where there is no GPU or no DALI; else it measures, for ten seconds at most.
    Raises ConfigError where DALI is asked for by name and is not installed.
    """
    if config.data.sizes:

        def open_loader(phase: Config, numbers: Numbers) -> BaseClipLoader[Any]:
            return _open(phase, corpus, build_sampler(phase, corpus), numbers, device, report, world)

        return PhasedLoader(phases(config), numbers, open_loader)
    return _open(config, corpus, sampler, numbers, device, report, world)


def diversity(config: Config, order: ClipOrder, step: int) -> dict[str, float]:
    """How various a run's clips are where spans are reused, for every tenth row of metrics: distinct draws among the latest 1,000
    clips, and after how many steps a draw comes again, on average. step: how many are done."""
    if order.views_per_span == 1 or step % DIVERSITY_EVERY:
        return {}
    unique, apart = order.diversity(step * config.optim.batch)
    return {"unique_spans_per_1000_clips": unique, "reuse_distance_steps": apart / config.optim.batch}


def _open(
    config: Config,
    corpus: Corpus,
    sampler: Sampler,
    numbers: Numbers,
    device: torch.device,
    report: bool,
    world: World | None,
) -> BaseClipLoader[Any]:
    """The loader of clips of one size."""
    data, cores = config.data, _cores(config.run.pin_cores, world)
    if data.loader in ("nvdec", "planes") and device.type != "cuda":
        raise ConfigError(
            f"data.loader: {data.loader!r} works on a GPU, and the run is on the CPU; set data.loader=auto or run.device=cuda"
        )
    options: DaliOptions = {
        "resize": data.resize,
        "content_box": data.content_box,
        "square_pixels": data.square_pixels,
        "threads": data.threads or cores,
        "prefetch": data.prefetch,
        "failure_budget": data.failure_budget,
        "clip_timeout": data.clip_timeout,
        # On a CPU the training shares the cores: its steps are barriers of many threads, which one decoding thread in the way
        # holds up, while decoding runs ahead and can wait.
        "background": device.type == "cpu",
        "decoders": None if data.decoders == "auto" else data.decoders,
    }
    crops = CropRecipe(data.crop_scale, data.crop_ratio, data.flip)
    try:
        choice = choose_loader(
            data.loader,
            corpus,
            sampler,
            crops,
            resolution=data.resolution,
            device=device,
            options=options,
            settle=partial(_settle, config, world) if world else lambda measure: measure(),
            workers=data.workers,
            cores=cores,
        )
    except ImportError as error:
        raise ConfigError(f"data.loader: {error}") from error
    if report:
        print(f"loader: {choice}", file=sys.stderr)
    return choice.open(numbers, order=build_order(config))


def _cores(are_pinned: bool, world: World | None) -> int:
    """Of this rank: those that it was given, or its part of what all ranks of the node may use."""
    ranks = 1 if world is None or are_pinned else world.local_size
    return max(1, len(os.sched_getaffinity(0)) // ranks)


def _settle(config: Config, world: World, measure: Callable[[], list[Choice]]) -> list[Choice]:
    """The run's choices for clips of this size: those that it began with, or measured on all ranks and agreed on."""
    path, data = Path(config.run.dir) / CHOICES_FILE, config.data
    clips = f"{data.frames} x {data.resolution}"
    # The first rank's folder counts: others may see the file later than it is written.
    kept = world.gather(_read(path) if world.is_first else {})[0]
    if clips in kept:
        return [Choice.parse(row) for row in kept[clips]]
    choices = agree(world.gather(measure()))
    if world.is_first:
        kept[clips] = [asdict(choice) for choice in choices]
        write_text_whole(path, json.dumps(kept, indent=1))
    return choices


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
