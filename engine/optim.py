"""AdamW and its schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from .config import OptimConfig


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up from 0 to `peak` over `warmup_steps`, then a half cosine down to `final` at `steps`. Step 0 is the first.

    ema: momentum of a target encoder, at the first step and, after a linear rise, at `steps`.
    """

    peak: float
    final: float
    warmup_steps: int
    steps: int
    ema: tuple[float, float] = (1.0, 1.0)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def momentum(self, step: int) -> float:
        return self.ema[0] + (self.ema[1] - self.ema[0]) * step / self.steps


def build_schedule(config: OptimConfig, steps: int) -> Schedule:
    peak = config.base_learning_rate * config.batch / 256
    return Schedule(peak, config.final_learning_rate, round(config.warmup * steps), steps, config.ema)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Fused AdamW; vectors (biases, norms, the mask token) are not decayed, as in VideoMAE."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)
