"""Windows of numbered videos, held against their frames by every way to decode them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import av
import clips
import numpy as np
import pytest
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from trocar.loaders.video.decode import DecodeCount, WindowDecoder
from trocar.loaders.video.pyav import TOLD
from trocar.loaders.video.video import GopTable, VideoFacts
from trocar.loaders.video.window import Window, WindowReader


@dataclass
class Source:
    """A video whose frame i carries numbers[i]."""

    facts: VideoFacts
    gops: GopTable
    video_id: int
    numbers: NDArray[np.int64]


def random_clips(rng: np.random.Generator, num_frames: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Clips of 1 to 16 frames at strides 1 to 12; the first two start as early and end as late as any can."""
    for index in range(count):
        stride = int(rng.integers(1, 13))
        length = int(rng.integers(1, min(16, (num_frames - 1) // stride + 1) + 1))
        last_start = num_frames - (length - 1) * stride - 1
        start = (0, last_start)[index] if index < 2 else int(rng.integers(0, last_start + 1))
        yield start + stride * np.arange(length)


def planes(frame: VideoFrame) -> bytes:
    """Without the padding of rows; PyAV 17.1 makes no array of 10 bits."""
    item = 1 if frame.format.components[0].bits == 8 else 2
    rows = [
        (np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, -1), plane.width * item)
        for plane in frame.planes
    ]
    return b"".join(row[:, :width].tobytes() for row, width in rows)


def from_packets(decoder: WindowDecoder, window: Window) -> list[VideoFrame]:
    decoded = list(decoder.frames(window, DecodeCount()))
    assert [index for index, _ in decoded] == list(range(len(window.frames)))
    return [frame for _, frame in decoded]


def from_file(data: NDArray[np.uint8]) -> list[VideoFrame]:
    """All frames of a file in memory, by a decoder that nobody tells anything."""
    with av.open(io.BytesIO(data.tobytes())) as container:
        return list(container.decode(video=0))


def check_numbers(source: Source, frames: NDArray[np.int64], pictures: list[np.ndarray], rotation: int) -> None:
    for number, picture in zip(frames.tolist(), pictures, strict=True):
        upright = np.rot90(picture, rotation // 90)
        assert clips.read_number(upright) == (source.video_id, source.numbers[number])


def rgb(frames: list[VideoFrame]) -> list[np.ndarray]:
    return [frame.to_ndarray(format="rgb24") for frame in frames]


def needs_muxing(video: VideoFacts) -> None:
    if video.codec == "mjpeg" and "field_order" not in TOLD:
        pytest.skip(f"PyAV {av.__version__} does not say the order of fields, without which Motion JPEG is not remuxed")


def check_windows(source: Source, clips_wanted: Iterator[NDArray[np.int64]]) -> list[Window]:
    """Through packets and through a file in memory, every frame is the right one, and both are the same to the bit."""
    needs_muxing(source.facts)
    reader, decoder = WindowReader(source.facts), WindowDecoder(source.facts)
    windows = []
    for frames in clips_wanted:
        window = reader.window(frames, source.gops)
        assert window.frames.tolist() == frames.tolist()
        decoded = from_packets(decoder, window)
        check_numbers(source, frames, rgb(decoded), source.facts.rotation)
        every = from_file(window.mux())
        assert len(every) == np.count_nonzero(window.shows)
        assert {frame.rotation for frame in every} == {0}
        picked = [every[rank] for rank in window.ranks]
        assert list(map(planes, picked)) == list(map(planes, decoded))
        windows.append(window)
    reader.close()
    decoder.close()
    return windows
