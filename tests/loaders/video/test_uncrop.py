"""A window whose header cuts nothing off shows the whole coded pictures, and in their corner exactly what the video shows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest

from trocar.loaders.video import uncrop
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.window import Window, WindowReader

OPEN: dict[str, Any] = {"b_frames": 3, "open_gop": True}
HEVC: dict[str, Any] = {"codec": "libx265"}
# name, width, height, encoding; the blocks of HEVC are the encoder's choice
CASES: list[tuple[str, int, int, dict[str, Any]]] = [
    ("a.mp4", 200, 100, OPEN),
    ("a.ts", 200, 128, OPEN),
    ("a.mkv", 128, 90, {"b_frames": 2, "pix_fmt": "yuv444p"}),
    ("a.mp4", 138, 102, {"rotation": 90}),
    ("a.mp4", 200, 100, {**HEVC, **OPEN}),
    ("a.ts", 130, 98, HEVC),
    ("a.mkv", 200, 100, {**HEVC, "pix_fmt": "yuv420p10le"}),
]


def window_of(path: Path, first: int = 15) -> Window:
    video, gops = probe_video(path, content_box=False)
    return WindowReader(video).window(np.arange(first, first + 12, 3), gops)


def shown(window: Window, **how: bool) -> tuple[list[av.VideoFrame], tuple[int, int]]:
    """The wanted frames of the window as a file, and the size that its container says."""
    with av.open(io.BytesIO(window.mux(**how).tobytes()), "r") as container:
        stream = container.streams.video[0]
        size = stream.width, stream.height
        frames = list(container.decode(stream))
    assert len(frames) == window.shows.sum()
    return [frames[rank] for rank in window.ranks], size


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: f"{case} {CASES[case][0]}")
def test_the_picture_stands_in_the_corner_of_the_coded_one(case: int, tmp_path: Path) -> None:
    name, width, height, encoding = CASES[case]
    clips.write_numbered(tmp_path / name, 40, video_id=case, gop=12, width=width, height=height, **encoding)
    window = window_of(tmp_path / name)
    plain, size = shown(window)
    assert size == (width, height)
    whole, coded = shown(window, is_uncropped=True)
    if "codec" not in encoding:
        assert coded == (-(-width // 16) * 16, -(-height // 16) * 16)
    assert all(pixels % 8 == 0 and pixels >= least for pixels, least in zip(coded, size, strict=True))
    assert coded != size
    for number, frame, cut in zip(window.frames.tolist(), whole, plain, strict=True):
        assert (frame.width, frame.height) == coded
        for plane, kept in zip(planes(frame), planes(cut), strict=True):
            assert np.array_equal(plane[: kept.shape[0], : kept.shape[1]], kept)
        upright = np.rot90(frame.to_ndarray(format="rgb24")[:height, :width], encoding.get("rotation", 0) // 90)
        assert clips.read_number(upright) == (case, number)


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Y, U and V, as decoded."""
    deep = np.uint16 if "10le" in frame.format.name else np.uint8
    rows = [np.frombuffer(memoryview(plane), deep).reshape(plane.height, -1) for plane in frame.planes]
    return [row[:, : plane.width] for row, plane in zip(rows, frame.planes, strict=True)]


@pytest.mark.parametrize(("codec", "size"), [("libx264", (128, 96)), ("mpeg4", (130, 98))])
def test_what_is_not_cropped_stays_as_it_is(codec: str, size: tuple[int, int], tmp_path: Path) -> None:
    clips.write_numbered(tmp_path / "a.mkv", 30, gop=12, codec=codec, width=size[0], height=size[1])
    window = window_of(tmp_path / "a.mkv")
    assert np.array_equal(window.mux(is_uncropped=True), window.mux())


def test_a_size_is_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips.write_numbered(tmp_path / "a.mp4", 40, gop=12, width=202, height=100)
    monkeypatch.setattr(uncrop, "_sizes", {})
    first, size = shown(window_of(tmp_path / "a.mp4"), is_uncropped=True)
    assert list(uncrop._sizes.values()) == [size] == [(208, 112)]
    monkeypatch.setattr(uncrop, "CodecContext", None)
    again, _ = shown(window_of(tmp_path / "a.mp4", first=3), is_uncropped=True)
    assert (first[0].width, again[0].width) == (208, 208)
