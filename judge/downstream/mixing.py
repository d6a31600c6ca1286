"""What full fine-tuning does to its clips: RandAugment, random erasing, mixup and cutmix, on uint8 as the encoder takes it.

All frames of a clip are treated alike. The operations are torchvision's; they draw from PyTorch's generator, which the training
seeds for every step.

Shapes: B clips, T frames, R x R pixels, K classes.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from .protocol import MAGNITUDES, Protocol

STEPS_PER_MAGNITUDE = 3  # torchvision's scale of 31 steps where timm's recipes, "rand-m7-n4", have 0 .. 10


class Mixing:
    """Applies what a protocol asks for; does nothing where it asks for nothing."""

    def __init__(self, protocol: Protocol, classes: int, *, several: bool) -> None:
        changes: list[torch.nn.Module] = []
        if protocol.random_augment:
            operations, magnitude = protocol.random_augment
            bins = MAGNITUDES * STEPS_PER_MAGNITUDE + 1
            changes.append(v2.RandAugment(operations, magnitude * STEPS_PER_MAGNITUDE, num_magnitude_bins=bins))
        if protocol.erasing:
            changes.append(v2.RandomErasing(protocol.erasing))
        self._changes = v2.Compose(changes) if changes else None
        # Of several labels there is no share of one that another could have.
        mixed = [] if several else [kind(alpha=alpha, num_classes=classes) for kind, alpha in self._kinds(protocol)]
        self._mix = v2.RandomChoice(mixed) if mixed else None

    @staticmethod
    def _kinds(protocol: Protocol) -> list[tuple[type[v2.MixUp] | type[v2.CutMix], float]]:
        pairs: list[tuple[type[v2.MixUp] | type[v2.CutMix], float]] = [
            (v2.MixUp, protocol.mixup),
            (v2.CutMix, protocol.cutmix),
        ]
        return [(kind, alpha) for kind, alpha in pairs if alpha > 0]

    def __call__(self, frames: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """frames: (B, T, R, R, 3) uint8. wanted: (B,) class numbers, or (B, K) bool. Returns both, the latter as (B, K)
        shares where clips were mixed."""
        if self._changes is not None:
            # One clip at a time: leading axes are treated alike.
            changed = [self._changes(clip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for clip in frames]
            frames = torch.stack(changed)
        if self._mix is not None and len(frames) > 1:
            pictures = frames.permute(0, 1, 4, 2, 3).flatten(1, 2).float()
            pictures, wanted = self._mix(pictures, wanted)
            mixed = pictures.unflatten(1, (frames.shape[1], 3)).permute(0, 1, 3, 4, 2)
            frames = mixed.round().clamp(0, 255).to(torch.uint8)
        return frames.contiguous(), wanted
