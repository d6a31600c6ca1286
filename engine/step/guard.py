"""Which steps are left out: those whose loss or gradient norm is not finite, or far beyond what the run is used to.

The verdict stays on the device: it is the optimizer's `found_inf` and gates the target encoder, so nothing waits for it. The
running statistics are weighted means over the steps that were taken, in float64; they are part of the checkpoint.
"""

from __future__ import annotations

import torch
from torch import nn

# Steps that the running mean remembers; before so many steps nothing counts as an outlier.
MEMORY_STEPS = 100
# Standard deviations below this share of the mean count as this: a run that stands still is no reason to refuse rounding errors.
LEAST_DEVIATION = 0.01


class StepGuard(nn.Module):
    """Judges steps. sigmas: how many standard deviations beyond the running mean a step may be; any finite where None."""

    steps: torch.Tensor
    mean: torch.Tensor
    variance: torch.Tensor

    def __init__(self, sigmas: float | None) -> None:
        super().__init__()
        self.sigmas = sigmas
        self.register_buffer("steps", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(2, dtype=torch.float64))
        self.register_buffer("variance", torch.zeros(2, dtype=torch.float64))

    @torch.no_grad()
    def verdict(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> torch.Tensor:
        """() float32 on the device: 1 where the step is to be left out, else 0. Both arguments are scalars of all ranks."""
        values = torch.stack([loss, gradient_norm]).double()
        refused = ~torch.isfinite(values)
        if self.sigmas is not None:
            deviation = torch.maximum(self.variance.sqrt(), LEAST_DEVIATION * self.mean.abs())
            limit = self.mean + self.sigmas * deviation
            refused |= (values > limit) & (self.steps >= MEMORY_STEPS)
        return refused.any().float()

    @torch.no_grad()
    def remember(self, loss: torch.Tensor, gradient_norm: torch.Tensor, skipped: torch.Tensor) -> None:
        """Takes a step into the running statistics, unless `skipped` is not 0."""
        values = torch.stack([loss, gradient_norm]).double()
        weight = (1 / (self.steps + 1)).clamp(min=1 / MEMORY_STEPS)
        taken = skipped == 0
        difference = values - self.mean
        mean = self.mean + weight * difference
        variance = (1 - weight) * (self.variance + weight * difference**2)
        self.mean.copy_(torch.where(taken, mean, self.mean))
        self.variance.copy_(torch.where(taken, variance, self.variance))
        self.steps += taken
