"""What one decoded picture says of itself.

Shapes: H W = 144 x 192 pixels of a *sample*, 48 x 64 of a *thumbnail*, whatever the video's own shape; 6 x 8 blocks of 8 x 8
pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from numpy.typing import NDArray

HEIGHT, WIDTH = 144, 192
THUMBNAIL_HEIGHT, THUMBNAIL_WIDTH = 48, 64
BLOCK = 8
BLANK_DEVIATION, BLANK_RANGE = 3.0, 14.0  # of cells of a 12 x 16 mean picture, in luma
TEXTURED = 2.5  # deviation of luma in a block that has something to compare
ALIKE = 0.6  # correlation of two blocks above which they show the same
FEWEST_BLOCKS = 4
LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Sample:
    """frame: its number. pixels: (H, W, 3) uint8, upright. thumbnail: (48, 64) float32 luma."""

    frame: int
    pixels: Picture
    thumbnail: NDArray[np.float32]


class Pictures:
    """Makes samples and thumbnails of one video's decoded frames; turns them upright as its display matrix says."""

    def __init__(self, rotation: int = 0, mirrored: bool = False) -> None:
        self._turn, self._mirrored = rotation // 90, mirrored
        self._scaler = VideoReformatter()

    def sample(self, number: int, frame: VideoFrame) -> Sample:
        pixels = self._scaled(frame, WIDTH, HEIGHT, "rgb24")
        return Sample(number, pixels, thumbnail_of(pixels))

    def thumbnail(self, frame: VideoFrame) -> NDArray[np.float32]:
        """(48, 64) float32 luma, 0 .. 255."""
        return thumbnail_of(self._scaled(frame, WIDTH, HEIGHT, "gray"))

    def small(self, frame: VideoFrame, width: int, height: int) -> Picture:
        """(height, width, 3) uint8, RGB, upright."""
        return self._scaled(frame, width, height, "rgb24")

    def _scaled(self, frame: VideoFrame, width: int, height: int, format_name: str) -> Picture:
        if self._turn % 2:
            width, height = height, width
        scaled = self._scaler.reformat(frame, width, height, format_name, interpolation=Interpolation.AREA)
        picture: Picture = np.rot90(scaled.to_ndarray(), self._turn)  # pyright: ignore[reportAssignmentType]: of 8 bits
        return np.ascontiguousarray(picture[:, ::-1] if self._mirrored else picture)


def thumbnail_of(picture: Picture) -> NDArray[np.float32]:
    """Of a picture (H, W) or (H, W, 3)."""
    luma = picture @ LUMA if picture.ndim == 3 else picture
    return pooled(luma, HEIGHT // THUMBNAIL_HEIGHT)


def pooled(picture: NDArray, factor: int) -> NDArray[np.float32]:
    """Means of squares of `factor` pixels; rows are added first, as whole ones: ten times as fast as `mean` over both axes."""
    height, width = picture.shape[0] // factor, picture.shape[1] // factor
    squares = picture.reshape(height, factor, width, factor, *picture.shape[2:])
    rows = np.add.reduce([squares[:, row] for row in range(factor)], axis=0, dtype=np.float32)
    return np.add.reduce([rows[:, :, column] for column in range(factor)], axis=0) / np.float32(factor**2)


def is_blank(thumbnail: NDArray[np.float32]) -> bool:
    """Whether there is nothing to see: noise averages out in cells of 4 x 4 pixels of a thumbnail."""
    cells = pooled(thumbnail, 4)
    low, high = np.percentile(cells, (1, 99))
    return bool(cells.std() < BLANK_DEVIATION and high - low < BLANK_RANGE)


def changed_share(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """The share of blocks, 0 .. 1, that show something else in the second thumbnail than in the first.

    Blocks are compared by their correlation, at shifts of up to a pixel, which light that goes up and down leaves as it is; those
    without texture in either do not count, and where there are fewer than four others nothing has changed.
    """
    one, deviation = _blocks(first)
    textured = deviation > TEXTURED
    best = np.full(one.shape[0], -1.0, np.float32)
    for down, right in ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)):
        two, other = _blocks(np.roll(second, (down, right), (0, 1)))
        if not (down or right):
            textured |= other > TEXTURED
        product = (one * two).mean(axis=1) / (np.maximum(deviation, 1.0) * np.maximum(other, 1.0))
        best = np.maximum(best, product)
    count = int(textured.sum())
    return float((best[textured] < ALIKE).sum() / count) if count >= FEWEST_BLOCKS else 0.0


def lasting_change(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """`changed_share` of thumbnails some time apart, at the shift of the whole picture that fits best."""
    spectra = [np.fft.rfft2(picture - picture.mean()) for picture in (first, second)]
    product = spectra[0] * spectra[1].conj()
    peaks = np.fft.irfft2(product / np.maximum(np.abs(product), 1e-6), s=first.shape)
    down, right = np.unravel_index(int(peaks.argmax()), peaks.shape)
    shifted = np.roll(second, (int(down), int(right)), (0, 1))
    return min(changed_share(first, second), changed_share(first, shifted))


def _blocks(thumbnail: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(blocks, 64) values less their mean, (blocks,) deviations."""
    rows, columns = THUMBNAIL_HEIGHT // BLOCK, THUMBNAIL_WIDTH // BLOCK
    blocks = thumbnail.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    blocks = blocks - blocks.mean(axis=1, keepdims=True)
    return blocks, np.sqrt((blocks**2).mean(axis=1))


def colours(pixels: Picture) -> NDArray[np.float32]:
    """(64,) shares of the picture's colours, 4 levels of each channel, as square roots: motion leaves them as they are."""
    small = pooled(pixels, 3).astype(np.uint8) >> 6
    joint = (small[..., 0] * 4 + small[..., 1]) * 4 + small[..., 2]
    counts = np.bincount(joint.ravel(), minlength=64)
    return np.sqrt(counts / joint.size).astype(np.float32)


def colour_distance(first: Picture, second: Picture) -> float:
    """Hellinger's distance of the colours of two samples, 0 .. 1."""
    return float(np.sqrt(max(0.0, 1.0 - float((colours(first) * colours(second)).sum()))))


def blur(pixels: Picture, covered: NDArray[np.bool_]) -> float:
    """0 (sharp) .. 1 of what is not covered (H, W) by text and logos, without a reference: how little of the change from pixel
    to pixel another blurring takes away (Crete, Dolmiere, Ladret and Nicolas 2007, with a filter of 9 pixels); the larger of
    both directions."""
    luma = pixels @ LUMA
    found = []
    for picture, left_out in ((luma, covered), (luma.T, covered.T)):
        padded = np.pad(picture, ((0, 0), (4, 4)), mode="edge")
        sums = np.cumsum(np.pad(padded, ((0, 0), (1, 0))), axis=1, dtype=np.float64)
        blurred = (sums[:, 9:] - sums[:, :-9]) / 9
        own, after = np.abs(np.diff(picture, axis=1)), np.abs(np.diff(blurred, axis=1))
        counted = ~(left_out[:, 1:] | left_out[:, :-1])
        own, after = own[counted], after[counted]
        total = float(own.sum())
        found.append(1.0 - float(np.maximum(own - after, 0).sum()) / total if total > 0 else 1.0)
    return max(found)


def brightness_and_saturation(pixels: Picture) -> tuple[float, float]:
    """Means over the picture, each 0 .. 1; saturation is HSV's, of pixels that are lit."""
    small = pooled(pixels, 3) / 255
    most, least = small.max(axis=2), small.min(axis=2)
    lit = most > 0.08
    saturation = float(((most - least)[lit] / most[lit]).mean()) if lit.any() else 0.0
    return float((small @ LUMA).mean()), saturation
