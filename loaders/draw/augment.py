"""Random-resized crop and horizontal flip, drawn once per clip and applied alike by every loader.

Coordinates are those of the upright picture (after rotation). All are even, so that a crop never splits a chroma sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ...kernels.philox import Stream, random_words, unit

ATTEMPTS = 10
MOSTLY_ENOUGH = 8  # random numbers, for two of them
Resize = Literal["fast", "exact"]  # how the crop is scaled, see `resize`
# Counter-clockwise degrees to the directions in which FFmpeg's transpose filter turns a picture by them.
TURNS = {0: (), 90: ("cclock",), 180: ("clock", "clock"), 270: ("clock",)}


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels of the upright picture."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True)
class Crop:
    """The rectangle to cut out, in pixels of the upright picture, and whether to mirror it left to right."""

    box: Box
    flip: bool

    def unmirrored(self, width: int) -> Crop:
        """The same crop of the same picture, `width` pixels wide, as it was before it was mirrored left to right."""
        box = self.box
        return Crop(Box(width - box.left - box.width, box.top, box.width, box.height), not self.flip)


@dataclass(frozen=True)
class CropRecipe:
    """What crops are drawn from.

    scale: least and largest share of the picture's area, 0 < least <= largest <= 1. ratio: least and largest width / height.
    flip_probability: 0 .. 1. (1, 1) for both with flip 0 takes the largest centred square, always. Raises ValueError.
    """

    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip_probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop scale must hold 0 < least <= largest <= 1, got {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop ratio must hold 0 < least <= largest, got {self.ratio}")
        if not 0 <= self.flip_probability <= 1:
            raise ValueError(f"flip probability must lie in 0 .. 1, got {self.flip_probability}")

    def crop(self, content: Box, *, seed: int, draw: int, view: int = 0) -> Crop:
        """The crop of this (seed, draw, view) inside `content`.

        Area and log ratio are uniform, as in Inception's random-resized crop (Szegedy et al. 2015); after ten shapes that do not
        fit, the largest centred one of an allowed ratio.
        """
        numbers = unit(random_words(seed, [draw], view, Stream.CROP, MOSTLY_ENOUGH))[0]
        flip = bool(numbers[0] < self.flip_probability)
        for attempt in range(ATTEMPTS):
            if 5 + 2 * attempt > len(numbers):
                numbers = unit(random_words(seed, [draw], view, Stream.CROP, 3 + 2 * ATTEMPTS))[0]
            share, shape = numbers[3 + 2 * attempt : 5 + 2 * attempt]
            area = content.width * content.height * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            ratio = self.ratio[0] * (self.ratio[1] / self.ratio[0]) ** shape
            width, height = even(math.sqrt(area * ratio)), even(math.sqrt(area / ratio))
            if 0 < width <= content.width and 0 < height <= content.height:
                break
        else:
            ratio = min(max(content.width / content.height, self.ratio[0]), self.ratio[1])
            width = min(even(content.width), even(content.height * ratio))
            height = min(even(content.height), even(content.width / ratio))
            numbers[1:3] = 0.5
        left = content.left + even(numbers[1] * (content.width - width))
        top = content.top + even(numbers[2] * (content.height - height))
        return Crop(Box(left, top, width, height), flip)


def with_square_pixels(box: Box, pixel_aspect: float) -> Box:
    """A rectangle of a picture whose pixels are `pixel_aspect` times as wide as high, in the square pixels a player shows it with:
    stretched, never shrunk."""
    across, down = max(pixel_aspect, 1.0), max(1 / pixel_aspect, 1.0)
    return Box(round(box.left * across), round(box.top * down), int(box.width * across), int(box.height * down))


def with_stored_pixels(box: Box, content: Box, pixel_aspect: float) -> Box:
    """The rectangle `box` of the square pixels of `with_square_pixels(content, pixel_aspect)` in the pixels of `content`; all of
    these is all of those."""
    shown = with_square_pixels(content, pixel_aspect)
    return Box(
        content.left + even((box.left - shown.left) * content.width // shown.width),
        content.top + even((box.top - shown.top) * content.height // shown.height),
        max(even(box.width * content.width // shown.width), min(box.width, 2)),
        max(even(box.height * content.height // shown.height), min(box.height, 2)),
    )


def even(value: float) -> int:
    """The largest even integer that is not above `value`."""
    return 2 * math.floor(value / 2)
