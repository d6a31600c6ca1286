"""One clip's crop, resize and flip, from decoded frames to uint8 RGB.

"fast": FFmpeg's crop and scale filters; swscale's bilinear kernel widens when it shrinks, so it is antialiased, and only the crop
is converted to RGB. "exact": the whole picture to RGB, then the antialiased bilinear filter that PyTorch and DALI have in common,
with the crop's outermost pixels repeated where it reaches over the edge (`resize_exactly`). Over surgical clips they differ by half
of 1 of 255 on average.

Shapes: H W pixels of the decoded picture, or of its crop; R x R pixels of the result.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, get_args

import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from ..draw.augment import TURNS, Crop, Resize
from ..video.pyav import ACCURATE_BILINEAR

if TYPE_CHECKING:
    import torch

# Chroma of these has half the width, so that they may be scaled before it is doubled again: swscale's RGB conversion at an
# unchanged size is faster than the one that scales as well, and nearer to "exact".
SUBSAMPLED = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p")
KEPT_GRAPHS = 16  # of somewhat less than a MB each
ACCURATE = "flags=bilinear+accurate_rnd+full_chroma_int"


class Resizer:
    """Cuts a crop, given in pixels of the turned picture, out of frames and returns it as (R, R, 3) uint8 RGB.

    crop, rotation: what frames are cut to from now on; may be set anew at any time. rotation: degrees counter-clockwise that turn
    the decoded picture upright: 0, 90, 180 or 270.
    """

    def __init__(self, crop: Crop, rotation: int, resolution: int, resize: Resize = "fast") -> None:
        if resize not in get_args(Resize):
            raise ValueError(f"resize must be one of {get_args(Resize)}, got {resize!r}")
        self.crop, self.rotation, self.resolution, self.resize = crop, rotation, resolution, resize
        # A graph is told its next crop: to build one takes as long as some frames, all the while holding the interpreter.
        self._graph = lru_cache(KEPT_GRAPHS)(_CropGraph)

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        return self._fast(frame) if self.resize == "fast" else self._exact(frame)

    def _fast(self, frame: VideoFrame) -> NDArray[np.uint8]:
        # A stream may change them on the way.
        kind = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        try:
            return self._graph(*kind, self.rotation, self.resolution).cut(frame, self.crop)
        except FFmpegError:
            self._graph.cache_clear()  # a crop that was refused stays in its filter
            raise

    def _exact(self, frame: VideoFrame) -> NDArray[np.uint8]:
        box = self.crop.box
        picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", interpolation=ACCURATE_BILINEAR)  # pyright: ignore[reportAssignmentType]
        upright = np.rot90(picture, self.rotation // 90)
        cut = resize_exactly(upright[box.top : box.top + box.height, box.left : box.left + box.width], self.resolution)
        return cut[:, ::-1] if self.crop.flip else cut


class _CropGraph:
    """FFmpeg's filters for frames of one kind; the crop may be another one for every frame."""

    def __init__(
        self,
        width: int,
        height: int,
        pixel_format: str,
        colorspace: int,
        color_range: int,
        rotation: int,
        resolution: int,
    ) -> None:
        self._resolution = resolution
        graph = self._graph = Graph()
        graph.threads = 1  # the loader's threads work on different clips
        # Colours are told beforehand: a filter that learns of them from the first frame forgets its rounding flags.
        source = f"video_size={width}x{height}:pix_fmt={pixel_format}:time_base=1/25"
        self._source = graph.add("buffer", f"{source}:colorspace={colorspace}:range={color_range}")
        steps = [self._source, *(graph.add("transpose", f"dir={turn}") for turn in TURNS[rotation])]
        self._crop = graph.add("crop")
        self._flip = graph.add("hflip", "enable=0")
        self._told: Crop | None = None
        steps += [self._crop, graph.add("scale", f"w={resolution}:h={resolution}:flags=bilinear")]
        to_rgb = graph.add("format", "pix_fmts=rgb24")
        if pixel_format in SUBSAMPLED:
            steps += [graph.add("format", "pix_fmts=yuv422p"), graph.add("scale", ACCURATE)]
            # To planes and from there to pixels: the same bits as in one step, and swscale has vector code for each.
            steps += [graph.add("format", "pix_fmts=gbrp"), self._flip, graph.add("scale", "flags=bilinear"), to_rgb]
        else:
            steps += [to_rgb, self._flip]
        self._sink = graph.add("buffersink")
        graph.link_nodes(*steps, self._sink).configure()

    def cut(self, frame: VideoFrame, crop: Crop) -> NDArray[np.uint8]:
        if crop != self._told:
            self._told = None  # until all of it is
            box = crop.box
            for name, value in (("w", box.width), ("h", box.height), ("x", box.left), ("y", box.top)):
                self._crop.process_command(name, str(value))
            self._flip.process_command("enable", str(int(crop.flip)))
            self._told = crop
        self._source.push(frame)
        plane, size = self._sink.pull().planes[0], self._resolution  # pyright: ignore[reportAttributeAccessIssue]: a picture's sink has pictures
        rows = np.frombuffer(plane, np.uint8).reshape(size, -1)  # pyright: ignore[reportArgumentType, reportCallIssue]: a buffer
        return rows[:, : 3 * size].reshape(size, size, 3)


def resize_exactly(picture: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """(H, W, 3) to (R, R, 3) by a triangular filter, as wide as a result's pixel where that is larger than one of the picture.

    PyTorch leaves out what the filter has beyond the edge and gives its weight to all the rest. DALI and FFmpeg give it to the
    outermost pixel, and so does this. Only the outermost pixels of a smaller result differ: an eighth of their weight where the
    picture shrinks to half or less.
    """
    import torch  # slow: not for decoding processes that resize the fast way

    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None]
    for axis in (3, 2):
        planes = _resize_along(planes, axis, resolution)
    return planes[0].permute(1, 2, 0).numpy()


def _resize_along(planes: torch.Tensor, axis: int, size: int) -> torch.Tensor:
    import torch
    import torch.nn.functional as F

    before, after = planes.shape[axis], list(planes.shape)
    after[axis] = size
    resized = F.interpolate(planes, size=after[2:], mode="bilinear", antialias=True, align_corners=False)
    beyond = _share_beyond_the_edge(before / size)
    if beyond:
        for end in (0, -1):
            line, edge = resized.select(axis, end), planes.select(axis, end)
            line.copy_(torch.lerp(line.float(), edge.float(), beyond).round())
    return resized


def _share_beyond_the_edge(scale: float) -> float:
    """Of the weight of the outermost pixel's filter, 0 .. 1/8. scale: old pixels for a new one."""
    if scale <= 1:  # PyTorch then gives the outermost pixel all that it leaves out
        return 0.0
    places = np.arange(math.floor(-scale / 2), math.ceil(3 * scale / 2)) + 0.5
    weights = np.maximum(0, 1 - np.abs(places - scale / 2) / scale)
    return float(weights[places < 0].sum() / weights.sum())
