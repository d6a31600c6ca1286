"""`optim.accumulation: auto`: a batch in the fewest parts that fit in memory, whatever the GPU and however many ranks.

What a step needs is taken from dry runs of few clips: parameters, gradients and optimizer state stay, activations and waiting clips
grow with the clips on a rank. Clips, crops and masks follow from clip numbers alone, so the parts change rounding and nothing else.
On a CPU the memory is the host's, or what the process's control group may use of it, divided among the node's ranks, and parts are
small besides: many clips at a time make nothing faster there, and between parts a rank is heard and obeys.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..config.settings import Config, ConfigError
from ..draws.phases import phases
from ..draws.samplers import build_order
from ..ranks.distributed import World, check_shares
from .dry_run import dry_run_alone

# Of fewer, a small model holds the most where all of its gradients are there, not its activations.
TRACED_CLIPS = (8, 16)
# For what no dry run shows: fragments of the allocator and workspaces, a share of the memory; CUDA, NCCL and video decoders.
MARGIN, RESERVED_BYTES = 0.15, 3 << 30
CPU_CLIPS = 8  # of a part, on a rank that computes on a CPU
PEAK_STEPS = 3
CONTROL_GROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class StepMemory:
    """Of a rank, in bytes: what it holds whatever the clips, and what each clip of a part adds."""

    fixed: float
    per_clip: float

    def of(self, clips: int) -> float:
        return self.fixed + clips * self.per_clip


def fit_batch(config: Config, world: World) -> Config:
    """The config with a number for optim.accumulation, the same on all ranks; as it is where it has one.

    Raises ConfigError where no number of parts leaves every rank a clip. Where even the smallest parts do not fit, as far as a dry
    run can tell, they are taken, and that is said on stderr.
    """
    if config.optim.accumulation != "auto":
        return config
    # Of ranks with unlike memory the least counts.
    fewest = torch.tensor(float(fewest_parts(config, world)), device=world.device)
    return with_parts(config, int(world.maximum(fewest).item()))


def fewest_parts(config: Config, world: World, memory_of_rank: float | None = None) -> int:
    """As this rank alone would choose, without asking the others. memory_of_rank: bytes (default: of this machine)."""
    available = memory_bytes(world) if memory_of_rank is None else memory_of_rank
    memory, limit = step_memory(config, world), (1 - MARGIN) * available - _reserved(world)
    candidates = possible_parts(config, world)
    clips_at_a_time = {parts: clips_of_rank(config, world, parts) for parts in candidates}
    if world.device.type == "cpu" and memory_of_rank is None:
        candidates = [parts for parts in candidates if clips_at_a_time[parts] <= CPU_CLIPS] or candidates[-1:]
    fits = [parts for parts in candidates if memory.of(clips_at_a_time[parts]) <= limit]
    parts = (fits or candidates[-1:])[0]
    if world.is_first:
        clips = clips_at_a_time[parts]
        text = f"optim.accumulation: auto takes {parts} parts, {clips} clips on a rank at a time, about "
        text += f"{memory.of(clips) / 1e9:.2f} of {available / 1e9:.1f} GB"
        text += "" if fits else ": more than there should be; smaller ones would leave a rank without a clip"
        print(text, file=sys.stderr, flush=True)
    return parts


def with_parts(config: Config, parts: int) -> Config:
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulation=parts))


def possible_parts(config: Config, world: World) -> list[int]:
    """The numbers of parts that divide the batch and leave every rank a clip, ascending. Raises ConfigError where there is none."""
    found, reason = [], None
    for parts in (number for number in range(1, config.optim.batch + 1) if config.optim.batch % number == 0):
        try:
            check_shares(world, build_order(config), with_parts(config, parts).optim)
        except ConfigError as error:
            reason = reason or error
        else:
            found.append(parts)
    if not found:
        assert reason is not None
        raise reason
    return found


def clips_of_rank(config: Config, world: World, parts: int) -> int:
    """Of a part of the batch, on the rank that has most of them."""
    numbers, order = np.arange(config.optim.batch // parts), build_order(config)
    return max(len(order.share(numbers, rank, world.size)) for rank in range(world.size))


def step_memory(config: Config, world: World) -> StepMemory:
    """From dry runs of one rank, with the largest clips that the run will have; what is sharded is divided."""
    sharding = config.run.sharding
    largest = max((phase.config for phase in phases(config)), key=lambda one: one.data.frames * one.data.resolution**2)
    held = []
    for clips in TRACED_CLIPS:
        optim = dataclasses.replace(largest.optim, batch=clips, accumulation=1)
        alone = dataclasses.replace(largest, optim=optim, run=dataclasses.replace(largest.run, sharding="none"))
        run = dry_run_alone(alone)
        state = run.weights + run.gradients + run.optimizer
        if sharding != "none":
            state /= world.size if sharding == "full" else world.local_size
        elif world.size > 1:
            state += run.gradients  # their copies in DDP's buckets
        held.append(state + run.activations + run.clips_waiting)
    few, many = TRACED_CLIPS
    per_clip = (held[1] - held[0]) / (many - few)
    return StepMemory(held[0] - few * per_clip, per_clip)


def memory_bytes(world: World) -> int:
    """What a rank may fill."""
    if world.device.type == "cuda":
        return torch.cuda.get_device_properties(world.device).total_memory
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = CONTROL_GROUP.read_text().strip() if CONTROL_GROUP.exists() else "max"
    return (memory if limit == "max" else min(memory, int(limit))) // world.local_size


def _reserved(world: World) -> int:
    return RESERVED_BYTES if world.device.type == "cuda" else 0


def device_memory(world: World) -> Callable[[], int] | None:
    """Tells the bytes that PyTorch holds on the GPU now; None on a CPU."""
    return partial(torch.cuda.memory_reserved, world.device) if world.device.type == "cuda" else None


def measured_peak(world: World) -> str:
    """What this process has held at most, in words."""
    if world.device.type == "cuda":
        peak = torch.cuda.max_memory_reserved(world.device)
    else:
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"memory: {peak / 1e9:.2f} of {memory_bytes(world) / 1e9:.1f} GB at most in the first {PEAK_STEPS} steps"
