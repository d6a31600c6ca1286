"""What a row of `trocar profile` says of the run, beside where its steps went: what `trocar plan` takes its rates from."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from ...engine.config.settings import Config
from ...loaders.corpus.corpus import Corpus
from .stage_clock import ProcessorClock
from .stages import StepProfile

COSTS = ("amplification", "bytes_per_clip")


def figures(
    config: Config, profile: StepProfile, steps: Sequence[dict[str, Any]], processor: ProcessorClock | None = None
) -> dict[str, Any]:
    """steps: rows of metrics.jsonl of the profiled steps; may be empty. processor: None where the run was another process."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    cores = len(os.sched_getaffinity(0))
    data = config.data
    measured: dict[str, Any] = {
        "objective": config.objective.kind,
        "encoder": config.model.encoder,
        "frames": data.frames,
        "resolution": data.resolution,
        "videos": "proxies" if int(Corpus.open(data.corpus).packed_stride.max()) > 1 else "originals",
        "clips_per_step": config.optim.batch / ranks,
        "views_per_span": data.views_per_span,
        "loader_threads": data.threads or cores,
        "compute_threads": torch.get_num_threads(),
        "cores": cores,
        **profile.row(),
    }
    measured |= {name: statistics.fmean(entry[name] for entry in steps) for name in COSTS if steps}
    if processor is not None and processor.spans:
        seconds, core, queue = (sum(values) / profile.steps for values in zip(*processor.spans, strict=True))
        measured["decode_thread_seconds_per_step"] = seconds
        measured["decode_core_seconds_per_step"] = min(core, seconds)
        measured["decode_queue_seconds_per_step"] = min(queue, seconds - min(core, seconds))
        measured["decode_threads_queue_seconds_per_step"] = processor.decode_queue
        measured["spans_per_step"] = len(processor.spans) / profile.steps
        measured["training_queue_seconds_per_step"] = processor.training_queue
    return measured
