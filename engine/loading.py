"""Which loader feeds a run, and how it is built."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..loaders import cpu
from ..loaders.augment import CropRecipe
from ..loaders.choose import Kind, choose_decoders
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
            return build_loader(phase, corpus, build_sampler(phase, corpus), numbers, device, report=report)

        return PhasedLoader(phases(config), numbers, open_loader)
    data = config.data
    options: dict[str, Any] = {
        "resolution": data.resolution,
        "resize": data.resize,
        "content_box": data.content_box,
        "threads": data.threads,
        "prefetch": data.prefetch,
        "device": device,
        "failure_budget": data.failure_budget,
        # On a CPU the training shares the cores: its steps are barriers of many threads, which one decoding thread in the way
        # holds up, while decoding runs ahead and can wait.
        "background": device.type == "cpu",
    }
    crops = CropRecipe(data.crop_scale, data.crop_ratio, data.flip)
    make_cpu = partial(cpu.ClipLoader, corpus, sampler, crops, **options)
    name, reason = _loader_name(config, device)
    on_cpu: list[Kind] = []
    if name == "dali":
        from ..loaders import dali

        make_dali = partial(dali.ClipLoader, corpus, sampler, crops, decoders=data.decoders, **options)
        if data.loader == "auto":
            choices = choose_decoders(corpus, sampler, make_cpu, make_dali)
            on_cpu = [choice.kind for choice in choices if not choice.uses_dali]
            name = "dali" if len(on_cpu) < len(choices) else "cpu"
            reason = "\n".join(["as measured:", *(f"  {choice}" for choice in choices)])
        if name == "dali":
            _tell(report, "DALI", reason)
            return make_dali(numbers, order=build_order(config), on_cpu=on_cpu)
    _tell(report, f"PyAV on {data.threads or len(os.sched_getaffinity(0))} threads", reason)
    return make_cpu(numbers, order=build_order(config))


def build_order(config: Config) -> ClipOrder:
    return ClipOrder(config.data.views_per_span, config.data.pool_spans, config.data.lanes, config.run.seed)


def _loader_name(config: Config, device: torch.device) -> tuple[str, str]:
    """ "cpu" or "dali", and why; with "auto" and a GPU, "dali" is still to be measured."""
    wanted = config.data.loader
    if wanted == "cpu":
        return "cpu", "as data.loader says"
    has_dali = find_spec("nvidia") is not None and find_spec("nvidia.dali") is not None
    if wanted == "dali":
        if not has_dali:
            raise ConfigError(
                "data.loader: 'dali' is asked for, but DALI is not installed; pip install 'trocar[cuda12]' or "
                "'trocar[cuda13]', or set data.loader=cpu"
            )
        return "dali", "as data.loader says"
    if device.type != "cuda":
        return "cpu", "as training is on the CPU"
    if not has_dali:
        return "cpu", "as DALI is not installed (pip install 'trocar[cuda12]' or 'trocar[cuda13]')"
    return "dali", ""


def _tell(report: bool, name: str, reason: str) -> None:
    if report:
        print(f"loader: {name}, {reason}", file=sys.stderr)
