"""What a cell of `trocar bench workflow` leaves beside its weights, so that `trocar phases` can use them: CELL/predictor.json.

Shapes: D values a vector, K classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engine.config.error import ConfigError
from ...engine.config.file import apply_settings
from ..downstream.predictor import PREDICTOR, WEIGHTS
from .choices import FeatureChoices, HeadChoices


@dataclass(frozen=True)
class PhasePredictor:
    """What a cell leaves for `trocar phases`. model, options: the encoder, as of `load_backbone`. frames .. resolution: of its
    clips. encoder: digest of its weights. values: D. classes: K names."""

    model: str
    options: dict[str, Any]
    frames: int
    stride: int | None
    sample_fps: float | None
    resolution: int
    encoder: str
    values: int
    classes: list[str]
    several: bool
    features: dict[str, Any]
    head: dict[str, Any]

    def head_choices(self) -> HeadChoices:
        return apply_settings(HeadChoices, self.head, (), "head.")

    def feature_choices(self) -> FeatureChoices:
        return apply_settings(FeatureChoices, self.features, (), "features.")


def read_phase_predictor(folder: Path) -> PhasePredictor:
    """Raises ConfigError where `folder` is no cell that `trocar bench workflow` has finished."""
    path = folder / PREDICTOR
    if not path.is_file() or not (folder / WEIGHTS).is_file():
        raise ConfigError(
            f"{folder}: no trained head there (no {PREDICTOR} with {WEIGHTS}); name OUT/cells/DATASET/ENCODER/HEAD/seed0 of a "
            "`trocar bench workflow`"
        )
    try:
        return PhasePredictor(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{path}: not of a workflow cell ({error!r}); `trocar predict` takes those of `trocar finetune`"
        ) from error
