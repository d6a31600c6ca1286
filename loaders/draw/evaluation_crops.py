"""The squares at which a clip is looked at in evaluation: at the short side, evenly spaced along the long one."""

from __future__ import annotations

from dataclasses import dataclass

from .augment import Box, Crop, even


@dataclass(frozen=True)
class EvaluationCrops:
    """Squares as large as the picture allows, never mirrored; view v takes square v.

    crops: how many. 1: the centre. 3: left, centre, right, or top, centre, bottom of an upright picture. Raises ValueError.
    """

    crops: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.crops <= 64:
            raise ValueError(f"crops must lie in 1 .. 64, got {self.crops}")

    def crop(self, content: Box, *, seed: int = 0, draw: int = 0, view: int = 0) -> Crop:
        """Square `view`, 0 .. crops - 1, of `content`; the same for every seed and draw. Raises ValueError on another view."""
        if not 0 <= view < self.crops:
            raise ValueError(f"view {view} is not in 0 .. {self.crops - 1}; set ClipOrder(views_per_span={self.crops})")
        side = even(min(content.width, content.height))
        share = view / (self.crops - 1) if self.crops > 1 else 0.5
        left, top = even(share * (content.width - side)), even(share * (content.height - side))
        return Crop(Box(content.left + left, content.top + top, side, side), flip=False)
