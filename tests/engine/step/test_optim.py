"""Schedules, against the formulas of the recipes that they come from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trocar.engine.config.settings import ConfigError, OptimConfig
from trocar.engine.draws.schedule import Schedule, build_schedule
from trocar.engine.step.optim import build_optimizer, set_schedule


def test_vjepa_schedules_are_stretched_and_cut_off() -> None:
    """V-JEPA 1: all schedules are laid out for 1.25 times the steps."""
    steps, stretched = 100, 125
    config = OptimConfig(
        batch=256, steps=steps, base_learning_rate=6.25e-4, start_learning_rate=2e-4, final_learning_rate=1e-6, warmup=0.1,
        schedule_scale=1.25, weight_decay=0.04, final_weight_decay=0.4, ema=(0.998, 1.0),
    )  # fmt: skip
    schedule = build_schedule(config, steps)
    for step in (10, 50, 99):
        cosine = 0.5 * (1 + math.cos(math.pi * (step - 10) / (stretched - 10)))
        assert schedule(step) == pytest.approx(1e-6 + (6.25e-4 - 1e-6) * cosine)
        assert schedule.weight_decay(step) == pytest.approx(
            0.4 + (0.04 - 0.4) * 0.5 * (1 + math.cos(math.pi * step / stretched))
        )
        assert schedule.momentum(step) == pytest.approx(0.998 + 0.002 * step / stretched)
    assert schedule(0) == pytest.approx(2e-4 + (6.25e-4 - 2e-4) / 10)
    assert schedule(9) == pytest.approx(6.25e-4)
    assert schedule(99) > 2e-5, "cut off before its end"


def test_constant_and_linear() -> None:
    constant = Schedule(peak=2.0, final=0.5, warmup_steps=4, steps=20, shape="constant", first_weight_decay=0.04)
    assert [constant(step) for step in (0, 3, 4, 19)] == [0.5, 2.0, 2.0, 2.0]
    assert [constant.weight_decay(step) for step in (0, 19)] == [0.04, 0.04]
    linear = Schedule(peak=2.0, final=0.0, warmup_steps=0, steps=20, shape="linear")
    assert [linear(step) for step in (0, 10, 20, 40)] == pytest.approx([2.0, 1.0, 0.0, 0.0])


def test_what_is_decayed_and_what_is_trained() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    model[1].requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(steps=1))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1]
    schedule = Schedule(1.0, 0.0, 0, 10, first_weight_decay=0.1, final_weight_decay=0.3)
    set_schedule(optimizer, schedule, 5)
    decayed, vectors = optimizer.param_groups
    assert decayed["weight_decay"] == pytest.approx(0.2)
    assert (vectors["weight_decay"], vectors["lr"]) == (0.0, decayed["lr"])
    assert isinstance(optimizer, torch.optim.AdamW)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"schedule_scale": 0.5}, r"optim\.schedule_scale: 0\.5"),
        ({"ema": (0.9, 1.5)}, r"optim\.ema"),
        ({"outlier_sigmas": 0.0}, r"optim\.outlier_sigmas"),
        ({"skip_budget": -1}, r"optim\.skip_budget"),
        ({"final_weight_decay": -0.1}, r"optim\.final_weight_decay"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        OptimConfig(steps=1, **settings)
