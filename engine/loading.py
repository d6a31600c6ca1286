"""Which loader feeds a run, and how it is built."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..loaders.augment import CropRecipe
from ..loaders.choose import choose_loader
from ..loaders.corpus import Corpus
from ..loaders.loader import BaseClipLoader
from ..loaders.order import ClipOrder
from ..loaders.sampler import Sampler
from .build import build_sampler
from .config import Config, ConfigError
from .sizes import PhasedLoader, phases

Numbers = Iterable[NDArray[np.int64]]


def build_loader(
    config: Config, corpus: Corpus, sampler: Sampler, numbers: Numbers, device: torch.device, *, report: bool = False
) -> BaseClipLoader[Any] | PhasedLoader:
    """The loader of the clips `numbers`, a batch each. report: say on stderr what was chosen and why.

    data.loader "auto" takes the CPU where there is no GPU or no DALI; else it measures every kind of video in the corpus both ways.
    Raises ConfigError where DALI is asked for by name and is not installed.
    """
    if config.data.sizes:

        def open_loader(phase: Config, numbers: Numbers) -> BaseClipLoader[Any]:
            return _open(phase, corpus, build_sampler(phase, corpus), numbers, device, report)

        return PhasedLoader(phases(config), numbers, open_loader)
    return _open(config, corpus, sampler, numbers, device, report)


def build_order(config: Config) -> ClipOrder:
    return ClipOrder(config.data.views_per_span, config.data.pool_spans, config.data.lanes, config.run.seed)


def _open(
    config: Config, corpus: Corpus, sampler: Sampler, numbers: Numbers, device: torch.device, report: bool
) -> BaseClipLoader[Any]:
    """The loader of clips of one size."""
    data = config.data
    options: dict[str, Any] = {
        "resolution": data.resolution,
        "resize": data.resize,
        "content_box": data.content_box,
        "threads": data.threads,
        "prefetch": data.prefetch,
        "failure_budget": data.failure_budget,
        "clip_timeout": data.clip_timeout,
        # On a CPU the training shares the cores: its steps are barriers of many threads, which one decoding thread in the way
        # holds up, while decoding runs ahead and can wait.
        "background": device.type == "cpu",
    }
    crops = CropRecipe(data.crop_scale, data.crop_ratio, data.flip)
    dali_options = {"decoders": data.decoders}
    try:
        choice = choose_loader(
            data.loader, corpus, sampler, crops, device=device, options=options, dali_options=dali_options
        )
    except ImportError as error:
        raise ConfigError(f"data.loader: {error}") from error
    if report:
        print(f"loader: {choice}", file=sys.stderr)
    return choice.open(numbers, order=build_order(config))
