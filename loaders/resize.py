"""One clip's crop, resize and flip, from decoded frames to uint8 RGB.

"fast": FFmpeg's crop and scale filters; swscale's bilinear kernel widens when it shrinks, so it is antialiased, and only the crop
is converted to RGB. "exact": the whole picture to RGB, then PyTorch's antialiased bilinear. Over surgical clips they differ by
about 1 of 255 on average.

Shapes: H W pixels of the decoded picture, R x R pixels of the result.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation
from numpy.typing import NDArray

from .augment import TURNS, Crop

Resize = Literal["fast", "exact"]

# Chroma of these has half the width, so that they may be scaled before it is doubled again: swscale's RGB conversion at an
# unchanged size is faster than the one that scales as well, and nearer to "exact".
SUBSAMPLED = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p")
# swscale's short cuts from YUV to RGB are off by up to two of 255, all in one direction: enough to tell loaders apart.
ACCURATE = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND


class Resizer:
    """Cuts `crop`, given in upright pixels, out of frames of one size and returns it as (R, R, 3) uint8 RGB.

    rotation: degrees counter-clockwise that turn the decoded picture upright: 0, 90, 180 or 270.
    """

    def __init__(self, crop: Crop, rotation: int, resolution: int, resize: Resize = "fast") -> None:
        if resize not in get_args(Resize):
            raise ValueError(f"resize must be one of {get_args(Resize)}, got {resize!r}")
        self.crop, self.rotation, self.resolution, self.resize = crop, rotation, resolution, resize
        self._graph: Graph | None = None
        self._graph_input: tuple[int, int, str] | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        picture = self._fast(frame) if self.resize == "fast" else self._exact(frame)
        return picture[:, ::-1] if self.crop.flip else picture

    def _fast(self, frame: VideoFrame) -> NDArray[np.uint8]:
        shape = (frame.width, frame.height, frame.format.name)
        if self._graph is None or shape != self._graph_input:  # a stream may change its size on the way
            self._graph, self._graph_input = self._build_graph(frame), shape
        self._graph.vpush(frame)
        picture: NDArray[np.uint8] = self._graph.vpull().to_ndarray()  # pyright: ignore[reportAssignmentType]: rgb24
        return picture

    def _build_graph(self, frame: VideoFrame) -> Graph:
        box, size = self.crop.box, self.resolution
        graph = Graph()
        graph.threads = 1  # the loader's threads work on different clips
        steps = [
            graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 25))
        ]
        steps += [graph.add("transpose", f"dir={turn}") for turn in TURNS[self.rotation]]
        steps.append(graph.add("crop", f"w={box.width}:h={box.height}:x={box.left}:y={box.top}"))
        steps.append(graph.add("scale", f"w={size}:h={size}:flags=bilinear"))
        if frame.format.name in SUBSAMPLED:
            steps.append(graph.add("format", "pix_fmts=yuv422p"))
            steps.append(graph.add("scale", "flags=bilinear+accurate_rnd+full_chroma_int"))
        steps.append(graph.add("format", "pix_fmts=rgb24"))
        steps.append(graph.add("buffersink"))
        graph.link_nodes(*steps).configure()
        return graph

    def _exact(self, frame: VideoFrame) -> NDArray[np.uint8]:
        box = self.crop.box
        upright = np.rot90(frame.to_ndarray(format="rgb24", interpolation=ACCURATE), self.rotation // 90)
        cut = upright[box.top : box.top + box.height, box.left : box.left + box.width]
        planes = torch.from_numpy(np.ascontiguousarray(cut)).permute(2, 0, 1)[None]
        size = (self.resolution, self.resolution)
        resized = F.interpolate(planes, size=size, mode="bilinear", antialias=True, align_corners=False)
        return resized[0].permute(1, 2, 0).numpy()
