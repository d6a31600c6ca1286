"""The picture inside a black border, from at most 8 keyframes of a video.

Shapes: H W pixels of a decoded picture, at half size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from .video import GopTable

MAX_BOX_KEYFRAMES = 8


def keyframes(container: InputContainer, stream: VideoStream, gops: GopTable) -> Iterator[VideoFrame]:
    """Yields evenly spaced keyframes, at most 8; skips those that do not decode."""
    rows = np.flatnonzero(gops.clean) if gops.clean.any() else np.arange(len(gops))
    rows = rows[np.linspace(0, len(rows) - 1, min(len(rows), MAX_BOX_KEYFRAMES)).round().astype(int)]
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1
    for pts, byte in zip(gops.pts[rows].tolist(), gops.byte_offset[rows].tolist(), strict=True):
        frame = None
        with contextlib.suppress(FFmpegError, OSError):
            if container.format.name == "mpegts" and byte >= 0:  # seeking by time may land behind the last keyframe
                container.seek(byte, stream=stream, unsupported_byte_offset=True)
            else:
                container.seek(pts, stream=stream)
            packet = next((packet for packet in container.demux(stream) if packet.size and packet.is_keyframe), None)
            if packet is not None:
                frame = next(iter(packet.decode() or stream.codec_context.decode(None)), None)
        if frame is not None:
            yield frame


def half_size_luma(frame: VideoFrame) -> tuple[np.ndarray, int]:
    """(luma (H, W) uint8 at half size, value of black)."""
    planar_8_bit = frame.format.name.startswith(("yuv", "nv12", "gray")) and frame.format.components[0].bits == 8
    upside_down = frame.planes[0].line_size < 0
    if not planar_8_bit or upside_down or frame.format.name in ("yuyv422", "yvyu422"):
        frame = frame.reformat(format="gray")
    plane = frame.planes[0]
    luma = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)[
        : frame.height : 2, : frame.width : 2
    ]
    full_range = frame.format.name.startswith(("yuvj", "gray")) or frame.color_range == 2
    return luma, 0 if full_range else 16


def find_content_box(
    lumas: Iterable[tuple[np.ndarray, int]],
    rotation: int,
    mirrored: bool = False,
    margin: int = 16,
    fraction: float = 0.1,
) -> tuple[int, int, int, int] | None:
    """The picture inside a black border: (left, top, width, height) in the upright half-size pixels of `lumas`.

    Args:
        lumas: pictures (H, W) uint8, each with its value of black; the brightest value of every pixel over time counts.
        rotation, mirrored: what sets them upright; see `VideoFacts`.
        margin: how far above black a pixel is lit.
        fraction: a row or column is part of the picture if it has this share of the lit pixels of the fullest one. It lets
            small text in the border go, and costs a disc half a percent of its radius.

    Returns:
        None without any picture; all of it if nothing is lit or a side would shrink below a quarter.
    """
    brightest: np.ndarray | None = None
    for luma, black in lumas:
        above = luma.astype(np.int16) - black
        if brightest is None or brightest.shape == above.shape:
            brightest = above if brightest is None else np.maximum(brightest, above)
    if brightest is None:
        return None
    lit = np.rot90(brightest > margin, rotation // 90)[:, :: -1 if mirrored else 1]
    rows, columns = slice(0, lit.shape[0]), slice(0, lit.shape[1])
    for _ in range(2):
        rows = _filled_range(lit[:, columns].sum(axis=1), fraction)
        columns = _filled_range(lit[rows].sum(axis=0), fraction)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    if 4 * height < lit.shape[0] or 4 * width < lit.shape[1]:
        return 0, 0, lit.shape[1], lit.shape[0]
    return columns.start, rows.start, width, height


def _filled_range(counts: np.ndarray, fraction: float) -> slice:
    """From the first to the last run of well-filled lines, runs that hold less than 5 % of the lit pixels left out."""
    filled = counts > fraction * counts.max()
    edges = np.flatnonzero(np.diff(filled, prepend=False, append=False))
    lit_so_far = np.append(0, np.cumsum(counts))
    runs = [(a, b) for a, b in edges.reshape(-1, 2) if lit_so_far[b] - lit_so_far[a] >= 0.05 * lit_so_far[-1]]
    return slice(int(runs[0][0]), int(runs[-1][1])) if runs else slice(0, len(counts))
