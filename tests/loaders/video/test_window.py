"""A window holds the right frames, whichever decoder it is handed to, and costs no more bytes than the clip's GOPs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import av
import clips
import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from nvdec_stand_in import StandIn
from windows import Source, check_numbers, check_windows, from_packets, needs_muxing, planes, random_clips

from trocar.loaders import nvdec
from trocar.loaders.corpus.corpus import Corpus, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.sources import list_videos
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video import storage
from trocar.loaders.video.decode import WindowDecoder
from trocar.loaders.video.payload import PayloadFinder
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import GopTable, PacketFlag, PacketTable, VideoError
from trocar.loaders.video.window import Window, WindowReader

pytestmark = pytest.mark.timeout(300)

HIDDEN = {"hidden_frames": True}
OPEN = {"b_frames": 3, "open_gop": True}
HEVC, VP8, VP9 = (dict[str, Any](codec=codec) for codec in ("libx265", "libvpx", "libvpx-vp9"))
MPEG4, MJPEG = (dict[str, Any](codec=codec) for codec in ("mpeg4", "mjpeg"))


def x264(gop: int, rest: str) -> dict[str, Any]:
    return {"options": {"x264-params": f"keyint={gop}:min-keyint={gop}:scenecut=0:b-adapt=0:{rest}"}}


def x265(gop: int, rest: str) -> dict[str, Any]:
    quiet = "log-level=none:pools=none:frame-threads=1:no-info=1"
    params = f"keyint={gop}:min-keyint={gop}:scenecut=0:b-adapt=0:{rest}:{quiet}"
    return {**HEVC, "options": {"x265-params": params}}


# name, GOP, encoding
CASES: list[tuple[str, int, dict[str, Any]]] = [
    *(("a.mp4", gop, {"b_frames": b_frames}) for gop in (1, 12, 30, 250) for b_frames in (0, 3) if gop > b_frames),
    *(("a.mp4", gop, OPEN) for gop in (12, 30)),
    *((name, 12, OPEN) for name in ("a.mkv", "a.mov", "a.ts")),
    ("a.mp4", 30, x264(30, "bframes=7:b-pyramid=normal")),
    ("a.mkv", 30, x264(30, "bframes=7:b-pyramid=strict:open-gop=1")),
    ("a.mp4", 12, {**OPEN, "variable_rate": True}),
    ("a.mp4", 12, {"audio": True, "b_frames": 2}),
    ("a.mp4", 12, {"container_options": {"movflags": "frag_keyframe+empty_moov"}, "b_frames": 3}),
    ("a.mp4", 12, {"first_tick": -7, "b_frames": 3}),
    ("a.mkv", 30, {"pix_fmt": "yuv420p10le", "b_frames": 3}),
    *(("a.mp4", 12, {"rotation": rotation, "b_frames": 3}) for rotation in (90, 180, 270)),
    ("a.avi", 30, {}),
    *(("a.mp4", gop, {**HEVC, "b_frames": 3}) for gop in (12, 250)),
    ("a.mp4", 1, HEVC),
    *((name, 12, {**HEVC, **OPEN}) for name in ("a.mp4", "a.mkv", "a.ts")),
    ("a.mov", 30, x265(30, "bframes=4:b-pyramid=1:open-gop=1")),
    ("a.mp4", 30, x265(30, "bframes=4:b-pyramid=1:temporal-layers=3")),
    ("a.mp4", 12, {**HEVC, "pix_fmt": "yuv420p10le", "b_frames": 3}),
    *(("a.webm", gop, {**codec, **hidden}) for codec in (VP8, VP9) for gop in (12, 250) for hidden in ({}, HIDDEN)),
    ("a.mkv", 30, {**VP9, "variable_rate": True}),
    ("a.mp4", 12, VP9),
    ("a.avi", 12, MPEG4),
    ("a.mp4", 30, {**MPEG4, "b_frames": 2}),
    ("a.mkv", 12, {**MPEG4, "b_frames": 2}),
    ("a.mpg", 12, {"codec": "mpeg2video", "b_frames": 2}),
    ("a.ts", 12, {"codec": "mpeg2video", "b_frames": 2}),
    *((name, 1, MJPEG) for name in ("a.avi", "a.mov", "a.mkv")),
]


def write_case(folder: Path, case: int) -> Source:
    name, gop, encoding = CASES[case]
    path = folder / f"{case} {name}"
    frames = min(90 + 2 * gop, 300)
    clips.write_numbered(path, frames, video_id=case, first_number=1000, gop=gop, **encoding)
    facts, gops = probe_video(path, content_box=False)
    hidden = max(0, -encoding.get("first_tick", 0))
    assert facts.frames == frames - hidden
    return Source(facts, gops, case, 1000 + hidden + np.arange(facts.frames))


def clips_from_keyframes(source: Source) -> Iterator[NDArray[np.int64]]:
    """Clips that begin with a keyframe: what is shown before it and stands behind it in the file is not to be decoded."""
    for first in source.gops.first_frame[source.gops.clean][:3].tolist():
        yield np.arange(first, min(first + 8, source.facts.frames))


@pytest.mark.parametrize("count", [4, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda case: str(CASES[case]))
def test_packets_and_files_in_memory_give_the_same_right_frames(tmp_path, case, count):
    source = write_case(tmp_path, case)
    windows = check_windows(source, random_clips(np.random.default_rng(case), source.facts.frames, count))
    assert len(windows) == count
    assert check_windows(source, clips_from_keyframes(source))


def from_dali(windows: list[Window]) -> list[np.ndarray]:
    """(F, H, W, 3) of each window, by DALI's decoder on the CPU."""
    pytest.importorskip("nvidia.dali")
    needs_muxing(windows[0].video)
    from nvidia.dali import fn
    from nvidia.dali.pipeline import pipeline_def

    options: dict[str, Any] = {"batch_size": len(windows), "num_threads": 1, "device_id": None}

    @pipeline_def(**options)
    def decoding() -> Any:
        files = [window.mux() for window in windows], [window.ranks for window in windows]
        data, ranks = fn.external_source(source=lambda: files, num_outputs=2)
        return fn.decoders.video(data, device="cpu", frames=ranks)

    pipeline = decoding()
    pipeline.build()
    (pictures,) = pipeline.run()
    return [np.asarray(pictures.at(index)) for index in range(len(windows))]


DALI_CASES = [row for row, (_, _, encoding) in enumerate(CASES) if encoding.get("codec", "")[:5] in ("libvp", "mjpeg")]


@pytest.mark.parametrize("case", DALI_CASES, ids=lambda case: str(CASES[case]))
def test_dali_picks_the_same_frames_from_files_in_memory(tmp_path, case):
    source = write_case(tmp_path, case)
    wanted = list(random_clips(np.random.default_rng(case), source.facts.frames, 8))
    reader = WindowReader(source.facts)
    for frames, pictures in zip(wanted, from_dali([reader.window(f, source.gops) for f in wanted]), strict=True):
        check_numbers(source, frames, list(pictures), 0)
    reader.close()


@pytest.mark.parametrize("gop", [12, 250])
def test_hidden_pictures_of_vp8_are_decoded_and_not_counted(tmp_path, gop):
    """As libvpx's alternate reference frames: later pictures refer to them, nobody sees them."""
    clips.write_numbered(tmp_path / "shown.webm", 120, video_id=3, first_number=500, gop=gop, **VP8)
    is_hidden = (np.arange(120) % 7 == 3) & (np.arange(120) % gop != 0)

    def hide(index: int, packet: av.Packet) -> None:
        if is_hidden[index]:
            data = bytearray(bytes(packet))
            data[0] &= ~16
            packet.update(bytes(data))

    clips.remux(tmp_path / "shown.webm", tmp_path / "a.webm", change=hide)
    source = Source(*probe_video(tmp_path / "a.webm", content_box=False), 3, 500 + np.flatnonzero(~is_hidden))
    assert source.facts.frames == np.count_nonzero(~is_hidden)
    wanted = list(random_clips(np.random.default_rng(gop), source.facts.frames, 8))
    windows = check_windows(source, iter(wanted))
    assert sum(not window.shows.all() for window in windows) > 4
    for frames, pictures in zip(wanted, from_dali(windows), strict=True):
        check_numbers(source, frames, list(pictures), 0)


@pytest.mark.parametrize("case", range(0, len(CASES), 3), ids=lambda case: str(CASES[case]))
def test_torchcodec_picks_the_same_frames_from_files_in_memory(tmp_path, case):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=ImportError)
    source = write_case(tmp_path, case)
    reader = WindowReader(source.facts)
    for frames in random_clips(np.random.default_rng(case), source.facts.frames, 3):
        window = reader.window(frames, source.gops)
        decoder = decoders.VideoDecoder(window.mux().tobytes(), dimension_order="NHWC")
        pictures = decoder.get_frames_at(window.ranks.tolist()).data.numpy()
        check_numbers(source, frames, list(pictures), source.facts.rotation)
    reader.close()


@pytest.mark.parametrize("batches", [8, pytest.param(64, marks=pytest.mark.slow)])
def test_the_loader_delivers_the_right_frames_of_every_kind_of_video(tmp_path, batches):
    sources = [write_case(tmp_path, case) for case in range(len(CASES))]
    index_corpus([tmp_path], tmp_path / "corpus", workers=1, progress=False)
    corpus = Corpus.open(tmp_path / "corpus")
    by_path = {source.facts.path: source for source in sources}
    assert len(corpus) == len(by_path) == len(CASES)
    sampler = Sampler(corpus.frames, num_frames=8, stride=5, seed=1)
    crops = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)
    numbers = [np.arange(8) + 8 * batch for batch in range(batches)]
    options: dict[str, Any] = {"resolution": 64, "content_box": False, "threads": 2}
    seen = []
    for make in (ClipLoader, partial(nvdec.ClipLoader, device="cpu", library=StandIn())):
        checked = 0
        with make(corpus, sampler, crops, numbers, **options) as loader:
            for batch in loader:
                seen.append((batch.draws.tolist(), batch.videos.tolist(), batch.frame_numbers.tolist()))
                for frames, video, wanted in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
                    facts = corpus.video(int(video)).facts
                    source = by_path[facts.path]
                    if facts.rotation % 180 == 0:  # a crop of 4:3 takes part of an upright picture of 3:4 only
                        check_numbers(source, wanted, list(frames), 0)
                        checked += 1
        assert loader.total.failures == []
        assert loader.taken_over == {}
        assert checked > 7 * batches
    assert seen[: len(numbers)] == seen[len(numbers) :]


def numbered(path: Path | str, frames: int, **encoding: Any) -> Source:
    video_id = encoding.pop("video_id", 3)
    clips.write_numbered(path, frames, video_id=video_id, first_number=500, **encoding)
    facts, gops = probe_video(path, content_box=False)
    assert facts.frames == frames
    return Source(facts, gops, video_id, 500 + np.arange(frames))


def all_packets(source: Source) -> PacketTable:
    return source.gops.packets[0 : int(source.gops.num_packets.sum())]


def test_large_strides_jump_over_whole_gops(tmp_path):
    source = numbered(tmp_path / "a.mp4", 96, gop=6, b_frames=2)
    with av.open(source.facts.path) as container:
        payloads = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    table = all_packets(source)
    wanted = np.array([8, 20, 21, 50, 95])
    (window,) = check_windows(source, iter([wanted]))
    needed: set[int] = set()
    packet_of = {frame: row for row, frame in enumerate(table.frame.tolist())}
    for frame in wanted.tolist():
        needed |= set(range(frame // 6 * 6, packet_of[frame] + 1))
    is_disposable = table.flags & PacketFlag.DISPOSABLE != 0
    needed = {row for row in needed if not is_disposable[row] or table.frame[row] in wanted}
    assert {table.frame[row] // 6 for row in needed} == {1, 3, 8, 15}
    assert [bytes(payload) for payload in window.payloads] == [payloads[row] for row in sorted(needed)]


@pytest.mark.parametrize("codec", [{}, HEVC], ids=str)
def test_no_jump_lands_on_a_keyframe_that_pictures_reach_across(tmp_path, codec):
    source = numbered(tmp_path / "a.mp4", 96, gop=6, **OPEN, **codec)
    assert source.gops.clean.all()
    assert np.flatnonzero(source.gops.idr).tolist() == [0]
    wanted = np.array([20, 50, 90])
    (window,) = check_windows(source, iter([wanted]))
    table = all_packets(source)
    start = int(source.gops.first_packet[source.gops.locate(20)])
    stop = int(np.flatnonzero(table.frame == 90)[0]) + 1
    others_need = table.flags[start:stop] & PacketFlag.DISPOSABLE == 0
    others_need[1:][table.pts[start + 1 : stop] < table.pts[start]] = False
    assert len(window.payloads) == np.count_nonzero(others_need | np.isin(table.frame[start:stop], wanted))
    assert not window.idr


class Bits:
    """Reads the bits of a NAL unit's payload (ITU-T H.264, 7.2)."""

    def __init__(self, data: bytes) -> None:
        self.bits = "".join(f"{byte:08b}" for byte in data.replace(b"\x00\x00\x03", b"\x00\x00"))
        self.at = 0

    def take(self, count: int) -> int:
        self.at += count
        return int(self.bits[self.at - count : self.at], 2)

    def golomb(self) -> int:
        zeros = self.bits.index("1", self.at) - self.at
        self.at += zeros
        return self.take(zeros + 1) - 1


def without_usability_information(unit: bytes) -> bytes:
    """An H.264 sequence parameter set without its VUI, hence without how far pictures are reordered (ITU-T H.264, 7.3.2.1.1)."""
    bits = Bits(unit)
    bits.take(8)
    profile = bits.take(8)
    bits.take(16)
    bits.golomb()
    if profile >= 100:
        assert [bits.golomb() for _ in range(3)] == [1, 0, 0]
        assert bits.take(2) == 0
    bits.golomb()
    if bits.golomb() == 0:
        bits.golomb()
    bits.golomb()
    bits.take(1)
    for _ in range(2):
        bits.golomb()
    assert bits.take(1) == 1
    bits.take(1)
    if bits.take(1):
        for _ in range(4):
            bits.golomb()
    assert bits.take(1) == 1
    kept = bits.bits[: bits.at - 1] + "01"
    kept += "0" * (-len(kept) % 8)
    data = bytes(int(kept[at : at + 8], 2) for at in range(0, len(kept), 8))
    assert b"\x00\x00\x00" not in data
    assert b"\x00\x00\x01" not in data
    return data.ljust(len(unit), b"\x00")


@pytest.mark.parametrize("name", ["a.ts", "a.mp4", "a.mkv"])
@pytest.mark.parametrize("rest", ["bframes=3:b-pyramid=none", "bframes=7:b-pyramid=normal", "bframes=3:open-gop=1"])
def test_streams_that_do_not_say_how_far_they_reorder_come_in_order(tmp_path, name, rest):
    clips.write_numbered(tmp_path / "said.ts", 90, video_id=3, first_number=500, **x264(12, rest))
    edited = 0

    def edit(_: int, packet: av.Packet) -> None:
        nonlocal edited
        units = bytes(packet).split(b"\x00\x00\x01")
        for index, unit in enumerate(units):
            if unit and unit[0] & 31 == 7:
                units[index] = without_usability_information(unit)
                edited += 1
        packet.update(b"\x00\x00\x01".join(units))

    clips.remux(tmp_path / "said.ts", tmp_path / "unsaid.ts", change=edit)
    assert edited >= 1
    clips.remux(tmp_path / "unsaid.ts", tmp_path / name)
    source = Source(*probe_video(tmp_path / name, content_box=False), 3, 500 + np.arange(90))
    assert source.facts.frames == 90
    assert len(check_windows(source, random_clips(np.random.default_rng(0), 90, 12))) == 12


def demuxed_only(source: Source) -> GopTable:
    packets = all_packets(source)
    return replace(source.gops, packets=replace(packets, offset=np.full(len(packets), -1)))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.mov"])
def test_payloads_without_a_place_in_the_file_are_demuxed_to_the_same_window(tmp_path, name):
    codec = {"a.webm": VP9, "a.avi": MPEG4}.get(name, OPEN)
    source = numbered(tmp_path / name, 90, gop=12, **codec)
    assert (all_packets(source).offset >= 0).all()
    reader, placeless = WindowReader(source.facts), demuxed_only(source)
    compared = 0
    for frames in random_clips(np.random.default_rng(0), 90, 10):
        by_place, demuxed = reader.window(frames, source.gops), reader.window(frames, placeless)
        assert demuxed.payloads == by_place.payloads
        for field in ("keys", "order", "shows", "frames", "packet_of", "pts", "ranks"):
            assert np.array_equal(getattr(demuxed, field), getattr(by_place, field))
        assert demuxed.idr == by_place.idr
        compared += 1
    assert compared == 10
    reader.close()


def test_a_payload_in_pieces_is_not_taken_for_one_whose_ends_look_the_same(tmp_path):
    """A transport stream's long picture may begin like another and be zeros in the middle and at its end."""
    payload = bytes(range(1, 41)) + bytes(400)
    path = tmp_path / "a.bin"
    path.write_bytes(payload[:60] + b"header" + payload[60:])
    with path.open("rb") as file:
        finder = PayloadFinder(str(path), file)
        assert finder.offset(0, memoryview(payload[:60])) == 0  # proves the distance
        assert finder.offset(0, memoryview(payload[:300])) == -1
        assert finder.offset(66, memoryview(payload[60:])) == 66
        finder.close()


def join_with_other_parameters(folder: Path, name: str, first: dict[str, Any], second: dict[str, Any]) -> Source:
    """Two recordings of one size whose parameter sets differ, one behind the other."""
    for part, encoding in enumerate((first, second)):
        clips.write_numbered(folder / f"{part}.ts", 48, video_id=3, first_number=500 + 48 * part, gop=12, **encoding)
    with av.open(str(folder / "whole.ts"), "w") as target:
        stream = None
        for part in range(2):
            with av.open(str(folder / f"{part}.ts")) as container:
                stream = stream or target.add_stream_from_template(container.streams.video[0])
                for packet in container.demux(video=0):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        shift = part * 60 * 3600
                        packet.stream, packet.pts, packet.dts = stream, packet.pts + shift, packet.dts + shift
                        target.mux(packet)
    if name != "whole.ts":
        clips.remux(folder / "whole.ts", folder / name)
    return Source(*probe_video(folder / name, content_box=False), 3, 500 + np.arange(96))


OTHERS = [
    ({"b_frames": 2}, {"options": {"profile": "baseline", "x264-params": "keyint=12:ref=1:cabac=0"}}),
    (
        {"options": {"x264-params": "keyint=12:ref=4:cabac=0"}},
        {"options": {"x264-params": "keyint=12:bframes=2:cabac=1"}},
    ),
    ({**HEVC, "b_frames": 2}, x265(12, "bframes=0:ref=1:ctu=16:no-sao=1")),
]


@pytest.mark.parametrize("name", ["whole.ts", "a.mkv", "a.mp4"])
@pytest.mark.parametrize("encodings", OTHERS, ids=str)
def test_parameters_that_change_on_the_way_come_with_the_packets(tmp_path, name, encodings):
    source = join_with_other_parameters(tmp_path, name, *encodings)
    assert source.facts.frames == 96
    wanted = [np.arange(50, 60), np.arange(3, 20), np.arange(40, 56), np.array([90]), np.array([2, 30, 70])]
    assert len(check_windows(source, iter(wanted))) == 5


def test_parameters_that_change_outside_of_the_packets_are_refused(tmp_path):
    """FLV sends new ones as a tag of their own, which a window would not hold."""
    for part, rest in enumerate(["cabac=0:ref=4", "cabac=1:ref=1"]):
        options = x264(12, f"bframes=0:{rest}")
        clips.write_numbered(tmp_path / f"{part}.flv", 36, first_number=36 * part, **options)
    joined, data, at = bytearray((tmp_path / "0.flv").read_bytes()), bytearray((tmp_path / "1.flv").read_bytes()), 13
    while at < len(data):
        size, milliseconds = int.from_bytes(data[at + 1 : at + 4], "big"), int.from_bytes(data[at + 4 : at + 7], "big")
        data[at + 4 : at + 7] = (milliseconds + 36 * 40).to_bytes(3, "big")
        end = at + 11 + size + 4
        if data[at] == 9 and size > 5:  # pictures and parameters, no end of sequence
            joined += data[at:end]
        at = end
    (tmp_path / "a.flv").write_bytes(joined)
    assert probe_video(tmp_path / "0.flv")[0].frames == 36
    with pytest.raises(VideoError, match=r"a\.flv: its coding parameters change at packet 36"):
        probe_video(tmp_path / "a.flv")


@dataclass
class Asked:
    """What the storage was asked for, in the order of the requests: bytes each."""

    sizes: list[int]


@pytest.fixture
def preads(monkeypatch) -> Asked:
    asked, pread = Asked([]), os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        asked.sizes.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(storage.os, "pread", counted)
    return asked


def gop_bytes(gops: GopTable, frames: NDArray[np.int64]) -> int:
    """The bytes of the GOPs that display the frames, and of the next one where that holds the last ones' packets."""
    shown = {gops.locate(frame) for frame in range(int(frames[0]), int(frames[-1]) + 1)}
    packets = gops.packets[0 : int(gops.num_packets.sum())]
    last_packet = np.flatnonzero(packets.frame == frames[-1])[0]
    shown.add(int(np.searchsorted(gops.first_packet, last_packet, side="right")) - 1)
    return int(gops.num_bytes[sorted(shown)].sum())


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("open_gop", [False, True])
@pytest.mark.parametrize("gop", [12, 30, 250])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_window_is_one_read_of_hardly_more_than_its_gops(tmp_path, preads, name, gop, open_gop, checksum):
    clips.write_numbered(tmp_path / name, 520, gop=gop, b_frames=2, open_gop=open_gop, audio=name == "a.mp4")
    facts, gops = probe_video(tmp_path / name, content_box=False, checksum=checksum)
    reader = WindowReader(facts)
    asked = allowed = 0
    for start in np.random.default_rng(gop).integers(0, 520 - 61, 20):
        frames = start + 4 * np.arange(16)
        preads.sizes.clear()
        window = reader.window(frames, gops)
        assert preads.sizes == [window.bytes_read]
        assert window.bytes_read <= 1.1 * gop_bytes(gops, frames)
        if checksum:
            assert window.bytes_read >= 0.9 * gop_bytes(gops, frames)
        asked, allowed = asked + window.bytes_read, allowed + gop_bytes(gops, frames)
    reader.close()
    print(f"\n{name}, GOP {gop}, open {open_gop}, checksums {checksum}: {asked / allowed:.1%} of the bytes of its GOPs")


def test_gops_far_apart_are_read_one_by_one(tmp_path, preads, monkeypatch):
    from trocar.loaders.video import window as window_module

    monkeypatch.setattr(window_module, "LARGEST_GAP", 0)
    source = numbered(tmp_path / "a.mp4", 96, gop=6)
    preads.sizes.clear()  # indexing decodes a few pictures
    (window,) = check_windows(source, iter([np.array([2, 50, 90])]))
    assert len(preads.sizes) == 3
    assert sum(preads.sizes) == window.bytes_read == sum(map(len, window.payloads))


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A store that answers to memory://bucket; counts ranged requests as `ranges`."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def put(system: Any, folder: Path, name: str, frames: int, **encoding: Any) -> str:
    path = folder / name
    clips.write_numbered(path, frames, first_number=100, **encoding)
    system.pipe_file(f"/bucket/{name}", path.read_bytes())
    return f"memory://bucket/{name}"


@pytest.mark.parametrize(
    ("name", "encoding"),
    [("a.mp4", OPEN), ("a.mkv", {**HEVC, "b_frames": 2}), ("a.webm", VP9), ("a.avi", MPEG4), ("a.ts", {"b_frames": 2})],
)
def test_a_remote_file_has_the_same_index_and_windows_as_a_local_one(tmp_path, bucket, monkeypatch, name, encoding):
    url = put(bucket, tmp_path, name, 90, video_id=4, gop=12, **encoding)
    local = Source(*probe_video(tmp_path / name, checksum=True), 4, 100 + np.arange(90))
    remote = Source(*probe_video(url, checksum=True), 4, 100 + np.arange(90))
    assert replace(remote.facts, path=local.facts.path, mtime_ns=local.facts.mtime_ns) == local.facts
    assert np.array_equal(all_packets(remote).offset, all_packets(local).offset)
    assert (all_packets(remote).offset >= 0).all() or name == "a.ts"
    assert np.array_equal(np.asarray(remote.gops.crc32), np.asarray(local.gops.crc32))
    requests, cat_file = [], type(bucket).cat_file

    def counted(self: Any, path: str, start: Any = None, end: Any = None, **options: Any) -> bytes:
        requests.append(end - start)
        return cat_file(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(bucket), "cat_file", counted)
    windows = check_windows(remote, random_clips(np.random.default_rng(0), 90, 8))
    assert len(windows) == 8
    if name != "a.ts":
        assert requests == [window.bytes_read for window in windows]


def test_a_remote_file_that_changed_or_went_is_noticed(tmp_path, bucket):
    url = put(bucket, tmp_path, "a.mp4", 30, gop=12)
    facts, gops = probe_video(url)
    bucket.pipe_file("/bucket/a.mp4", (tmp_path / "a.mp4").read_bytes())  # same bytes, later
    with pytest.raises(VideoError, match=r"memory://bucket/a\.mp4: changed since it was indexed"):
        WindowReader(facts)
    facts, gops = probe_video(url)
    reader = WindowReader(facts)
    bucket.rm("/bucket/a.mp4")
    with pytest.raises(VideoError, match=r"memory://bucket/a\.mp4: .*restore the file"):
        reader.window(np.arange(4), gops)
    with pytest.raises(VideoError, match=r"memory://bucket/a\.mp4: .*restore the file"):
        WindowReader(facts)
    with pytest.raises(VideoError, match=r"memory://bucket/a\.mp4: cannot be read"):
        probe_video(url)


def test_stores_fail_in_ways_of_their_own(tmp_path, bucket, monkeypatch):
    url = put(bucket, tmp_path, "a.mp4", 30, gop=12)
    facts, gops = probe_video(url)
    reader = WindowReader(facts)

    def failing(*_: Any, **__: Any) -> bytes:
        raise RuntimeError("503 slow down")

    monkeypatch.setattr(type(bucket), "cat_file", failing)
    with pytest.raises(VideoError, match=r"a\.mp4: RuntimeError: 503 slow down; restore the file"):
        reader.window(np.arange(4), gops)
    with pytest.raises(VideoError, match=r"nostore://x/a\.mp4: cannot be read \(ValueError: Protocol not known"):
        probe_video("nostore://x/a.mp4")


def test_urls_of_files_folders_and_patterns_are_indexed(tmp_path, bucket):
    urls = [put(bucket, tmp_path, name, 30, video_id=row, gop=12) for row, name in enumerate(["a.mp4", "b.mkv"])]
    bucket.pipe_file("/bucket/deep/c.mp4", (tmp_path / "a.mp4").read_bytes())
    bucket.pipe_file("/bucket/notes.txt", b"no video")

    def found(*sources: str) -> list[str]:
        return [entry.path.removeprefix("memory://").strip("/") for entry in list_videos(sources)]

    assert found(*urls) == found("memory://bucket/*.m*") == ["bucket/a.mp4", "bucket/b.mkv"]
    assert found("memory://bucket", urls[0]) == found("memory://bucket/**") == [
        "bucket/a.mp4", "bucket/b.mkv", "bucket/deep/c.mp4"
    ]  # fmt: skip
    (tmp_path / "list.csv").write_text(f"path,source\n{urls[1]},ours\na.mp4,theirs\n")
    assert [entry.source for entry in list_videos([tmp_path / "list.csv"])] == ["theirs", "ours"]
    bucket.pipe_file("/bucket/list.csv", b"path\na.mp4\ndeep/c.mp4\n")
    assert found("memory://bucket/list.csv") == ["bucket/a.mp4", "bucket/deep/c.mp4"]
    for missing, reason in [
        ("memory://bucket/gone.mp4", "no such file or folder"),
        ("memory://bucket/*.ogv", "no video found there"),
        ("nostore://x/a.mp4", "Protocol not known"),
    ]:
        with pytest.raises(CorpusError, match=reason):
            list_videos([missing])

    summary = index_corpus(["memory://bucket"], tmp_path / "corpus", workers=1, progress=False)
    assert (summary.videos, summary.quarantined) == (3, 0)
    assert index_corpus(["memory://bucket"], tmp_path / "corpus", workers=1, progress=False).reused == 3
    corpus = Corpus.open(tmp_path / "corpus")
    sampler = Sampler(corpus.frames, num_frames=4, stride=2)
    crops = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)
    with ClipLoader(corpus, sampler, crops, [np.arange(8)], resolution=64, threads=2) as loader:
        (batch,) = loader
    ids = [[0, 1, 0][video] for video in batch.videos]
    assert len(set(batch.videos.tolist())) > 1
    for clip, video_id, frames in zip(batch.frames.numpy(), ids, batch.frame_numbers, strict=True):
        assert [clips.read_number(picture) for picture in clip] == [(video_id, 100 + frame) for frame in frames]
    bucket.rm("/bucket/b.mkv")
    assert index_corpus(["memory://bucket"], tmp_path / "corpus", workers=1, progress=False).videos == 2


@pytest.mark.skipif("TROCAR_TEST_VIDEOS" not in os.environ, reason="TROCAR_TEST_VIDEOS names no folder of real videos")
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 8))])
def test_no_good_file_is_refused_and_every_frame_is_the_plain_decoders(part):
    compared = 0
    for path in sorted(Path(os.environ["TROCAR_TEST_VIDEOS"]).glob("*.mp4"))[part::8]:
        facts, gops = probe_video(path, content_box=False)
        reader, decoder = WindowReader(facts), WindowDecoder(facts)
        with av.open(str(path)) as container:
            plain = container.decode(video=0)
            for start in range(0, facts.frames, 50):
                window = reader.window(np.arange(start, min(start + 50, facts.frames)), gops)
                for frame in from_packets(decoder, window):
                    expected = next(plain)
                    assert planes(frame) == planes(expected)
                    compared += 1
            assert next(plain, None) is None
        compared -= facts.frames
        reader.close()
        decoder.close()
    assert compared == 0
