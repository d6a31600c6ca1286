"""What operators can be asked for, apart from the operators themselves, which need PyTorch: settings are read without it."""

from __future__ import annotations

from typing import Literal, get_args

Normalization = Literal["channel", "patch", "none"]  # of the pixels that are predicted, see `pixel_loss`
Distance = Literal["l1", "smooth_l1", "l2", "half_l2"]  # of predicted features to their targets, see `feature_loss`
# Read out here: what torch.compile of PyTorch 2.6 traces cannot call get_args.
NORMALIZATIONS, DISTANCES = get_args(Normalization), get_args(Distance)
