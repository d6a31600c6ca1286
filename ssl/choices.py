"""What models can be asked to be: sizes, positions and kinds of block masks, apart from the models, which need PyTorch.

Shapes: K blocks a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Positions = Literal["flat", "axes", "rope"]
Kind = Literal["videomae", "vjepa1", "vjepa2", "image"]  # whose layout published weights have
MAX_KINDS = 16  # kinds of masks share the 16 bits of a view: so many kinds, and views below 4096


@dataclass(frozen=True)
class Size:
    """One named transformer: encoder width, depth and heads, and VideoMAE's decoder for it."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


SIZES = {
    "tiny": Size(192, 12, 3, 96, 3),
    "small": Size(384, 12, 6, 192, 3),
    "base": Size(768, 12, 12, 384, 6),
    "large": Size(1024, 24, 16, 512, 8),
    "huge": Size(1280, 32, 16, 640, 8),
}


@dataclass(frozen=True)
class BlockRecipe:
    """One kind of mask.

    blocks: how many, K. scale: least and largest share of the frame's cells that a block covers. aspect: least and largest
    height / width. temporal_scale: least and largest share of the time steps that it spans.

    Raises ValueError on values out of range.
    """

    blocks: int
    scale: tuple[float, float]
    aspect: tuple[float, float] = (0.75, 1.5)
    temporal_scale: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise ValueError(f"a mask needs at least one block, got {self.blocks}")
        for name in ("scale", "temporal_scale"):
            least, largest = getattr(self, name)
            if not 0 < least <= largest <= 1:
                raise ValueError(
                    f"{name} must be [least, largest] with 0 < least <= largest <= 1, got {[least, largest]}"
                )
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise ValueError(f"aspect must be [least, largest] with 0 < least <= largest, got {list(self.aspect)}")


SHORT_RANGE = BlockRecipe(8, (0.15, 0.15))
LONG_RANGE = BlockRecipe(2, (0.7, 0.7))
