"""The phases of a run whose clips grow on the way (data.sizes), and whether its clips divide into patches.

A phase begins with a step, hence with a clip's number. What a clip is, and its mask, follow from its number alone, so a run resumed
in any phase does what it would have done.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ..config.settings import Config, ConfigError, DataConfig


@dataclass(frozen=True)
class Phase:
    """first_clip: the number of its first clip. config: the run's, with this phase's clips."""

    first_clip: int
    config: Config


def phases(config: Config) -> list[Phase]:
    """The phases of a run; just one where data.sizes is empty. Raises ConfigError where a phase's clips are none, or do not divide
    into patches."""
    found = [Phase(0, _with(config, sizes=()))]
    clip_grid(found[0].config)
    for number, size in enumerate(config.data.sizes):
        changes = {key: value for key, value in vars(size).items() if value is not None and key != "from_step"}
        # Stride and frame rate exclude each other: naming one takes the other back.
        if "stride" in changes:
            changes.setdefault("sample_fps", None)
        elif "sample_fps" in changes:
            changes["stride"] = None
        try:
            found.append(Phase(size.from_step * config.optim.batch, _with(found[-1].config, **changes)))
            clip_grid(found[-1].config)
        except ConfigError as error:
            raise ConfigError(f"data.sizes[{number}]: {error}") from error
    return found


def _with(config: Config, **data: Any) -> Config:
    fields = {item.name: getattr(config.data, item.name) for item in dataclasses.fields(DataConfig)}
    return dataclasses.replace(config, data=DataConfig(**{**fields, **data}))


def phase_at(found: list[Phase], number: int) -> int:
    """Which phase the clip `number` belongs to."""
    return sum(phase.first_clip <= number for phase in found) - 1


def clip_grid(config: Config) -> tuple[int, int, int]:
    """How many patches a clip has in time, height and width. Raises ConfigError where it does not divide into them."""
    data, model = config.data, config.model
    if data.frames % model.tubelet or data.resolution % model.patch:
        raise ConfigError(
            f"data.frames, data.resolution: {data.frames} frames at {data.resolution} px are not divisible into "
            f"{model.tubelet} x {model.patch} x {model.patch} patches; give multiples of model.tubelet and model.patch"
        )
    return data.frames // model.tubelet, data.resolution // model.patch, data.resolution // model.patch
