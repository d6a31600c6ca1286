"""Seconds and frame numbers: compared with a search through all frames, in every kind of file."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest

from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.timeline import Timeline
from trocar.loaders.video.video import PacketTable, VideoError

NTSC = Fraction(30000, 1001)
FILES: list[tuple[str, dict[str, Any]]] = [
    ("a.mp4", {"gop": 12, "b_frames": 3, "open_gop": True}),
    ("a.mp4", {"gop": 250}),
    ("a.mp4", {"gop": 1}),
    ("a.mp4", {"gop": 12, "fps": NTSC, "b_frames": 2}),
    ("a.mkv", {"gop": 12, "fps": NTSC}),
    ("a.mkv", {"gop": 30, "variable_rate": True, "b_frames": 3, "open_gop": True}),
    ("a.mp4", {"gop": 12, "variable_rate": True}),
    ("a.ts", {"gop": 12, "b_frames": 2}),
    ("a.mp4", {"gop": 12, "first_tick": -17, "b_frames": 3}),
    ("a.mp4", {"gop": 12, "first_tick": 40}),
    ("a.webm", {"gop": 12, "codec": "libvpx", "hidden_frames": True}),
    ("a.avi", {"gop": 12, "codec": "mpeg4"}),
]


def written_seconds(encoding: dict[str, Any], frames: int) -> np.ndarray:
    """When each written frame that is shown begins, from the first of them on."""
    gaps = [1, 1, 2, 4] if encoding.get("variable_rate") else [1]
    ticks = encoding.get("first_tick", 0) + np.concatenate([[0], np.cumsum(np.resize(gaps, frames - 1))])
    ticks = ticks[ticks >= min(0, ticks[-1])] if encoding.get("first_tick", 0) < 0 else ticks
    return (ticks - ticks[0]) / float(encoding.get("fps", 25))


@pytest.fixture(params=range(len(FILES)), ids=[f"{name}-{number}" for number, (name, _) in enumerate(FILES)])
def written(request, tmp_path: Path) -> tuple[Timeline, np.ndarray]:
    name, encoding = FILES[request.param]
    clips.write_numbered(tmp_path / name, 70, width=64, height=64, **encoding)
    seconds = written_seconds(encoding, 70)
    timeline = Timeline(*probe_video(tmp_path / name, content_box=False))
    assert timeline.last == len(seconds) - 1
    return timeline, seconds


def test_every_frame_at_its_time(written):
    timeline, begins = written
    for frame, begin in enumerate(begins):
        assert timeline.seconds(frame) == pytest.approx(begin, abs=0.001)
        assert timeline.shown(begin) == frame
        # As people write seconds down.
        assert timeline.shown(round(begin, 3)) == frame
        if frame:
            assert timeline.shown(begin - 0.002) == frame - 1
    assert timeline.shown(begins[-1] + 100) == timeline.last
    assert timeline.shown(0) == timeline.shown(-1) == 0


def test_the_nearest_frames(written):
    timeline, begins = written
    moments = np.random.default_rng(0).uniform(-0.1, begins[-1] + 0.5, 300)
    # Not those half-way between two frames, where a container's clock decides.
    distances = np.sort(np.abs(begins[:, None] - moments), axis=0)
    moments = moments[distances[1] - distances[0] > 0.004]
    assert len(moments) > 200
    expected = np.abs(begins[:, None] - moments).argmin(axis=0)
    assert timeline.nearest(moments).tolist() == expected.tolist()
    assert [int(timeline.nearest([moment])[0]) for moment in moments] == expected.tolist()


def test_of_two_frames_equally_near_the_later(tmp_path):
    clips.write_numbered(tmp_path / "a.mp4", 30, width=64, height=64)
    timeline = Timeline(*probe_video(tmp_path / "a.mp4", content_box=False))
    # As the sampler rounds a stride of 2.5 frames.
    assert timeline.nearest(np.arange(8) / 10).tolist() == np.floor(np.arange(8) * 2.5 + 0.5).tolist()


def test_a_contradictory_index_is_refused(tmp_path):
    clips.write_numbered(tmp_path / "a.mp4", 30, width=64, height=64)
    facts, gops = probe_video(tmp_path / "a.mp4", content_box=False)
    packets = gops.packets
    assert isinstance(packets, PacketTable)
    broken = replace(gops, packets=replace(packets, frame=np.full_like(packets.frame, -1)))
    with pytest.raises(
        VideoError, match=r"a\.mp4: its GOPs and packets contradict each other; run `trocar index` again"
    ):
        Timeline(facts, broken).shown(0.5)
