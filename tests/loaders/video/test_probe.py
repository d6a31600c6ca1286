"""The packets' view of a video agrees with what decoding all of it shows, and bad files say what is wrong with them."""

from __future__ import annotations

import io
import os
import shutil
import time
import zlib
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from av.stream import Disposition

from trocar.loaders.video import probe
from trocar.loaders.video.content_box import find_content_box, keyframes
from trocar.loaders.video.packets import DISPOSABLE, KEY, Packets, number_frames, read_packets
from trocar.loaders.video.payload import PayloadFinder
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import GopTable, VideoError, VideoFacts

CASES = [
    ("a.mp4", {}),
    ("a.mp4", {"b_frames": 3}),
    ("a.mp4", {"b_frames": 3, "open_gop": True}),
    ("a.mkv", {"b_frames": 3, "open_gop": True}),
    ("a.ts", {"b_frames": 3, "open_gop": True}),
    ("a.mov", {"b_frames": 2}),
    ("a.avi", {}),
    ("a.mp4", {"codec": "libx265"}),
    ("a.mp4", {"codec": "libx265", "b_frames": 3, "open_gop": True}),
    ("a.mkv", {"codec": "libx265", "b_frames": 3, "open_gop": True}),
    ("a.ts", {"codec": "libx265", "b_frames": 3, "open_gop": True}),
    ("a.webm", {"codec": "libvpx"}),
    ("a.webm", {"codec": "libvpx", "hidden_frames": True}),
    ("a.webm", {"codec": "libvpx-vp9", "hidden_frames": True}),
    ("a.avi", {"codec": "mpeg4"}),
    ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
    ("a.mpg", {"codec": "mpeg2video", "b_frames": 2}),
    ("a.avi", {"codec": "mjpeg"}),
    ("a.mp4", {"variable_rate": True}),
    ("a.mkv", {"variable_rate": True, "b_frames": 3}),
    ("a.mp4", {"first_tick": 40}),
    ("a.mp4", {"first_tick": -7}),
    ("a.mp4", {"first_tick": -7, "b_frames": 3}),
    ("a.mp4", {"first_tick": -17, "b_frames": 3}),
    ("a.mp4", {"audio": True, "b_frames": 2}),
    ("a.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
]


def decoded_frames(path) -> list[tuple[int, int]]:
    """(pts, number) of every frame that decoding the whole file shows."""
    with av.open(str(path), container_options={"fflags": "+genpts"}) as container:
        return [(f.pts, clips.read_number(f.to_ndarray(format="rgb24"))[1]) for f in container.decode(video=0)]


def check_against_decoding(path) -> tuple[VideoFacts, GopTable]:
    facts, gops = probe_video(path)
    shown = decoded_frames(path)
    pts = [time for time, _ in shown]
    assert pts == sorted(pts)
    assert (len(shown), pts[0]) == (facts.frames, facts.start_pts)
    assert gops.first_frame[0] == 0
    assert gops.first_frame[-1] + gops.frames[-1] == facts.frames
    assert np.array_equal(gops.first_frame[1:], (gops.first_frame + gops.frames)[:-1])
    for row in range(len(gops)):
        # Only an edit list that cuts into the first GOP hides a keyframe.
        assert pts[gops.first_frame[row]] == gops.pts[row] or row == 0
        assert pts[gops.first_frame[row]] >= gops.pts[row]
    return facts, gops


@pytest.mark.parametrize(("name", "encoding"), CASES, ids=str)
def test_frames_and_gops_agree_with_decoding(tmp_path, name, encoding):
    clips.write_numbered(tmp_path / name, 60, gop=12, **encoding)
    facts, gops = check_against_decoding(tmp_path / name)
    first_tick = encoding.get("first_tick", 0)
    assert facts.health == "ok"
    assert facts.frames == 60 + min(0, first_tick)
    assert facts.variable_rate == encoding.get("variable_rate", False)
    if not facts.variable_rate:
        assert Fraction(facts.fps_numerator, facts.fps_denominator) == 25
        assert facts.duration_seconds == pytest.approx(facts.frames / 25)
    if "codec" not in encoding:
        assert facts.reorder_depth == encoding.get("b_frames", 0)
        assert facts.codec == "h264"
    assert (gops.pts[0] < facts.start_pts) == (first_tick < 0)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_open_and_closed_gops(tmp_path, codec, name):
    clips.write_numbered(tmp_path / name, 60, gop=12, codec=codec, b_frames=3)
    _, closed = probe_video(tmp_path / name)
    assert closed.idr.all()
    assert closed.clean.all()
    assert not closed.leading.any()
    clips.write_numbered(tmp_path / name, 60, gop=12, codec=codec, b_frames=3, open_gop=True)
    _, gops = probe_video(tmp_path / name)
    assert gops.idr.tolist() == [True, False, False, False, False]
    assert gops.clean.all()
    assert gops.leading[0] == 0
    assert gops.leading[1] == 3
    # Exactness from an open GOP's keyframe on is what `clean` promises.
    start = int(gops.pts[2])
    with av.open(str(tmp_path / name)) as container:
        packets = list(container.demux(video=0))
        first = next(index for index, packet in enumerate(packets) if packet.pts == start)
        frames = [frame for packet in packets[first:] for frame in packet.decode()]
    numbers = [clips.read_number(frame.to_ndarray(format="rgb24"))[1] for frame in frames if frame.pts >= start]
    assert numbers == list(range(24, 60))


def test_a_refresh_without_keyframes_is_not_clean(tmp_path):
    # x264 marks the start of a periodic intra refresh as a recovery point that takes some frames.
    clips.write_numbered(tmp_path / "a.mkv", 60, gop=12, options={"intra-refresh": "1"})
    with av.open(str(tmp_path / "a.mkv")) as source:
        packets = [p for p in source.demux(video=0) if p.size]
        with av.open(str(tmp_path / "b.mkv"), "w") as target:
            stream = target.add_stream_from_template(source.streams.video[0])
            for packet in packets[3:]:
                packet.stream = stream
                packet.is_keyframe = True
                target.mux(packet)
    facts, gops = probe_video(tmp_path / "b.mkv", content_box=False)
    assert not gops.idr.any()
    assert not gops.clean.any()
    assert "first keyframe is not a clean start" in facts.health
    assert gops.clean_start(40) == 0


def test_locate_and_clean_start(tmp_path):
    clips.write_numbered(tmp_path / "a.mp4", 30, gop=12)
    _, gops = probe_video(tmp_path / "a.mp4")
    assert [gops.locate(frame) for frame in (0, 11, 12, 23, 24, 29)] == [0, 0, 1, 1, 2, 2]
    assert gops.clean_start(29) == 2
    for frame in (-1, 30):
        with pytest.raises(IndexError, match=r"0\.\.29"):
            gops.locate(frame)
    unclean = replace(gops, clean=np.array([False, True, False]))
    assert [unclean.clean_start(frame) for frame in (3, 13, 29)] == [0, 1, 1]
    assert unclean[1:].clean.tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.mov", "libx265"), ("a.mkv", "libx264"), ("a.ts", "libx264")]
)
def test_bytes_and_checksums(tmp_path, name, codec):
    path = tmp_path / name
    clips.write_numbered(path, 40, gop=12, codec=codec, b_frames=2)
    _, gops = probe_video(path, checksum=True)
    assert probe_video(path)[1].crc32 is None
    payloads: list[bytes] = []
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.is_keyframe:
                payloads.append(b"")
            if packet.size:
                payloads[-1] += bytes(packet)
    assert gops.crc32 is not None
    assert gops.crc32.tolist() == [zlib.crc32(payload) for payload in payloads]
    if name in ("a.mp4", "a.mov"):
        data = path.read_bytes()
        cut = [data[start : start + size] for start, size in zip(gops.byte_offset, gops.num_bytes, strict=True)]
        assert cut == payloads
        damaged = bytearray(data)
        damaged[gops.byte_offset[2] + gops.num_bytes[2] // 2] ^= 1
        path.write_bytes(damaged)
        after = probe_video(path, checksum=True)[1].crc32
        assert after is not None
        assert (after != gops.crc32).tolist() == [False, False, True, False]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_rotation_turns_pictures_upright(tmp_path, name, rotation):
    clips.write_numbered(tmp_path / name, 5, video_id=3, rotation=rotation, audio=True)
    facts, _ = probe_video(tmp_path / name)
    assert (facts.rotation, facts.width, facts.height) == (rotation, 128, 96)
    assert facts.upright_size == ((96, 128) if rotation % 180 else (128, 96))
    assert (facts.box_width, facts.box_height) == facts.upright_size
    with av.open(str(tmp_path / name)) as container:
        frame = next(container.decode(video=0))
    assert frame.rotation % 360 == facts.rotation
    assert clips.read_number(np.rot90(frame.to_ndarray(format="rgb24"), facts.rotation // 90)) == (3, 0)


def bordered(height: int, width: int, box: tuple[int, int, int, int], value: int = 150) -> np.ndarray:
    left, top, box_width, box_height = box
    picture = np.zeros((height, width, 3), np.uint8)
    picture[top : top + box_height, left : left + box_width] = value
    return picture


def found_box(path) -> tuple[int, int, int, int]:
    facts, _ = probe_video(path)
    return facts.box_left, facts.box_top, facts.box_width, facts.box_height


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv444p"])
@pytest.mark.parametrize("rotation", [0, 90])
def test_content_box_in_a_black_border(tmp_path, pix_fmt, rotation):
    picture = bordered(192, 256, (40, 24, 160, 128))
    clips.write_pictures(tmp_path / "a.mkv", [picture] * 6, gop=3, pix_fmt=pix_fmt, rotation=rotation)
    assert np.abs(np.subtract(found_box(tmp_path / "a.mkv"), (40, 24, 160, 128))).max() <= 2


def test_content_box_of_a_disc_beside_text(tmp_path):
    rows, columns = np.ogrid[:240, :320]
    picture = np.zeros((240, 320, 3), np.uint8)
    picture[(rows - 120) ** 2 + (columns - 180) ** 2 < 100**2] = 120
    for left in range(4, 70, 8):
        picture[10:20, left : left + 4] = 255
    clips.write_pictures(tmp_path / "a.mp4", [picture] * 4)
    left, top, width, height = found_box(tmp_path / "a.mp4")
    assert (left, top) == (pytest.approx(80, abs=4), pytest.approx(20, abs=4))
    assert (width, height) == (pytest.approx(200, abs=6), pytest.approx(200, abs=6))
    assert {left % 2, top % 2, width % 2, height % 2} == {0}


def test_content_box_survives_dark_scenes_and_nothing_at_all(tmp_path):
    half_lit = [bordered(96, 128, (16, 8, 96, 80), value) for value in (0, 0, 3, 90, 0)]
    half_lit[3][:, :64] = 0
    half_lit[4] = bordered(96, 128, (16, 8, 48, 80), 60)
    clips.write_pictures(tmp_path / "a.mp4", half_lit, gop=1)
    assert found_box(tmp_path / "a.mp4") == (16, 8, 96, 80)
    clips.write_pictures(tmp_path / "b.mp4", [np.zeros((96, 128, 3), np.uint8)] * 3)
    assert found_box(tmp_path / "b.mp4") == (0, 0, 128, 96)
    clips.write_pictures(tmp_path / "c.mp4", [bordered(96, 128, (16, 8, 20, 80))] * 3)
    assert found_box(tmp_path / "c.mp4") == (0, 0, 128, 96)


def test_content_box_decodes_at_most_eight_keyframes_or_one(tmp_path, monkeypatch):
    clips.write_numbered(tmp_path / "a.mp4", 40, gop=2, rotation=90)
    decoded = []

    def watched(*arguments):
        for frame in keyframes(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(probe, "keyframes", watched)
    with_box, _ = probe_video(tmp_path / "a.mp4")
    assert len(set(decoded)) == 8
    decoded.clear()
    without_box, _ = probe_video(tmp_path / "a.mp4", content_box=False)
    assert without_box == with_box
    assert len(decoded) == 1, "which says how it is turned"


def test_content_box_falls_back_when_nothing_decodes(tmp_path, monkeypatch):
    clips.write_pictures(tmp_path / "a.mp4", [bordered(96, 128, (16, 8, 96, 80))] * 4)
    monkeypatch.setattr(probe, "keyframes", lambda *_: iter(()))
    facts, _ = probe_video(tmp_path / "a.mp4")
    assert (facts.box_width, facts.box_height) == (128, 96)
    assert facts.health == "orientation and content box: no keyframe could be decoded"
    assert find_content_box([], 0) is None


def test_odd_picture_sizes(tmp_path):
    clips.write_pictures(tmp_path / "a.mkv", [np.full((97, 131, 3), 99, np.uint8)] * 3, pix_fmt="yuv444p")
    assert found_box(tmp_path / "a.mkv") == (0, 0, 131, 97)


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def test_truncated_mp4(tmp_path):
    clips.write_numbered(tmp_path / "a.mp4", 250, gop=12)
    cut_in_half(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match=r"a\.mp4: cannot be opened as a video .*; copy it again"):
        probe_video(tmp_path / "a.mp4")
    clips.write_numbered(tmp_path / "b.mp4", 250, gop=12, container_options={"movflags": "faststart"})
    cut_in_half(tmp_path / "b.mp4")
    facts, gops = probe_video(tmp_path / "b.mp4")
    assert 50 < facts.frames < 200
    assert f"truncated: {facts.frames} of 250 frames are readable" in facts.health
    with av.open(str(tmp_path / "b.mp4")) as container:
        frames = [frame for packet in container.demux(video=0) if not packet.is_corrupt for frame in packet.decode()]
    assert len(frames) == facts.frames
    assert gops.first_frame[-1] + gops.frames[-1] == facts.frames


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.avi", "mpeg4")])
def test_other_truncated_containers(tmp_path, name, codec):
    clips.write_numbered(tmp_path / name, 250, gop=12, codec=codec)
    cut_in_half(tmp_path / name)
    facts, _ = probe_video(tmp_path / name)
    assert 50 < facts.frames < 200
    assert "truncated" in facts.health


def write_audio(path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_files_that_are_no_video(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    write_audio(tmp_path / "sound.mp4")
    clips.write_numbered(tmp_path / "one.mp4", 1)
    clips.write_numbered(tmp_path / "many.mkv", 12, gop=12)
    clips.remux(
        tmp_path / "many.mkv",
        tmp_path / "still.mkv",
        change=lambda _, packet: setattr(packet, "pts", 0) or setattr(packet, "dts", 0),
    )
    clips.remux(tmp_path / "many.mkv", tmp_path / "no_key.ts", change=lambda index, _: index >= 3)
    clips.write_numbered(tmp_path / "raw.h264", 12)
    clips.write_numbered(tmp_path / "b_frames.avi", 24, b_frames=2)
    expected = {
        "missing.mp4": "No such file",
        "empty.mp4": "the file is empty",
        "text.mp4": "cannot be opened as a video",
        "noise.mp4": "cannot be opened as a video",
        "sound.mp4": r"no video stream \(it holds audio\)",
        "one.mp4": r"shows 1 frame\(s\), at least 2",
        "still.mkv": r"shows 1 frame\(s\), at least 2",
        "no_key.ts": "picture size is 0x0",
        "raw.h264": "packet 0 has no timestamp, and a remux would guess it wrong; re-encode it",
        "b_frames.avi": "its pictures come in another order than their timestamps",
        ".": "cannot be opened as a video",
    }
    for name, reason in expected.items():
        with pytest.raises(VideoError, match=reason) as caught:
            probe_video(tmp_path / name)
        assert str(tmp_path) in str(caught.value)


def test_no_keyframe(tmp_path):
    class WithoutKeyframes:
        def demux(self, stream):
            for packet in container.demux(stream):
                packet.is_keyframe = False
                yield packet

    clips.write_numbered(tmp_path / "a.mp4", 12)
    with (
        av.open(str(tmp_path / "a.mp4")) as container,
        (tmp_path / "a.mp4").open("rb") as file,
        closing(PayloadFinder(str(tmp_path / "a.mp4"), file)) as finder,
        pytest.raises(VideoError, match="none of its 12 packets is a keyframe"),
    ):
        read_packets("a.mp4", WithoutKeyframes(), container.streams.video[0], finder, checksum=False)  # pyright: ignore[reportArgumentType]


def test_unusual_names(tmp_path, monkeypatch):
    names = ["Eingriff 3 (Köln).mp4", "手術 01.mp4", "a:b.mp4", "frame%03d.mp4", "#1?.mp4"]
    monkeypatch.chdir(tmp_path)
    for name in names:
        clips.write_numbered(tmp_path / "plain.mp4", 3)
        shutil.move(tmp_path / "plain.mp4", tmp_path / name)
        facts, _ = probe_video(name)
        assert facts.path == str(tmp_path / name)
        assert facts.size_bytes == (tmp_path / name).stat().st_size


def test_repeated_and_backward_timestamps(tmp_path):
    clips.write_numbered(tmp_path / "a.mkv", 36, gop=12)

    def repeat(index, packet):
        if index == 20:
            packet.pts = packet.dts = packet.pts - 40

    clips.remux(tmp_path / "a.mkv", tmp_path / "repeat.mkv", change=repeat)
    facts, gops = probe_video(tmp_path / "repeat.mkv")
    assert facts.frames == 35
    assert facts.health == "repeated timestamps, not counted as frames: 1"
    assert gops.frames.tolist() == [12, 11, 12]

    # Two recordings written one after the other start at the same time twice.
    clips.write_numbered(tmp_path / "a.ts", 36, gop=12)
    with open(tmp_path / "joined.ts", "wb") as joined:
        joined.write((tmp_path / "a.ts").read_bytes() * 2)
    facts, gops = probe_video(tmp_path / "joined.ts")
    assert facts.frames >= 34
    assert "timestamps jump back" in facts.health
    assert (np.diff(gops.pts) > 0).all()

    # A program stream gives no byte positions: one time would stand for two places.
    clips.write_numbered(tmp_path / "a.mpg", 36, codec="mpeg2video", gop=12)
    (tmp_path / "joined.mpg").write_bytes((tmp_path / "a.mpg").read_bytes() * 2)
    with pytest.raises(VideoError, match=r"joined\.mpg: its timestamps jump back.*remux it"):
        probe_video(tmp_path / "joined.mpg")


def test_frames_before_the_first_keyframe_do_not_count(tmp_path):
    clips.write_numbered(tmp_path / "a.mkv", 36, gop=12, b_frames=2)
    clips.remux(tmp_path / "a.mkv", tmp_path / "b.mkv", change=lambda index, _: index >= 5)
    facts, gops = probe_video(tmp_path / "b.mkv")
    assert facts.frames == 24
    assert gops.first_frame.tolist() == [0, 12]
    numbers = [number for pts, number in decoded_frames(tmp_path / "b.mkv") if pts >= facts.start_pts]
    assert numbers == list(range(12, 36))


def test_cover_art_and_damaged_metadata(tmp_path):
    cover = io.BytesIO()
    with av.open(cover, "w", format="mjpeg") as container:
        stream = container.add_stream("mjpeg", rate=1)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuvj420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuvj420p")))
        container.mux(stream.encode(None))
    clips.write_numbered(tmp_path / "a.mkv", 12)
    with av.open(str(tmp_path / "a.mkv")) as source, av.open(str(tmp_path / "b.mp4"), "w") as target:
        target.metadata["title"] = "Eingriff"
        with av.open(io.BytesIO(cover.getvalue()), format="mjpeg") as art:
            picture = target.add_stream_from_template(art.streams.video[0])
            picture.disposition = Disposition.attached_pic.value  # PyAV 17.0 takes only the number
            video = target.add_stream_from_template(source.streams.video[0])
            packet = next(art.demux(video=0))
            packet.stream, packet.pts, packet.dts = picture, 0, 0
            target.mux(packet)
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = video
                    target.mux(packet)
    data = (tmp_path / "b.mp4").read_bytes()
    assert data.count(b"Eingriff") == 1
    (tmp_path / "b.mp4").write_bytes(data.replace(b"Eingriff", b"\xff\xfe\xfdingri"[:8]))
    facts, _ = probe_video(tmp_path / "b.mp4")
    assert (facts.frames, facts.codec, facts.width) == (12, "h264", 128)


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_end_in_facts_or_a_video_error(tmp_path, seed):
    rng = np.random.default_rng(seed)
    usable = 0
    for name, codec in [("a.mp4", "libx264"), ("a.mkv", "libx265"), ("a.ts", "libx264"), ("a.webm", "libvpx")]:
        clips.write_numbered(tmp_path / name, 30, gop=6, codec=codec)
        data = bytearray((tmp_path / name).read_bytes())
        for position in rng.integers(0, len(data), 30):
            data[position] = rng.integers(0, 256)
        (tmp_path / name).write_bytes(data)
        try:
            facts, gops = probe_video(tmp_path / name)
        except VideoError:
            continue
        usable += 1
        assert gops.frames.sum() == facts.frames
    assert usable <= 4


def test_one_reorder_depth_by_hand():
    packets = Packets(*([] for _ in range(10)), notes=[])  # pyright: ignore[reportArgumentType]
    packets.pts = [0, 4, 2, 1, 3, 8, 6, 5, 7]  # pyright: ignore[reportAttributeAccessIssue]
    packets.dts = packets.pos = packets.size = packets.offset = packets.layer = packets.pts
    packets.flags = [KEY, *[0] * 8]  # pyright: ignore[reportAttributeAccessIssue]
    packets.idr = packets.clean = [1]  # pyright: ignore[reportAttributeAccessIssue]
    _, frame_pts, depth = number_frames("x", packets, checksum=False)
    assert frame_pts.tolist() == list(range(9))
    assert depth == 3


def test_only_the_highest_temporal_layer_is_disposable():
    """A picture that nothing in its own layer refers to may be referred to from above (ITU-T H.265, table 7-1)."""
    layers = [-1, -1, 0, 1, 2, 2]  # key, layer 0 referred to, then not within their layers: 0, 1, 2, 2
    packets = Packets(*([] for _ in range(10)), notes=[])  # pyright: ignore[reportArgumentType]
    packets.pts = packets.dts = packets.pos = packets.size = packets.offset = list(range(6))  # pyright: ignore[reportAttributeAccessIssue]
    packets.layer = layers  # pyright: ignore[reportAttributeAccessIssue]
    packets.flags = [KEY, *[0] * 5]  # pyright: ignore[reportAttributeAccessIssue]
    packets.idr = packets.clean = [1]  # pyright: ignore[reportAttributeAccessIssue]
    gops, _, _ = number_frames("x", packets, checksum=False)
    assert (gops.packets[:].flags & DISPOSABLE != 0).tolist() == [False, False, False, False, True, True]


def write_long_video(path: Path, seconds: int, gop: int) -> None:
    """An hour-long 1080p H.264 file at some 4 Mbit/s: ten coded seconds, their packets repeated with shifted times."""
    rng = np.random.default_rng(0)
    texture = rng.integers(40, 200, (68, 120, 3)).astype(np.uint8).repeat(20, 0).repeat(20, 1)
    pictures = (
        np.ascontiguousarray(texture[i % 200 : i % 200 + 1080, 2 * i % 400 : 2 * i % 400 + 1920]) for i in range(250)
    )
    ten_seconds = path.with_name("ten_seconds.mp4")
    coding = {"preset": "ultrafast", "b": "4M", "maxrate": "4M", "bufsize": "4M"}
    clips.write_pictures(ten_seconds, pictures, gop=gop, b_frames=2, options=coding)
    with av.open(str(ten_seconds)) as source, av.open(str(path), "w") as target:
        template = source.streams.video[0]
        stream = target.add_stream_from_template(template)
        packets = [(p.pts, p.dts, p.is_keyframe, bytes(p)) for p in source.demux(template) if p.size]
        assert template.time_base is not None
        ticks = round(10 / template.time_base)
        for repeat in range(seconds // 10):
            for pts, dts, is_keyframe, payload in packets:
                packet = av.Packet(payload)
                packet.stream, packet.time_base, packet.is_keyframe = stream, template.time_base, is_keyframe
                assert pts is not None
                assert dts is not None
                packet.pts, packet.dts, packet.duration = pts + repeat * ticks, dts + repeat * ticks, ticks // 250
                target.mux(packet)


@pytest.mark.slow
@pytest.mark.parametrize("gop", [50, 250])
def test_an_hour_indexes_500_times_faster_than_it_plays(tmp_path, gop):
    path = tmp_path / "hour.mp4"
    write_long_video(path, 3600, gop)
    probe_video(path)
    started, cpu_started = time.perf_counter(), time.process_time()
    facts, gops = probe_video(path)
    cpu_seconds = time.process_time() - cpu_started
    wall_seconds = time.perf_counter() - started
    megabits = path.stat().st_size * 8 / 3600e6
    print(
        f"\n1080p H.264, 1 hour, {megabits:.1f} Mbit/s, GOP {gop}: {3600 / cpu_seconds:,.0f} times real time in CPU time, "
        f"{3600 / wall_seconds:,.0f} on the clock"
    )
    assert (facts.frames, len(gops)) == (90_000, 90_000 // gop)
    assert 3600 / cpu_seconds >= 500


@pytest.mark.skipif("TROCAR_TEST_VIDEOS" not in os.environ, reason="TROCAR_TEST_VIDEOS names no folder of real videos")
def test_real_videos_agree_with_decoding():
    paths = sorted(Path(os.environ["TROCAR_TEST_VIDEOS"]).glob("*.mp4"))
    for path in paths[:: max(1, len(paths) // 5)]:
        facts, gops = probe_video(path)
        with av.open(str(path)) as container:
            pts = [frame.pts for frame in container.decode(video=0)]
        assert (len(pts), pts[0]) == (facts.frames, facts.start_pts)
        assert [pts[frame] for frame in gops.first_frame] == gops.pts.tolist()
