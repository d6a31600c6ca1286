"""Interlaced H.264 (field pairs, PAFF, MBAFF), AV1, and pictures that change their size on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest
from windows import Source, check_numbers, check_windows, from_packets, random_clips, rgb

from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.video.decode import DecodeCount, WindowDecoder
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import VideoError
from trocar.loaders.video.window import WindowReader

pytestmark = pytest.mark.timeout(120)
FRAMES = 90


def source_of(path: Path, **encoding: Any) -> Source:
    clips.write_numbered(path, FRAMES, video_id=3, first_number=500, **encoding)
    facts, gops = probe_video(path, content_box=False)
    assert facts.frames == FRAMES
    return Source(facts, gops, 3, 500 + np.arange(FRAMES))


# Interlaced x264 is MBAFF; fake-interlaced signals it and codes frames.
INTERLACED = ["tff=1:bframes=0", "bff=1:bframes=3:b-pyramid=normal", "tff=1:bframes=2:open-gop=1", "fake-interlaced=1"]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize("rest", INTERLACED)
def test_interlaced_h264(tmp_path, name, rest):
    params = f"keyint=12:min-keyint=12:scenecut=0:b-adapt=0:interlaced=1:{rest}".replace("interlaced=1:fake", "fake")
    source = source_of(tmp_path / name, options={"x264-params": params})
    assert len(check_windows(source, random_clips(np.random.default_rng(0), FRAMES, 8))) == 8


# Faster presets repeat pictures. In the second case packets hold no hidden pictures.
AV1 = ["keyint=12", "keyint=12:pred-struct=1"]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
@pytest.mark.parametrize("rest", AV1)
def test_av1(tmp_path, name, rest):
    options = {"preset": "8", "crf": "20", "svtav1-params": f"lp=1:{rest}"}
    source = source_of(tmp_path / name, codec="libsvtav1", gop=12, options=options)
    assert (source.facts.codec, len(source.gops)) == ("av1", 8)
    reader, decoder = WindowReader(source.facts), WindowDecoder(source.facts)
    for frames in random_clips(np.random.default_rng(0), FRAMES, 8):
        window = reader.window(frames, source.gops)
        check_numbers(source, frames, rgb(from_packets(decoder, window)), 0)
        with pytest.raises(VideoError, match="av1 cannot be remuxed"):  # hence the CPU decodes it, from packets
            window.mux()
    reader.close()
    decoder.close()


def write_two_sizes(folder: Path, name: str, encoding: dict[str, Any]) -> Path:
    """48 frames of 128 x 96, then 48 of 192 x 128, in one stream."""
    parts = [folder / f"{part}{Path(name).suffix}" for part in range(2)]
    for part, (width, height) in enumerate([(128, 96), (192, 128)]):
        clips.write_numbered(
            parts[part], 48, video_id=3, first_number=500 + 48 * part, gop=12, width=width, height=height, **encoding
        )
    with av.open(str(folder / name), "w") as target:
        stream, shift = None, 0
        for part in parts:
            with av.open(str(part)) as container:
                own = container.streams.video[0]
                stream = stream or target.add_stream_from_template(own)
                for packet in container.demux(own):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        assert packet.time_base is not None
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + shift, packet.dts + shift
                        target.mux(packet)
                shift += round(48 / 25 / own.time_base)
    return folder / name


TWO_SIZES = [
    ("a.ts", {}),
    ("a.webm", {"codec": "libvpx-vp9"}),
    ("a.webm", {"codec": "libvpx"}),
    ("a.avi", {"codec": "mjpeg"}),
]


@pytest.mark.parametrize(("name", "encoding"), TWO_SIZES, ids=str)
def test_a_change_of_size_is_refused_where_it_is_met(tmp_path, name, encoding):
    facts, gops = probe_video(write_two_sizes(tmp_path, name, encoding))
    assert (facts.frames, facts.width, facts.height) == (96, 128, 96)
    source = Source(facts, gops, 3, 500 + np.arange(96))
    assert len(check_windows(source, iter([np.arange(0, 48, 5), np.array([40, 47])]))) == 2
    reader, decoder = WindowReader(facts), WindowDecoder(facts)
    for frames in (np.arange(40, 56), np.arange(60, 70)):
        with pytest.raises(VideoError, match=r"is 192x128, not 128x96 as the first; re-encode it to one size"):
            list(decoder.frames(reader.window(frames, gops), DecodeCount()))
    reader.close()
    decoder.close()


@pytest.mark.parametrize(("name", "encoding"), TWO_SIZES[1:], ids=str)
def test_dali_refuses_a_change_of_size_as_well(tmp_path, name, encoding):
    pytest.importorskip("nvidia.dali", reason="needs DALI: pip install '.[dali]'")
    path = write_two_sizes(tmp_path, name, encoding)
    rows = [(path, 0.04 * start, start) for start in (0, 20, 36, 44, 50, 70)]
    options: dict[str, Any] = dict(batch=6, num_frames=8, stride=1, resolution=64, training=False, device="cpu", seed=0)
    (by_cpu,), (by_dali,) = (
        list(clip_loader(rows, loader=loader, failure_budget=1.0, failure_floor=9, threads=1, **options))
        for loader in ("cpu", "dali")
    )
    assert by_cpu.labels == by_dali.labels == [0, 20, 36]
    assert len(by_cpu.count.failures) == len(by_dali.count.failures) == 3
    assert (by_cpu.frames.float() - by_dali.frames.float()).abs().mean() < 3
