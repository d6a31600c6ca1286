"""Pictures that leave a decoding process as planes: what a clip's crop needs of each, in the clip's own memory.

Converting to RGB and resizing takes as long as decoding does where pictures are small. So a process may leave both to a kernel of
the GPU (`kernels/yuv_clips.py`), and copy the samples of the crop instead, with those around it that the kernel interpolates from.

Shapes: V views, T frames, R x R pixels of a clip; H x W pixels of the decoded picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ...kernels.yuv_geometry import CUT_FLOATS, CUT_INTEGERS, cut_numbers, region, region_bytes
from ..draw.augment import Crop
from ..video.video import MATRICES, VideoFacts

FORMATS = {"yuv420p": False, "yuvj420p": True}  # to whether luma has the full range, unless the picture says otherwise
FULL_RANGE = 2  # FFmpeg's AVColorRange


class NotPlanesError(Exception):
    """Pictures of another format than YUV 4:2:0 of 8 bits, of another size than their video's, or not all of one kind."""


@dataclass(frozen=True)
class PlaneCuts:
    """integers: (V, 16) int32, factors: (V, 13) float32, as of `yuv_geometry.cut_numbers`."""

    integers: NDArray[np.int32]
    factors: NDArray[np.float32]

    @classmethod
    def of_batch(cls, cuts: Sequence[PlaneCuts | None], views: int) -> PlaneCuts | None:
        """Of spans of so many views whose clips stand one after another; None where all are RGB."""
        rows = [(span, cut) for span, cut in enumerate(cuts) if cut is not None]
        if not rows:
            return None
        integers = np.concatenate([cut.integers for _, cut in rows])
        first = np.repeat([span * views for span, _ in rows], views)
        integers[:, 0] = first + np.tile(np.arange(views), len(rows))
        return cls(integers, np.concatenate([cut.factors for _, cut in rows]))


class PlaneWriter:
    """Writes pictures of one video to the clips of V views. crops: in pixels of the upright picture. output: (V, T, R, R, 3) uint8,
    memory that is written as planes. has_room: whether what the crops need of a picture fits."""

    def __init__(self, video: VideoFacts, crops: Sequence[Crop], output: NDArray[np.uint8]) -> None:
        self._video, self._crops, self._output = video, crops, output
        boxes = [(crop.box.left, crop.box.top, crop.box.width, crop.box.height) for crop in crops]
        self._kept = [region(box, video.rotation, video.height, video.width) for box in boxes]
        self.has_room = max(region_bytes(*kept[2:]) for kept, _ in self._kept) <= np.prod(output.shape[2:])
        self._kind: tuple[int, int, str, int, int] | None = None

    def write(self, view: int, first: int, stop: int, frame: VideoFrame) -> None:
        """Writes a picture to the places first .. stop - 1 of a view. Raises NotPlanesError."""
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if kind != self._kind:
            if self._kind is not None or kind[:2] != (self._video.width, self._video.height) or kind[2] not in FORMATS:
                raise NotPlanesError
            self._kind = kind
        left, top, width, height = self._kept[view][0]
        size = region_bytes(width, height)
        places = self._output[view].reshape(-1)[first * size : stop * size].reshape(stop - first, size)
        start = 0
        for plane, step in zip(frame.planes, (1, 2, 2), strict=True):
            x, y, across, down = left // step, top // step, -(-width // step), -(-height // step)
            rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # pyright: ignore[reportArgumentType, reportCallIssue]: a buffer
            places[:, start : start + across * down].reshape(-1, down, across)[:] = rows[y : y + down, x : x + across]
            start += across * down

    def cuts(self) -> PlaneCuts:
        """What makes RGB clips of what was written."""
        assert self._kind is not None, "no picture was written"
        _, _, name, colorspace, color_range = self._kind
        full_range = FORMATS[name] or color_range == FULL_RANGE
        matrix, resolution = MATRICES.get(colorspace, "bt601"), self._output.shape[2]
        pairs = [
            cut_numbers(kept, box, resolution, matrix, full_range, self._video.rotation, crop.flip)
            for (kept, box), crop in zip(self._kept, self._crops, strict=True)
        ]
        integers = np.array([integers for integers, _ in pairs], np.int32).reshape(-1, len(CUT_INTEGERS))
        return PlaneCuts(integers, np.array([factors for _, factors in pairs], np.float32).reshape(-1, CUT_FLOATS))
