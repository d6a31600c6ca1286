"""What operators can be asked for, apart from the operators themselves, which need PyTorch: settings are read without it."""

from __future__ import annotations

from typing import Literal

Normalization = Literal["channel", "patch", "none"]  # of the pixels that are predicted, see `pixel_loss`
Distance = Literal["l1", "smooth_l1", "l2"]  # of predicted features to their targets, see `feature_loss`
