"""One clip's crop, resize and flip, from decoded frames to uint8 RGB.

"fast": FFmpeg's crop and scale filters; swscale's bilinear kernel widens when it shrinks, so it is antialiased, and only the crop
is converted to RGB. "exact": the whole picture to RGB, then the antialiased bilinear filter that PyTorch and DALI have in common,
with the crop's outermost pixels repeated where it reaches over the edge (`resize_exactly`). Over surgical clips they differ by half
of 1 of 255 on average.

Shapes: H W pixels of the decoded picture, or of its crop; R x R pixels of the result.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, get_args

import numpy as np
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
ACCURATE = "flags=bilinear+accurate_rnd+full_chroma_int"


class Resizer:
    """Cuts `crop`, given in pixels of the turned picture, out of frames of one size and returns it as (R, R, 3) uint8 RGB.

    rotation: degrees counter-clockwise that turn the decoded picture upright: 0, 90, 180 or 270.
    """

    def __init__(self, crop: Crop, rotation: int, resolution: int, resize: Resize = "fast") -> None:
        if resize not in get_args(Resize):
            raise ValueError(f"resize must be one of {get_args(Resize)}, got {resize!r}")
        self.crop, self.rotation, self.resolution, self.resize = crop, rotation, resolution, resize
        self._graph: Graph | None = None
        self._graph_input: tuple[int, int, str, int, int] | None = None

    def __call__(self, frame: VideoFrame) -> NDArray[np.uint8]:
        return self._fast(frame) if self.resize == "fast" else self._exact(frame)

    def _fast(self, frame: VideoFrame) -> NDArray[np.uint8]:
        described = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._graph is None or described != self._graph_input:  # a stream may change them on the way
            self._graph, self._graph_input = self._build_graph(frame), described
        self._graph.vpush(frame)
        (plane,) = self._graph.vpull().planes
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)  # pyright: ignore[reportArgumentType, reportCallIssue]: a buffer
        return rows[:, : 3 * plane.width].reshape(plane.height, plane.width, 3)

    def _build_graph(self, frame: VideoFrame) -> Graph:
        box, size = self.crop.box, self.resolution
        graph = Graph()
        graph.threads = 1  # the loader's threads work on different clips
        # Colours are told beforehand: a filter that learns of them from the first frame forgets its rounding flags.
        source = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/25"
        steps = [graph.add("buffer", f"{source}:colorspace={frame.colorspace}:range={frame.color_range}")]
        steps += [graph.add("transpose", f"dir={turn}") for turn in TURNS[self.rotation]]
        steps.append(graph.add("crop", f"w={box.width}:h={box.height}:x={box.left}:y={box.top}"))
        steps.append(graph.add("scale", f"w={size}:h={size}:flags=bilinear"))
        flip = [graph.add("hflip")] if self.crop.flip else []
        to_rgb = graph.add("format", "pix_fmts=rgb24")
        if frame.format.name in SUBSAMPLED:
            steps += [graph.add("format", "pix_fmts=yuv422p"), graph.add("scale", ACCURATE)]
            # To planes and from there to pixels: the same bits as in one step, and swscale has vector code for each.
            steps += [graph.add("format", "pix_fmts=gbrp"), *flip, graph.add("scale", "flags=bilinear"), to_rgb]
        else:
            steps += [to_rgb, *flip]
        steps.append(graph.add("buffersink"))
        graph.link_nodes(*steps).configure()
        return graph

    def _exact(self, frame: VideoFrame) -> NDArray[np.uint8]:
        box = self.crop.box
        picture: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", interpolation=ACCURATE_BILINEAR)  # pyright: ignore[reportAssignmentType]
        upright = np.rot90(picture, self.rotation // 90)
        cut = resize_exactly(upright[box.top : box.top + box.height, box.left : box.left + box.width], self.resolution)
        return cut[:, ::-1] if self.crop.flip else cut


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
