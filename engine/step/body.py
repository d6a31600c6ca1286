"""What the device computes in a step, from tensors alone: forward, backward, norm, guard, optimizer, target encoder.

Nothing in it looks at a value on the host: what a schedule says stands in scalars on the device where the optimizer can read them
there, and the verdict over a step is a tensor. So the same calls are launched one by one, or captured and replayed (`graphs`).

Shapes: B clips of the step over all ranks, b of a part on this rank.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from ...ssl.objective import MaskSource, Objective
from ...ssl.weight_copies import WeightCopies
from ..config.settings import Config, ConfigError, RunConfig
from ..draws.samplers import build_order
from ..draws.schedule import Schedule
from ..ranks.compiler import is_compilers
from ..ranks.distributed import World, gradients_exchanged, leave_uncompiled, whole
from ..record.profiler import stage
from ..record.readback import StepSums
from .build import autocast
from .guard import StepGuard
from .optim import set_schedule, step_unless


def why_no_copies(run: RunConfig) -> str | None:
    """What stands against copies of weights; None where nothing does. Raises ConfigError where run.weight_copies is true."""
    if run.weight_copies is False:
        return "run.weight_copies is false"
    found = None
    if run.precision != "bfloat16":
        found = f"run.precision={run.precision} casts no weights"
    elif run.sharding != "none":
        found = f"run.sharding={run.sharding} gathers weights in bfloat16 itself"
    if found and run.weight_copies is True:
        raise ConfigError(f"run.weight_copies: true, but {found}; set it to auto or false")
    return found


class StepBody:
    """Parts of a batch one after another, then the update.

    sums: of the step under way, B clip losses among them. keeps_gradients: they stay where they are from step to step, set to 0,
    as what is replayed has to find them; else they are given back.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        objective: Objective,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        guard: StepGuard,
        keeps_gradients: bool = False,
    ) -> None:
        self.config, self.world, self.objective, self.model = config, world, objective, model
        self.optimizer, self.guard, self.keeps_gradients = optimizer, guard, keeps_gradients
        self.sums = StepSums.zeros(config.optim.batch, world.size, world.device)
        self.momentum = torch.ones((), dtype=torch.float32, device=world.device)
        self.copies = None
        if why_no_copies(config.run) is None:
            for frozen in objective.frozen_models():
                WeightCopies(frozen)
            self.copies = WeightCopies(objective)
        self._has_begun = False
        self._is_proved = False  # compiled blocks have gone there and back once

    def begin(self, schedule: Schedule, step: int) -> None:
        """Puts in what the schedule says of this step."""
        self.sums.values.zero_()
        set_schedule(self.optimizer, schedule, step)
        self.momentum.fill_(schedule.momentum(step))
        if self.copies is not None and not self._has_begun:  # weights may have been restored meanwhile
            self.copies.write()
        self._has_begun = True

    def part(
        self,
        frames: torch.Tensor,
        masks: Any,
        places: torch.Tensor,
        is_last: bool,
        before_backward: Callable[[], None] = lambda: None,
    ) -> None:
        """Adds a part's gradients and losses. frames: (b, T, H, W, 3) uint8. places: (b,) int64, of its clips in the batch.

        is_last: of the step's parts. before_backward: what the host has to do then, where the part is launched one by one.
        """
        try:
            self._part(frames, masks, places, is_last, before_backward)
        except Exception as error:
            if self._is_proved or self.config.run.compile != "auto" or not is_compilers(error):
                raise
            first = str(error).partition("\n")[0]
            print(f"run.compile: off, compiling a block failed: {first}", file=sys.stderr, flush=True)
            leave_uncompiled(self.model)
            self.optimizer.zero_grad(set_to_none=True)  # of what the backward pass had come to
            self._part(frames, masks, places, is_last, before_backward)
        self._is_proved = True

    def _part(
        self,
        frames: torch.Tensor,
        masks: Any,
        places: torch.Tensor,
        is_last: bool,
        before_backward: Callable[[], None],
    ) -> None:
        size = self.world.size
        with gradients_exchanged(self.model, is_last):
            with autocast(self.config, self.world.device), stage("forward"):
                # The exchange takes the mean over ranks: each weighs by its share, whether or not the shares are equal.
                output = self.model(frames, masks, len(frames) * size / self.config.optim.batch)
            before_backward()
            with stage("backward"):
                output.loss.backward()
        self.sums.add(places, output.loss.detach() / size, output.clip_loss)

    def update(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Judges the step by its gradients and the sums of all ranks, and takes it or leaves it out.

        Returns the gradient norm and whether the step was left out, scalars on the device.
        """
        with stage("guard"):
            gradient_norm = whole(clipped_norm(self.objective, self.config.optim.clip_gradient))
            skip = self.world.maximum(self.guard.verdict(self.sums.loss, gradient_norm))
            self.guard.remember(self.sums.loss, gradient_norm, skip)
        with stage("optimizer"):
            step_unless(self.optimizer, skip)
            self.optimizer.zero_grad(set_to_none=not self.keeps_gradients)
        with stage("ema"):
            self.objective.update_target(self.momentum, skip)
        if self.copies is not None:
            with stage("copies"):
                self.copies.write()
        return gradient_norm, skip


def pass_forward(config: Config, world: World, objective: Objective, masks: MaskSource) -> None:
    """Sends a part of this rank's first batch through the model, black clips of it, to see its shapes. No activation is kept."""
    data = config.data
    numbers = build_order(config).share(np.arange(config.optim.clips_at_once), world.rank, world.size)
    sizes = (len(numbers), data.frames, data.resolution, data.resolution, 3)
    frames = torch.zeros(sizes, dtype=torch.uint8, device=world.device)
    drawn = masks(config.run.seed, numbers, 0, world.device)
    with (
        autocast(config, world.device),
        torch.autograd.graph.saved_tensors_hooks(lambda _: None, lambda kept: kept),
    ):
        objective(frames, drawn)


def clipped_norm(objective: Objective, largest: float | None) -> torch.Tensor:
    """The norm of all gradients, which are scaled down to norm `largest`; None leaves them, and spares a pass over them."""
    gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if largest is not None:
        nn.utils.clip_grads_with_norm_(objective.parameters(), largest, norm)
    return norm
