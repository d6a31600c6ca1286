"""How alike two videos look to a model: FFmpeg's filters psnr and ssim on both, resized to 224 x 224 pixels as for training.

Over red, green and blue alike. So the likeness of a proxy holds what scaling to its size costs as well as what coding does.

Shapes: F frames, R = 224 pixels; pictures are uint8 RGB, (F, R, R, 3).
"""

from __future__ import annotations

import gc
import math
import re
import statistics
import tempfile
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext
from numpy.typing import NDArray

from ...loaders.decode.resize import Resizer
from ...loaders.draw.augment import Box, Crop
from ...loaders.video.decode import DecodeCount
from ...loaders.video.sequence import read_frames
from ...loaders.video.video import GopTable, VideoFacts

RESOLUTION = 224
Pictures = NDArray[np.uint8]


def pictures(video: VideoFacts, gops: GopTable, stride: int) -> Pictures:
    """All frames at the stride, their whole content resized to (F, R, R, 3) as for training."""
    content = Box(video.box_left, video.box_top, video.box_width, video.box_height)
    crop = Crop(content, False)
    crop = crop.unmirrored(video.upright_size[0]) if video.mirrored else crop
    resizer = Resizer(crop, video.rotation, RESOLUTION)
    frames = read_frames(video, gops, np.arange(0, video.frames, stride), DecodeCount())
    return np.stack([resizer(frame) for _, _, frame in frames])


def likeness(first: Pictures, second: Pictures) -> dict[str, float]:
    """PSNR in dB of the mean squared error over all frames and colours, and the mean SSIM, by FFmpeg's filters of these names."""
    errors, similarities = _filtered("psnr", "mse_avg", first, second), _filtered("ssim", "All", first, second)
    mean = statistics.mean(errors)
    return {"psnr_db": 10 * math.log10(255**2 / mean) if mean else 100.0, "ssim": statistics.mean(similarities)}


def _filtered(name: str, key: str, first: Pictures, second: Pictures) -> list[float]:
    """What the filter says of each frame."""
    assert first.shape == second.shape, (first.shape, second.shape)
    with tempfile.NamedTemporaryFile("r", encoding="ascii") as file:
        _run_filter(f"{name}=stats_file={file.name}", first, second)
        gc.collect()  # from PyAV 19 on a graph and its filters hold each other
        values = [float(value) for value in re.findall(rf"\b{key}:([\d.]+)", file.read())]
    assert len(values) == len(first), f"{name} wrote {len(values)} lines for {len(first)} frames"
    return values


def _run_filter(description: str, first: Pictures, second: Pictures) -> None:
    """Feeds both to a filter of two inputs, which has written its file out when its graph is freed, hence on return."""
    graph = Graph()
    graph.threads = 1
    name, _, options = description.partition("=")
    compare, sink = graph.add(name, options), graph.add("buffersink")
    sources = [_source(graph, first.shape), _source(graph, first.shape)]
    for pad, source in enumerate(sources):
        planar = graph.add("format", "pix_fmts=gbrp")
        source.link_to(planar)
        planar.link_to(compare, 0, pad)
    compare.link_to(sink)
    graph.configure()
    for index, pair in enumerate(zip(first, second, strict=True)):
        for source, picture in zip(sources, pair, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            source.push(frame)
        sink.pull()


def _source(graph: Graph, shape: tuple[int, ...]) -> FilterContext:
    size = f"video_size={shape[2]}x{shape[1]}"
    return graph.add("buffer", f"{size}:pix_fmt=rgb24:time_base=1/25")
