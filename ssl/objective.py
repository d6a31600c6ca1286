"""What a run trains: an encoder inside an objective. The engine knows no more than this.

Shapes: B clips, T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from .encoder import VideoEncoder


class ObjectiveOutput(NamedTuple):
    """loss: scalar, the mean over clips of each clip's mean, times loss_scale. clip_loss: (B,), detached and unscaled.
    prediction: what was predicted at the masked places, in the objective's own shape."""

    loss: torch.Tensor
    clip_loss: torch.Tensor
    prediction: torch.Tensor


class MaskSource(Protocol):
    """Draws the masks that an objective asks for."""

    def __call__(self, seed: int, draws: ArrayLike, views: ArrayLike, device: torch.device | str = "cpu") -> Any:
        """The masks of these clips, tensors on `device`: a pure function of its arguments."""
        ...

    def ahead(
        self, seed: int, batches: Iterable[NDArray[np.int64]], device: torch.device
    ) -> Iterator[NDArray[np.int64]]:
        """`batches` (clip numbers, view 0), unchanged. Their masks may be drawn in the background from here on."""
        ...


class Objective(nn.Module):
    """Base of what can be pretrained. What takes gradients has requires_grad; a target encoder has not."""

    encoder: VideoEncoder

    def __init__(self) -> None:
        super().__init__()
        # What the last forward pass left behind, by name, on the device; who replays a pass puts its own back.
        self.observed: dict[str, torch.Tensor] = {}

    def forward(self, frames: torch.Tensor, masks: Any, loss_scale: float = 1.0) -> ObjectiveOutput:
        """frames: (B, T, H, W, 3) uint8. masks: of the objective's MaskSource. loss_scale: factor of the loss and its gradient."""
        raise NotImplementedError

    def update_target(self, momentum: float | torch.Tensor, skip: torch.Tensor | None = None) -> None:
        """Moves a target encoder towards the encoder, target = momentum target + (1 - momentum) encoder; without one, nothing.

        momentum: 0 .. 1, a number or () float32 on the device. skip: () float32 on the device; where it is not 0 the target stays,
        without a host sync.
        """

    def frozen_models(self) -> Iterable[nn.Module]:
        """Models beside the objective's own, whose weights never change."""
        return ()

    def signals(self) -> dict[str, torch.Tensor]:
        """Scalars on the device that say how the last forward pass went; read when metrics are."""
        return {}
