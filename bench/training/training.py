"""`trocar bench training`: the full training step on resident data, on replayed batches and behind the real loader.

The three share one step, forward, backward, optimizer and EMA, so what they differ by is what data costs: from resident to replayed
the way to the device, from replayed to the loader decoding and all that goes with it. Arms take turns, set by set; a set has clips,
crops and masks of its own.

Shapes: B clips of a step over all ranks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...engine.config.file import load_config
from ...engine.config.settings import Config
from ...engine.draws.samplers import samplers_by_clip
from ...engine.step.loading import build_loader
from ...engine.step.run import Run
from ...loaders.corpus.corpus import Corpus
from ..rows.row import row
from ..rows.timing import Ceilings, measure_ceilings
from ..rows.turns import in_turns
from .clock import StepTimes, peak_memory, spread, time_steps
from .flops import StepFlops, step_flops
from .run import clip_numbers, made_clips, open_run, replayed, resident

RESIDENT, REPLAYED, LOADER = "resident", "replayed", "loader"
KEPT_BATCHES = 4
SET_STEPS = 1000  # from the first step of a set to the next set's: no two share a clip
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
SWEEPS = {
    "model.encoder": ("small", "base", "large"),
    "optim.batch": ("half", "double"),
    "objective.mask_ratio": ("0.75", "0.95"),
    "data.views_per_span": ("2", "4"),
}


@dataclass(frozen=True)
class Effort:
    """How much is measured: sets of inputs, timed steps of each, steps before them that are not timed."""

    sets: int = 3
    steps: int = 20
    warmup: int = 5


EFFORT = Effort()


@dataclass
class _Source:
    """corpus: where the loader reads; None for arms without one."""

    name: str
    corpus: Path | None = None
    times: list[StepTimes] = field(default_factory=list)


def bench_steps(
    source: str | Path,
    overrides: Sequence[str],
    corpora: dict[str, Path],
    *,
    effort: Effort = EFFORT,
    sweep: Sequence[tuple[str, str]] = (),
    ceilings: Ceilings | None = None,
) -> list[dict[str, Any]]:
    """Measures a config, and again with each (key, value) of `sweep` changed alone; a row for every arm.

    corpora: a name and a folder for each corpus that the loader's arms read. ceilings: measured where None. Raises ConfigError
    and CorpusError.
    """
    base = load_config(source, overrides)
    points = [("", "")] + [(key, _meant(base, key, value)) for key, value in sweep]
    rows = []
    for key, value in points:
        config = load_config(source, [*overrides, f"{key}={value}"]) if key else base
        with open_run(config) as run:
            device = run.world.device
            ceilings = ceilings or device_ceilings(device, config.run.precision)
            point = {"config": str(source), "changed": f"{key}={value}" if key else ""}
            rows += [
                row("training", device, {**point, **entry}) for entry in measure_steps(run, corpora, effort, ceilings)
            ]
    return rows


def measure_steps(run: Run, corpora: dict[str, Path], effort: Effort, ceilings: Ceilings) -> list[dict[str, Any]]:
    """All arms of one run: the figures of a row for each."""
    config, device = run.config, run.world.device
    arms = [
        _Source(RESIDENT),
        _Source(REPLAYED),
        *(_Source(f"{LOADER}, {name}", path) for name, path in corpora.items()),
    ]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(effort.sets):
        for arm in in_turns(arms, number):
            arm.times.append(_time_arm(run, arm, number * SET_STEPS, effort))
    flops = [_flops_per_clip(run, number * SET_STEPS) for number in range(effort.sets)]
    resident_speeds = [times.clips_per_second for times in arms[0].times]
    return [
        {"part": "steps", **describe(config), **_figures(arm, run, flops, ceilings, resident_speeds)} for arm in arms
    ]


def _time_arm(run: Run, arm: _Source, first_step: int, effort: Effort) -> StepTimes:
    config = run.config
    numbers = clip_numbers(run, first_step=first_step)
    warmup = effort.warmup
    if arm.corpus is not None:
        # What was decoded ahead before the clock starts must not look as if it had cost nothing.
        warmup = max(warmup, config.data.prefetch + 1)
        corpus = Corpus.open(arm.corpus)
        sampler = samplers_by_clip(config, corpus)(0)
        source: Any = build_loader(config, corpus, sampler, numbers, run.world.device)
    else:
        source = nullcontext(_kept(run, arm.name, numbers, first_step))
    with source as batches:
        return time_steps(run, iter(batches), effort.steps, warmup=warmup, first_step=first_step)


def _kept(run: Run, name: str, numbers: Iterator[Any], seed: int) -> Iterator[Any]:
    config = run.config
    clips = config.optim.clips_at_once
    if name == RESIDENT:
        return resident(run, made_clips(config, clips, seed), numbers)
    return replayed(run, [made_clips(config, clips, seed + number) for number in range(KEPT_BATCHES)], numbers)


def _flops_per_clip(run: Run, first_step: int) -> StepFlops:
    """Of a step of this set, over all ranks' clips."""
    batch = run.config.optim.batch
    numbers = np.arange(first_step * batch, (first_step + 1) * batch)
    return step_flops(run.objective, run.masks(run.config.run.seed, numbers, 0, run.world.device))


def _figures(
    arm: _Source, run: Run, flops: Sequence[StepFlops], ceilings: Ceilings, resident_speeds: Sequence[float]
) -> dict[str, Any]:
    speeds = [times.clips_per_second for times in arm.times]
    batch = run.config.optim.batch
    rate = [speed * each.total / batch for speed, each in zip(speeds, flops, strict=True)]
    tokens = [speed * each.visible_tokens / batch for speed, each in zip(speeds, flops, strict=True)]
    steps = list(itertools.chain.from_iterable(times.seconds for times in arm.times))
    used = sum(times.count.frames_used for times in arm.times)
    packets = sum(times.count.packets_decoded for times in arm.times)
    of_resident = [speed / best for speed, best in zip(speeds, resident_speeds, strict=True)]
    return {
        "arm": arm.name,
        "clips_per_second": spread(speeds),
        "clips_per_second_by_set": speeds,
        "step_seconds": spread(steps),
        "steps_timed": len(steps),
        "visible_tokens_per_second": spread(tokens),
        "flops_per_clip": float(np.mean([each.total / batch for each in flops])),
        "flops_per_second": spread(rate),
        "of_matrix_ceiling": spread([each / ceilings.matrix_flops_per_second for each in rate]),
        "matrix_flops_per_second": ceilings.matrix_flops_per_second,
        "ceiling_dtype": ceilings.dtype,
        "of_resident": spread(of_resident),
        "data_wait_percent": spread([times.data_wait_percent for times in arm.times]),
        "spans_per_second": sum(times.count.spans for times in arm.times) / sum(steps) if used else None,
        "amplification": packets / used if used else None,
        "peak_memory_bytes": peak_memory(run.world.device),
    }


def device_ceilings(device: torch.device, precision: str) -> Ceilings:
    """What this device reaches in the precision of a run; smaller products on a CPU, where large ones take minutes."""
    if device.type == "cuda":
        return measure_ceilings(device, DTYPES[precision])
    return measure_ceilings(device, DTYPES[precision], copy_bytes=2**27, side=1536, repeats=7)


def describe(config: Config) -> dict[str, Any]:
    """What a row has to say of the config that it comes from."""
    return {
        "objective": config.objective.kind,
        "encoder": config.model.encoder,
        "precision": config.run.precision,
        "batch": config.optim.batch,
        "frames": config.data.frames,
        "resolution": config.data.resolution,
        "mask_ratio": config.objective.mask_ratio if config.objective.kind == "mae" else None,
        "decoder_mask_ratio": config.objective.decoder_mask_ratio if config.objective.kind == "mae" else None,
        "views_per_span": config.data.views_per_span,
        "compile": config.run.compile,
        "cuda_graphs": config.run.cuda_graphs,
        "threads": torch.get_num_threads(),
    }


def _meant(config: Config, key: str, value: str) -> str:
    """The value of a sweep's point; "half" and "double" are of the config's."""
    if value not in ("half", "double"):
        return value
    section, _, name = key.partition(".")
    present = getattr(getattr(config, section), name)
    return str(max(1, present // 2) if value == "half" else 2 * present)
