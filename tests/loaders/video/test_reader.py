"""A window decodes to the frames it was cut for, whatever codec, container and GOP, and holds no more than it must."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest
from av.video.frame import PictureType, VideoFrame
from numpy.typing import NDArray

from trocar.loaders.video.decode import DecodeCount, WindowDecoder
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.reader import DemuxReader
from trocar.loaders.video.video import GopTable, PacketFlag, VideoError, VideoFacts
from trocar.loaders.video.window import Window, WindowReader

FPS = 25
GAPS = [1, 1, 2, 4]
HIDDEN = {"hidden_frames": True}
OPEN = {"b_frames": 3, "open_gop": True}
PYRAMID = "keyint=30:min-keyint=30:scenecut=0:bframes=7:b-adapt=0:b-pyramid=normal"
PYRAMID_X265 = "keyint=30:min-keyint=30:scenecut=0:bframes=4:b-adapt=0:b-pyramid=1:open-gop=1:pools=none:log-level=none"
HEVC, VP8, VP9 = ({"codec": codec} for codec in ("libx265", "libvpx", "libvpx-vp9"))

CASES: list[tuple[str, int, dict[str, Any]]] = [
    *(("a.mp4", gop, {"b_frames": b_frames}) for gop in (1, 12, 30, 250) for b_frames in (0, 3) if gop > b_frames),
    *(("a.mp4", gop, OPEN) for gop in (12, 30, 250)),
    *((name, 12, OPEN) for name in ("a.mkv", "a.mov", "a.ts")),
    *((name, 30, {"options": {"x264-params": PYRAMID}}) for name in ("a.mp4", "a.ts")),
    ("a.mp4", 30, {"options": {"x264-params": f"{PYRAMID}:open-gop=1:tff=1"}}),
    ("a.ts", 30, {"options": {"x264-params": f"{PYRAMID}:open-gop=1:tff=1"}}),
    ("a.mkv", 30, {**HEVC, "options": {"x265-params": PYRAMID_X265}}),
    ("a.m2ts", 12, {**OPEN, "container_options": {"mpegts_m2ts_mode": "1"}}),
    ("a.ts", 250, {}),
    ("a.ts", 30, {"b_frames": 3, "audio": True}),
    ("a.avi", 30, {}),
    ("a.mp4", 30, {"audio": True, "b_frames": 2}),
    ("a.mp4", 12, {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "b_frames": 3}),
    *(("a.mp4", gop, {**HEVC, "b_frames": 3}) for gop in (12, 250)),
    ("a.mp4", 1, HEVC),
    *((name, 12, {**HEVC, **OPEN}) for name in ("a.mp4", "a.mkv", "a.ts")),
    *(("a.webm", gop, {**codec, **hidden}) for codec in (VP8, VP9) for gop in (12, 250) for hidden in ({}, HIDDEN)),
    ("a.avi", 12, {"codec": "mpeg4"}),
    ("a.avi", 12, {"codec": "mpeg4", "b_frames": 2}),
    ("a.mp4", 30, {"codec": "mpeg4", "b_frames": 2}),
    ("a.mpg", 12, {"codec": "mpeg2video", "b_frames": 2}),
    ("a.avi", 1, {"codec": "mjpeg"}),
    ("a.mp4", 12, {"variable_rate": True}),
    ("a.mkv", 30, {"variable_rate": True, **OPEN}),
    ("a.mp4", 12, {"first_tick": 40}),
    *(("a.mp4", 12, {"first_tick": first_tick, "b_frames": 3}) for first_tick in (-7, -17)),
    ("a.mkv", 30, {"pix_fmt": "yuv420p10le", "b_frames": 3}),
    ("a.mp4", 12, {**HEVC, "pix_fmt": "yuv420p10le", "b_frames": 3}),
    *(("a.mp4", 12, {"rotation": rotation}) for rotation in (90, 180, 270)),
    ("a.mkv", 12, {"rotation": 90, "b_frames": 3}),
]


class VideoReader:
    """A window reader and a decoder of its windows."""

    def __init__(self, facts: VideoFacts) -> None:
        self.windows, self.decoder = WindowReader(facts), WindowDecoder(facts)
        self.bytes_read = 0

    def window(self, frames: NDArray[np.int64], gops: GopTable) -> Window:
        return self.windows.window(frames, gops)

    def frames(
        self, frames: NDArray[np.int64], gops: GopTable, count: DecodeCount
    ) -> Iterator[tuple[int, VideoFrame, int]]:
        """(frame number, frame, pts)"""
        window = self.window(frames, gops)
        self.bytes_read = window.bytes_read
        for index, frame in self.decoder.frames(window, count):
            yield int(window.frames[index]), frame, int(window.pts[index])

    def close(self) -> None:
        self.windows.close()
        self.decoder.close()


@dataclass
class Numbered:
    """A video whose frame i carries number `first_number` + i and stands at seconds[i]."""

    facts: VideoFacts
    gops: GopTable
    video_id: int
    first_number: int
    seconds: NDArray[np.float64]

    def check(self, reader: VideoReader, frames: NDArray[np.int64]) -> DecodeCount:
        """Reads `frames`; every one must be the right one of the right video, in order and at its time."""
        count = DecodeCount()
        time_base = self.facts.time_base_numerator / self.facts.time_base_denominator
        read = list(reader.frames(frames, self.gops, count))
        assert [number for number, _, _ in read] == frames.tolist()
        for number, frame, pts in read:
            picture = np.rot90(frame.to_ndarray(format="rgb24"), self.facts.rotation // 90)
            assert clips.read_number(picture) == (self.video_id, self.first_number + number)
            seconds = (pts - self.facts.start_pts) * time_base
            assert seconds == pytest.approx(self.seconds[number], abs=0.0011)
        return count


def write_case(folder: Path, case: int, frames: int = 0) -> Numbered:
    name, gop, encoding = CASES[case]
    path = folder / f"{case} {name}"
    frames = frames or min(70 + 2 * gop, 320)
    clips.write_numbered(path, frames, video_id=case, first_number=1000, gop=gop, **encoding)
    facts, gops = probe_video(path, content_box=False)
    gaps = np.resize(GAPS if encoding.get("variable_rate") else [1], frames)
    seconds = np.concatenate([[0], np.cumsum(gaps)])[:frames] / FPS
    hidden = max(0, -encoding.get("first_tick", 0))
    assert facts.frames == frames - hidden
    return Numbered(facts, gops, case, 1000 + hidden, seconds[hidden:] - seconds[hidden])


def random_clips(rng: np.random.Generator, num_frames: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Clips of 1 to 16 frames at strides 1 to 8; the first two start as early and end as late as any can."""
    for index in range(count):
        stride = int(rng.integers(1, 9))
        length = int(rng.integers(1, min(16, (num_frames - 1) // stride + 1) + 1))
        last_start = num_frames - (length - 1) * stride - 1
        start = (0, last_start)[index] if index < 2 else int(rng.integers(0, last_start + 1))
        yield start + stride * np.arange(length)


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: str(CASES[case]))
def test_every_frame_is_the_one_asked_for(tmp_path, case):
    video = write_case(tmp_path, case)
    reader = VideoReader(video.facts)
    for frames in random_clips(np.random.default_rng(case), video.facts.frames, 12):
        video.check(reader, frames)
    reader.close()


def test_joined_transport_streams_are_read_from_the_first(tmp_path):
    clips.write_numbered(tmp_path / "b.ts", 100, video_id=2, gop=12, b_frames=2)
    clips.write_numbered(tmp_path / "a.ts", 100, video_id=1, first_number=1000, gop=12, b_frames=2)
    with open(tmp_path / "a.ts", "ab") as file:
        file.write((tmp_path / "b.ts").read_bytes())
    facts, gops = probe_video(tmp_path / "a.ts", content_box=False)
    assert "timestamps jump back" in facts.health
    # The last packets before the seam may count as damaged: the stream's packet counters jump there.
    facts = replace(facts, frames=95)
    video = Numbered(facts, gops, 1, 1000, np.arange(facts.frames) / FPS)
    reader = VideoReader(facts)
    for frames in random_clips(np.random.default_rng(0), facts.frames, 20):
        video.check(reader, frames)
    reader.close()


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: str(CASES[case]))
def test_every_frame_of_a_longer_video(tmp_path, case):
    video = write_case(tmp_path, case, frames=700)
    reader = VideoReader(video.facts)
    for frames in random_clips(np.random.default_rng(case), video.facts.frames, 5000 // len(CASES) + 1):
        video.check(reader, frames)
    reader.close()


class CountingDecoder:
    """A decoder that counts what goes in and comes out; everything else is the decoder's own."""

    def __init__(self, decoder: Any) -> None:
        self.__dict__.update(decoder=decoder, packets=0, frames=0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.decoder, name, value)

    def decode(self, packet: Any) -> list[Any]:
        frames = self.decoder.decode(packet)
        self.__dict__["packets"] += packet is not None
        self.__dict__["frames"] += len(frames)
        return frames


@pytest.mark.parametrize("b_frames", [0, 3])
@pytest.mark.parametrize("gop", [12, 30, 60, 250])
def test_no_more_is_decoded_than_the_gop_asks_for(tmp_path, gop, b_frames):
    clips.write_numbered(tmp_path / "a.mp4", 640, width=64, height=48, gop=gop, b_frames=b_frames)
    facts, gops = probe_video(tmp_path / "a.mp4", content_box=False)
    reader = VideoReader(facts)
    every = reader.frames(np.arange(facts.frames), gops, DecodeCount())
    is_b_frame = np.array([frame.pict_type == PictureType.B for _, frame, _ in every])
    decoder = CountingDecoder(reader.decoder._codec(True))
    reader.decoder._codec = lambda _: decoder  # pyright: ignore[reportAttributeAccessIssue]
    span = 15 * 4 + 1
    count, bounds = DecodeCount(), []
    for start in np.random.default_rng(gop).integers(0, facts.frames - span + 1, 40):
        before = count.packets
        wanted = start + 4 * np.arange(16)
        assert len(list(reader.frames(wanted, gops, count))) == 16
        first = int(gops.first_frame[gops.clean_start(int(start))])
        bounds.append(int(start) - first + span)
        # B-frames that nobody wants are not even read, nor what stands behind the last wanted frame of a GOP.
        needed = 0
        for gop_start in range(first, int(wanted[-1]) + 1, gop):
            here = wanted[(wanted >= gop_start) & (wanted < gop_start + gop)]
            if len(here):
                needed += np.count_nonzero(~is_b_frame[gop_start : here[-1] + 1]) + np.count_nonzero(is_b_frame[here])
                needed += is_b_frame[here[-1]]
        assert count.packets - before == needed
        rows = gops[gops.locate(first) : gops.locate(int(wanted[-1])) + 1]
        assert reader.bytes_read <= rows.num_bytes.sum()
    reader.close()
    assert (count.packets, count.frames) == (decoder.packets, decoder.frames)
    bound = sum(bounds)
    print(
        f"\nGOP {gop}, {b_frames} B-frames: a clip takes {count.packets / 40:.1f} packets (bound {bound / 40:.1f}); "
        f"amplification {count.packets / 640:.2f}"
    )
    assert count.frames == count.packets <= bound
    assert b_frames or count.packets >= bound - 40 * 3 * (1 + span // gop)


def test_a_file_that_is_gone_or_has_changed_is_refused(tmp_path):
    path = tmp_path / "a.mp4"
    clips.write_numbered(path, 30)
    facts, _ = probe_video(path)
    with pytest.raises(VideoError, match=r"a\.mp4: changed since it was indexed; run `trocar index` again"):
        VideoReader(replace(facts, size_bytes=facts.size_bytes - 1))
    os.utime(path, ns=(0, facts.mtime_ns + 1))
    with pytest.raises(VideoError, match=r"a\.mp4: changed since it was indexed"):
        VideoReader(facts)
    path.unlink()
    with pytest.raises(VideoError, match=r"a\.mp4: No such file or directory; restore the file"):
        VideoReader(facts)
    path.write_text("no video")
    status = path.stat()
    with pytest.raises(VideoError, match=r"a\.mp4: cannot be opened \(.*\); copy it again or leave it out"):
        DemuxReader(replace(facts, size_bytes=status.st_size, mtime_ns=status.st_mtime_ns))


@pytest.mark.parametrize("name", ["a.mp4", "a.ts", "a.mkv"])
def test_an_index_of_another_file_is_noticed(tmp_path, name):
    clips.write_numbered(tmp_path / name, 60, gop=12)
    facts, gops = probe_video(tmp_path / name)
    reader = VideoReader(facts)
    with pytest.raises(VideoError, match=r"contradict each other; run `trocar index` again"):
        list(reader.frames(np.array([30]), replace(gops, pts=gops.pts + 1), DecodeCount()))
    longer = replace(gops, frames=gops.frames + np.array([0, 0, 0, 0, 10], np.int32))
    with pytest.raises(VideoError, match=r"frame 65 is not in the index; run `trocar index` again"):
        list(reader.frames(np.array([58, 65]), longer, DecodeCount()))
    packets = gops.packets[0:60]
    later = replace(
        gops, pts=gops.pts + 1, packets=replace(packets, pts=packets.pts + 1, offset=packets.offset * 0 - 1)
    )
    with pytest.raises(VideoError, match=r"no packet of \d+ bytes at timestamp .*run `trocar index` again"):
        list(reader.frames(np.array([30]), later, DecodeCount()))
    sizes = replace(gops, packets=replace(packets, size=packets.size + 1, offset=packets.offset * 0 - 1))
    with pytest.raises(VideoError, match=r"no packet of \d+ bytes at timestamp .*run `trocar index` again"):
        list(reader.frames(np.array([30]), sizes, DecodeCount()))
    assert [number for number, _, _ in reader.frames(np.array([58]), gops, DecodeCount())] == [58]
    reader.close()


def overwrite(facts: VideoFacts, gops: GopTable, row: int) -> VideoFacts:
    """Overwrites the middle of a GOP's bytes with noise, unnoticed by size and time."""
    start, length = int(gops.byte_offset[row]), int(gops.num_bytes[row])
    with open(facts.path, "r+b") as file:
        file.seek(start + length // 4)
        file.write(np.random.default_rng(0).bytes(length // 2))
    os.utime(facts.path, ns=(0, facts.mtime_ns))
    return facts


@pytest.mark.parametrize("encoding", [{}, {"b_frames": 3}, {**HEVC, "b_frames": 3}, {"codec": "mpeg4"}], ids=str)
def test_a_damaged_gop_spoils_no_other(tmp_path, encoding):
    clips.write_numbered(tmp_path / "a.mp4", 90, video_id=4, gop=12, **encoding)
    facts, gops = probe_video(tmp_path / "a.mp4")
    video = Numbered(overwrite(facts, gops, 3), gops, 4, 0, np.arange(90) / FPS)
    reader = VideoReader(facts)
    for _ in range(3):
        with pytest.raises(VideoError, match=r"a\.mp4: .*re-encode it"):
            list(reader.frames(np.arange(30, 46), gops, DecodeCount()))
        video.check(reader, np.arange(0, 36))
        video.check(reader, np.arange(48, 90))
    reader.close()


def test_a_reader_left_half_way_starts_clean(tmp_path):
    video = write_case(tmp_path, CASES.index(("a.mp4", 12, OPEN)))
    reader = VideoReader(video.facts)
    for stop in (1, 2, 5):
        unfinished = reader.frames(np.arange(20, 40), video.gops, DecodeCount())
        for _ in range(stop):
            next(unfinished)
        video.check(reader, np.arange(3, 30, 2))
    reader.close()


def test_a_damaged_packet_on_the_way_is_not_concealed(tmp_path):
    """A hole in a transport stream is seen by its packet counters, though what is left of the picture may decode."""
    clips.write_numbered(tmp_path / "whole.ts", 60, width=320, height=240, gop=12)
    data = bytearray((tmp_path / "whole.ts").read_bytes())
    _, gops = probe_video(tmp_path / "whole.ts", content_box=False)
    hole = int(gops.byte_offset[2]) + 188 * 2
    (tmp_path / "a.ts").write_bytes(data[:hole] + data[hole + 188 :])
    facts, gops = probe_video(tmp_path / "a.ts", content_box=False)
    assert "corrupt packets: 13" in facts.health
    assert (gops.frames[2], gops.clean[2]) == (0, False)
    reader = VideoReader(facts)
    first = int(gops.first_frame[1])
    across = [
        frame.to_ndarray(format="rgb24")
        for _, frame, _ in reader.frames(np.arange(first, first + 20), gops, DecodeCount())
    ]
    assert [clips.read_number(picture)[1] for picture in across] == [*range(12, 23), *range(36, 45)]
    flagged = gops.packets[0 : int(gops.num_packets.sum())]
    flagged.flags[int(gops.first_packet[1]) + 3] |= PacketFlag.CORRUPT
    with pytest.raises(VideoError, match="need a damaged packet"):
        list(reader.frames(np.arange(first, first + 5), replace(gops, packets=flagged), DecodeCount()))
    assert len(list(reader.frames(np.arange(first), gops, DecodeCount()))) == first
    last = gops.first_frame[-1]
    pictures = [
        frame.to_ndarray(format="rgb24") for _, frame, _ in reader.frames(last + np.arange(8), gops, DecodeCount())
    ]
    assert [clips.read_number(picture)[1] for picture in pictures] == list(range(48, 56))
    reader.close()


def test_a_change_of_size_on_the_way_is_refused(tmp_path):
    """Two recordings of different sizes in one stream, as a change of the camera leaves them."""
    clips.write_numbered(tmp_path / "small.ts", 24, gop=12, width=64, height=48)
    clips.write_numbered(tmp_path / "large.ts", 24, gop=12)
    with av.open(str(tmp_path / "a.ts"), "w") as target:
        stream = None
        for name, shift in [("large.ts", 0), ("small.ts", 24 * 3600)]:
            with av.open(str(tmp_path / name)) as source:
                stream = stream or target.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + shift, packet.dts + shift
                        target.mux(packet)
    facts, gops = probe_video(tmp_path / "a.ts", content_box=False)
    reader = VideoReader(facts)
    assert len(list(reader.frames(np.arange(12), gops, DecodeCount()))) == 12
    with pytest.raises(VideoError, match=r"is 64x48, not 128x96 as the first; re-encode it"):
        list(reader.frames(np.arange(facts.frames), gops, DecodeCount()))
    reader.close()


@pytest.mark.skipif("TROCAR_TEST_VIDEOS" not in os.environ, reason="TROCAR_TEST_VIDEOS names no folder of real videos")
def test_real_videos_frame_for_frame():
    def digest(frame: VideoFrame) -> bytes:
        return hashlib.blake2b(frame.to_ndarray().tobytes()).digest()

    paths = sorted(Path(os.environ["TROCAR_TEST_VIDEOS"]).glob("*.mp4"))
    for path in paths[:: max(1, len(paths) // 2)]:
        facts, gops = probe_video(path, content_box=False)
        with av.open(str(path)) as container:
            expected = [digest(frame) for frame in container.decode(video=0)]
        reader = VideoReader(facts)
        for frames in random_clips(np.random.default_rng(0), facts.frames, 34):
            read = [digest(frame) for _, frame, _ in reader.frames(frames, gops, DecodeCount())]
            assert read == [expected[frame] for frame in frames]
        reader.close()
