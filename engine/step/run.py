"""What a step of training needs, built from a config on each rank."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from ...ssl.objective import MaskSource, Objective
from ..config.settings import Config
from ..draws.schedule import Schedule, build_schedule
from ..inputs.checkpoints import newest_step
from ..ranks.distributed import World, distribute
from ..ranks.housekeeping import pin_to_cores
from ..ranks.stop import StopRequest, StopVote
from ..ranks.watch import RankWatch
from ..record.device_time import DeviceTime
from ..record.energy import EnergyMeter
from ..record.profiler import name_modules
from ..weights.initial import initialize_encoder, record_init
from .attention import Choice, choose_attention
from .body import StepBody
from .build import build_model
from .fp8 import convert_linear_layers
from .graphs import GraphedStep, why_no_graphs
from .guard import StepGuard
from .ignored import IgnoredTargets
from .optim import build_optimizer, read_on_device


@dataclass(frozen=True)
class Run:
    """What a step needs. objective: the model itself; model: the same, as it is called in training; body: what its device does."""

    config: Config
    world: World
    watch: RankWatch
    stop: StopRequest
    vote: StopVote
    schedule: Schedule
    objective: Objective
    model: nn.Module
    masks: MaskSource
    optimizer: torch.optim.Optimizer
    guard: StepGuard
    body: StepBody | GraphedStep
    attention: Choice | None = None
    ignored: IgnoredTargets | None = None
    device_time: DeviceTime = field(default_factory=DeviceTime)
    energy: EnergyMeter = field(default_factory=EnergyMeter)


def give_first_weights(config: Config, world: World, objective: Objective) -> None:
    """Gives a run that is new the weights of `model.init`, and tells; one that goes on has weights of its own."""
    if not world.from_first(newest_step(Path(config.run.dir))):
        account = initialize_encoder(config, objective)
        if account and world.is_first:
            print(account, file=sys.stderr)
            record_init(config, account)


def claim_cores(config: Config, world: World) -> None:
    """The cores and threads of this rank, as the config has them."""
    if config.run.pin_cores:
        pin_to_cores(world)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)


def build_run(
    config: Config,
    world: World,
    watch: RankWatch,
    vote: StopVote,
    steps: int,
    begin: Callable[[Config, World, Objective], None] = lambda config, world, objective: None,
) -> Run:
    """What a step needs, on this rank. steps: of the schedule. begin: gives the model other weights than random ones."""
    torch.manual_seed(config.run.seed)
    objective, masks = build_model(config)
    begin(config, world, objective)
    objective.to(world.device, torch.float64 if config.run.precision == "float64" else None)
    name_modules(objective)
    convert_linear_layers(config, world, objective, masks)
    attention = choose_attention(config, world, objective, masks)
    model = distribute(objective, config.run, world)
    optimizer = build_optimizer(objective, config.optim)
    guard = StepGuard(config.optim.outlier_sigmas).to(world.device)
    schedule = build_schedule(config.optim, steps)
    body = build_body(config, world, objective, model, optimizer, guard)
    made = (schedule, objective, model, masks, optimizer, guard, body)
    return Run(config, world, watch, vote.request, vote, *made, attention=attention)


def build_body(
    config: Config,
    world: World,
    objective: Objective,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    guard: StepGuard,
) -> StepBody | GraphedStep:
    """The step's body, replayed as CUDA graphs where run.cuda_graphs has it so; where a GPU goes without, the reason is told."""
    reason = why_no_graphs(config, world)
    body = StepBody(config, world, objective, model, optimizer, guard, keeps_gradients=reason is None)
    if reason is None:
        read_on_device(optimizer, world.device)
        return GraphedStep(body, may_fall_back=config.run.cuda_graphs == "auto")
    if world.is_first and world.device.type == "cuda" and config.run.cuda_graphs == "auto":
        print(f"run.cuda_graphs: off, {reason}", file=sys.stderr, flush=True)
    return body
