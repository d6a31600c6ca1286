"""Whatever happens to files, decoding neither crashes nor hangs nor shows a wrong frame, and says what it could not read."""

from __future__ import annotations

import gc
import itertools
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import clips
import fsspec
import numpy as np
import pytest
from damage import Patient

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.video.decode import DecodeCount, WindowDecoder
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.storage import StoredFile
from trocar.loaders.video.video import PacketFlag, VideoError
from trocar.loaders.video.window import WindowReader

pytestmark = pytest.mark.timeout(400)

WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)
ALWAYS_NOTICED = ("truncated", "swapped", "gone", "a_folder")


def sweep(what: str, folder: Path, count: int, checksum: bool) -> dict[str, Counter[str]]:
    """What became of clips, by kind of damage. In a process of its own, so that a crash is a failure and no end of the tests."""
    script = Path(__file__).parents[2] / "damage.py"
    command = [sys.executable, str(script), what, str(folder / "sweep"), str(count), str(int(checksum)), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + count)
    assert done.returncode == 0, done.stderr[-3000:]
    return {kind: Counter(found) for kind, found in json.loads(done.stdout).items()}


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_inputs_are_refused_or_show_the_right_frames_in_order(tmp_path, count):
    found = sweep("packets", tmp_path, count, checksum=False)
    assert set(found) == set(Patient.KINDS)
    assert all(outcome["astray"] == 0 for outcome in found.values())
    for kind in ALWAYS_NOTICED:
        assert found[kind]["refused"] > 0
        assert found[kind]["silent"] == found[kind]["same"] == 0
    for kind, outcome in found.items():
        if outcome["silent"]:
            share = outcome["silent"] / (outcome["silent"] + outcome["refused"])
            print(f"\n{kind}: {outcome['silent']} clips with unnoticed damage, {share:.0%} of those that were hit")


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_with_checksums_no_damage_goes_unnoticed(tmp_path, count):
    found = sweep("packets", tmp_path, count, checksum=True)
    assert set(found) == set(Patient.KINDS)
    assert all(outcome["refused"] > 0 for outcome in found.values())
    assert {kind: outcome["silent"] + outcome["astray"] for kind, outcome in found.items()} == dict.fromkeys(found, 0)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_files_with_flipped_bytes_go_through_index_and_loader(tmp_path, count):
    found = sweep("files", tmp_path, count, checksum=False)
    total = sum(found.values(), Counter())
    print(f"\n{dict(total)}")
    assert total["delivered"] > count
    assert total["refused"] > count
    assert total["out of order"] == 0


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_checksum_notices_every_single_bit_of_what_is_read(tmp_path, name):
    clips.write_numbered(tmp_path / name, 30, width=64, height=48, gop=10, b_frames=2)
    facts, gops = probe_video(tmp_path / name, content_box=False, checksum=True)
    path, wanted = tmp_path / name, np.array([12, 15])
    whole = path.read_bytes()
    reader = WindowReader(facts)
    payloads = [bytes(payload) for payload in reader.window(wanted, gops).payloads]
    reader.close()
    assert payloads
    flipped = 0
    for payload in payloads:
        start = whole.find(payload[:40], int(gops.byte_offset[1]))
        assert start >= 0
        for place in {0, 3, 4, 5, 20, 39, len(payload) - 1} if name != "a.ts" else {0, 3, 4, 5, 20, 39}:
            if place < len(payload):
                data = bytearray(whole)
                data[start + place] ^= 1 << place % 8
                path.write_bytes(data)
                os.utime(path, ns=(0, facts.mtime_ns))
                reader = WindowReader(facts)
                with pytest.raises(VideoError, match=r"fails its checksum|differs from its index|cannot be"):
                    reader.window(wanted, gops)
                reader.close()
                flipped += 1
    assert flipped > 20


def small_corpus(folder: Path, videos: int = 3) -> Corpus:
    (folder / "videos").mkdir()
    for row in range(videos):
        clips.write_numbered(folder / "videos" / f"{row}.mp4", 60, video_id=row, first_number=100, gop=12)
    index_corpus([folder / "videos"], folder / "index", workers=1, content_box=False, progress=False)
    return Corpus.open(folder / "index")


def test_a_stalled_read_is_reported_with_its_path_and_the_batch_still_comes(tmp_path, monkeypatch, caplog):
    corpus = small_corpus(tmp_path)
    slow = corpus.video(1).facts.path
    read = StoredFile.read

    def slow_read(self: StoredFile, start: int, stop: int) -> bytes:
        if self.video.path == slow:
            time.sleep(0.5)
        return read(self, start, stop)

    monkeypatch.setattr(StoredFile, "read", slow_read)
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=1)
    with (
        caplog.at_level(logging.WARNING, logger="trocar.loaders"),
        ClipLoader(
            corpus, sampler, WHOLE, [np.arange(6)], resolution=64, threads=2, content_box=False, stall_seconds=0.1
        ) as loader,
    ):
        (batch,) = loader
    assert 1 in batch.videos
    for clip, video, numbers in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
        assert [clips.read_number(picture) for picture in clip] == [(video, 100 + number) for number in numbers]
    reports = [record.getMessage() for record in caplog.records if record.name == "trocar.loaders"]
    assert any(f"no batch for 0.1 seconds; still reading {slow}" in report for report in reports)
    assert not any(corpus.video(row).facts.path in report for row in (0, 2) for report in reports)
    assert not loader.total.failures


def test_a_container_without_its_video_stream_is_a_failure_like_any_other(tmp_path):
    """A file of the same size and time whose streams are others: once, a StopIteration that ended the run without a word."""
    (tmp_path / "videos").mkdir()
    path = tmp_path / "videos" / "a.ts"
    clips.write_numbered(path, 60, gop=12, audio=True)
    clips.write_numbered(tmp_path / "videos" / "b.mp4", 60, video_id=1, first_number=100, gop=12)
    index_corpus([tmp_path / "videos"], tmp_path / "index", workers=1, content_box=False, progress=False)
    corpus = Corpus.open(tmp_path / "index")
    facts = corpus.video(0).facts
    size = facts.size_bytes
    with av.open(str(tmp_path / "sound.ts"), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        for index in range(20):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts, silence.time_base = 8000, 1024 * index, Fraction(1, 8000)
            container.mux(sound.encode(silence))
        container.mux(sound.encode(None))
    data = (tmp_path / "sound.ts").read_bytes()
    path.write_bytes((data * (size // len(data) + 1))[:size])
    os.utime(path, ns=(0, facts.mtime_ns))
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=1)
    drawn = {clip.video for clip in sampler.clips(np.arange(8))}
    assert drawn == {0, 1}
    with ClipLoader(corpus, sampler, WHOLE, [np.arange(8)], resolution=64, threads=1, failure_budget=1.0) as loader:
        (batch,) = loader
    assert set(batch.videos.tolist()) == {1}
    assert {failure.path for failure in loader.total.failures} == {str(path)}


def damaged_keyframe(folder: Path, open_gop: bool) -> Path:
    """A transport stream whose receiver marked its fourth keyframe as damaged (ISO/IEC 13818-1, 2.4.3.3)."""
    path = folder / "a.ts"
    clips.write_numbered(path, 96, video_id=2, first_number=100, gop=12, b_frames=2, open_gop=open_gop)
    _, gops = probe_video(path, content_box=False)
    data = bytearray(path.read_bytes())
    second = int(gops.byte_offset[3]) + 188  # the mark in its first packet would count for the picture before
    assert data[second] == 0x47
    data[second + 1] |= 0x80
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("open_gop", [False, True])
def test_clips_on_both_sides_of_a_damaged_keyframe_are_right(tmp_path, open_gop):
    path = damaged_keyframe(tmp_path, open_gop)
    facts, gops = probe_video(path, content_box=False)
    assert "corrupt packets" in facts.health
    assert gops.frames.tolist().index(0) == 3
    assert not gops.clean[3]
    packets = gops.packets[0 : int(gops.num_packets.sum())]
    assert not (packets.flags[packets.frame >= 0] & PacketFlag.CORRUPT).any()
    reader, decoder = WindowReader(facts), WindowDecoder(facts)
    seen: set[int] = set()
    refused = 0
    for start in range(0, facts.frames - 8, 3):
        frames = start + np.arange(8)
        try:
            decoded = list(decoder.frames(reader.window(frames, gops), DecodeCount()))
        except VideoError as error:
            assert "need a damaged packet" in str(error)  # noqa: PT017
            assert gops.locate(start) < 3 < gops.locate(start + 7)
            refused += 1
            continue
        pictures = [frame.to_ndarray(format="rgb24") for _, frame in decoded]
        numbers = [clips.read_number(picture)[1] - 100 for picture in pictures]
        assert [index for index, _ in decoded] == list(range(8))
        assert numbers == sorted(numbers)
        assert not set(numbers) & set(range(36, 48))
        seen |= set(numbers)
    # An IDR picture behind the damage may be jumped to; where pictures reach across, nothing may be read across.
    assert (refused > 0) == open_gop
    assert seen >= set(range(30)) | set(range(50, 90))
    reader.close()
    decoder.close()


def decoding_threads() -> int:
    return sum(thread.name.startswith("decode") for thread in threading.enumerate())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_memory_and_descriptors_stay_flat_on_every_way_in(tmp_path, count):
    """Windows by place, of one picture each, demuxed and remote ones, and clips that fail among them."""
    folder = tmp_path / "videos"
    folder.mkdir()
    ways: list[tuple[str, dict[str, Any]]] = [
        ("0.mp4", {"gop": 12, "b_frames": 2}), ("1.avi", {"gop": 1, "codec": "mjpeg"}), ("2.ts", {"gop": 12}),
        ("3.mp4", {"gop": 12}),
    ]  # fmt: skip
    for row, (name, encoding) in enumerate(ways):
        clips.write_numbered(folder / name, 60, video_id=row, **encoding)
    store = fsspec.filesystem("memory")
    store.pipe_file("/flat/4.mp4", (folder / "0.mp4").read_bytes())
    sources = [folder, "memory://flat"]
    index_corpus(sources, tmp_path / "index", workers=1, content_box=False, checksum=True, progress=False)
    corpus = Corpus.open(tmp_path / "index")
    assert len(corpus) == 5
    damaged = next(corpus.video(row).facts for row in range(5) if corpus.video(row).facts.path.endswith("3.mp4"))
    data = bytearray((folder / "3.mp4").read_bytes())
    data[len(data) // 3] ^= 1
    (folder / "3.mp4").write_bytes(data)
    os.utime(folder / "3.mp4", ns=(0, damaged.mtime_ns))
    sampler = Sampler(corpus.frames, num_frames=8, stride=3, seed=1)
    numbers = [np.arange(4) + 4 * batch for batch in range(count // 4)]
    videos: set[int] = set()
    with ClipLoader(
        corpus, sampler, WHOLE, numbers, resolution=64, content_box=False, threads=2, failure_budget=1.0
    ) as loader:
        for batch in itertools.islice(loader, count // 16):
            videos |= set(batch.videos.tolist())
        gc.collect()
        memory, descriptors = resident_bytes(), len(os.listdir("/proc/self/fd"))
        for _ in loader:
            pass
        gc.collect()
        growth = resident_bytes() - memory
    assert len(videos) == 5
    assert loader.total.failures
    assert loader.total.clips == count
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    store.rm("/flat", recursive=True)
    print(f"\n{count} clips: resident memory grew by {growth / 1e6:.1f} MB after the first quarter")
    assert growth < 24e6


def test_nothing_stays_open_after_failures(tmp_path):
    corpus = small_corpus(tmp_path)
    for row in (0, 1):
        facts = corpus.video(row).facts
        Path(facts.path).write_bytes(bytes(facts.size_bytes))
        os.utime(facts.path, ns=(0, facts.mtime_ns))
    sampler = Sampler(corpus.frames, num_frames=4, stride=2, seed=1)
    descriptors = len(os.listdir("/proc/self/fd"))
    numbers = [np.arange(4) + 4 * batch for batch in range(10)]
    with ClipLoader(
        corpus, sampler, WHOLE, numbers, resolution=64, threads=3, failure_budget=0.1, failure_floor=5
    ) as loader:
        with pytest.raises(VideoError, match="above the budget of 10%, in 2 videos"):
            list(loader)
        assert (decoding_threads(), len(os.listdir("/proc/self/fd"))) == (0, descriptors)
