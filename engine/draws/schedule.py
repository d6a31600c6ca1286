"""One schedule for learning rate, weight decay and the target encoder's momentum, and how many steps a run has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..config.settings import OptimConfig, ScheduleShape


@dataclass(frozen=True)
class Schedule:
    """The values of a step; step 0 is the first.

    Calling it gives the learning rate: linear warm-up from `start` to `peak` over `warmup_steps`, then a half cosine or a line down
    to `final` at `steps`, or `peak` until a line leads down to `final` over the last `cooldown_steps`. scale: how far schedules are
    stretched beyond `steps`, so that they are cut off before their end, as V-JEPA 1 does (its ipe_scale). ema: the target encoder's
    momentum, from first to last, along a line.
    """

    peak: float
    final: float
    warmup_steps: int
    steps: int
    shape: ScheduleShape = "cosine"
    scale: float = 1.0
    start: float = 0.0
    cooldown_steps: int = 0
    first_weight_decay: float = 0.0
    final_weight_decay: float | None = None
    ema: tuple[float, float] = (1.0, 1.0)

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return self.start + (self.peak - self.start) * (step + 1) / self.warmup_steps
        if self.shape == "constant":
            cooled = max(step + self.cooldown_steps - self.steps, 0) / max(self.cooldown_steps, 1)
            return self.peak + (self.final - self.peak) * min(cooled, 1.0)
        progress = (step - self.warmup_steps) / max(self.scale * self.steps - self.warmup_steps, 1)
        if self.shape == "linear":
            return self.peak + (self.final - self.peak) * min(progress, 1.0)
        return _half_cosine(self.peak, self.final, progress)

    def weight_decay(self, step: int) -> float:
        """Along a half cosine over all steps where a final value is given; else constant."""
        if self.final_weight_decay is None:
            return self.first_weight_decay
        return _half_cosine(self.first_weight_decay, self.final_weight_decay, step / (self.scale * self.steps))

    def momentum(self, step: int) -> float:
        first, last = self.ema
        return first + (last - first) * min(step / (self.scale * self.steps), 1.0)


def _half_cosine(first: float, last: float, progress: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def build_schedule(config: OptimConfig, steps: int) -> Schedule:
    return Schedule(
        peak=config.base_learning_rate * config.batch / 256,
        final=config.final_learning_rate,
        warmup_steps=round(config.warmup * steps),
        steps=steps,
        shape=config.schedule,
        scale=config.schedule_scale,
        start=config.start_learning_rate * config.batch / 256,
        cooldown_steps=round(config.cooldown * steps),
        first_weight_decay=config.weight_decay,
        final_weight_decay=config.final_weight_decay,
        ema=config.ema,
    )


def count_steps(config: OptimConfig, num_spans: int) -> int:
    return config.steps or max(1, round((config.epochs or 0) * num_spans / config.batch))
