"""A corpus folder holds what its files hold, however it was built, interrupted or brought up to date."""

from __future__ import annotations

import csv
import os
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from pathlib import Path

import av
import clips
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trocar.loaders.corpus import index, probers, progress
from trocar.loaders.corpus import writer as corpus_writer
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import GOPS_NAME, PACKETS_NAME, QUARANTINE_NAME, VIDEOS_NAME, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.sources import SourceFile, list_videos
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import GopTable, PacketTable, VideoError, VideoFacts


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    clips.write_numbered(folder / "a.mp4", 30, gop=12, b_frames=2)
    clips.write_numbered(folder / "b.mkv", 25, gop=5)
    clips.write_numbered(folder / "c.webm", 20, codec="libvpx", gop=10)
    return folder


@pytest.fixture
def videos(originals, tmp_path) -> Path:
    """A folder with three videos, one of them in a subfolder."""
    folder = tmp_path / "videos"
    (folder / "day 2").mkdir(parents=True)
    for source, target in [("a.mp4", "a.MP4"), ("b.mkv", "b.mkv"), ("c.webm", "day 2/Köln.webm")]:
        (folder / target).write_bytes((originals / source).read_bytes())
    return folder


def build(*sources, out, **options):
    return index_corpus(sources, out, progress=False, **{"workers": 1, **options})


def quarantine(out: Path) -> dict[str, str]:
    with open(out / QUARANTINE_NAME, newline="", encoding="utf-8") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def names(out: Path) -> list[str]:
    corpus = Corpus.open(out)
    return [os.path.basename(corpus.video(row).facts.path) for row in range(len(corpus))]


def rows(out: Path) -> list[dict]:
    return [row for name in (VIDEOS_NAME, GOPS_NAME) for row in pq.read_table(out / name).to_pylist()]


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """Names of the files that are probed, in order."""
    calls: list[str] = []

    def counted(path, **options):
        calls.append(os.path.basename(path))
        return probe_video(path, **options)

    monkeypatch.setattr(probers, "probe_video", counted)
    return calls


def test_the_corpus_holds_what_the_prober_found(videos, tmp_path):
    out = tmp_path / "deep" / "corpus"
    summary = build(videos, out=out, checksum=True)
    assert (summary.videos, summary.frames, summary.reused, summary.quarantined) == (3, 75, 0, 0)
    assert summary.hours == pytest.approx(75 / 25 / 3600)
    assert "3 videos, 75 frames" in summary.lines()[0]
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [VIDEOS_NAME, GOPS_NAME, PACKETS_NAME, QUARANTINE_NAME]
    )
    corpus = Corpus.open(out)
    assert (len(corpus), corpus.path, corpus.has_checksums) == (3, out, True)
    assert names(out) == ["a.MP4", "b.mkv", "Köln.webm"]
    assert corpus.frames.dtype == np.int64
    assert corpus.frames.tolist() == [30, 25, 20]
    assert corpus.fps.tolist() == [25, 25, 25]
    first_gop = 0
    for row in range(3):
        video, gops = corpus.video(row), corpus.gops(row)
        facts, expected = probe_video(video.facts.path, checksum=True)
        assert (video.row, video.facts, video.source, video.boxed) == (row, facts, "", True)
        assert len(video.id) == 16
        assert (video.first_gop, video.num_gops) == (first_gop, len(expected))
        first_gop += len(expected)
        assert (video.original, video.packed_stride) == ("", 1)
        count = int(expected.num_packets.sum())
        stored_packets, found_packets = gops.packets[0:count], expected.packets[0:count]
        assert len(stored_packets) == facts.frames
        for stored, found in ((replace(gops, packets=stored_packets), expected), (stored_packets, found_packets)):
            for name in {field.name for field in fields(stored)} - {"packets"}:
                columns = getattr(stored, name), getattr(found, name)
                assert columns[0].dtype == columns[1].dtype, name
                assert np.array_equal(*columns), name
    assert pq.read_table(out / GOPS_NAME).column("video").to_pylist() == [0] * 3 + [1] * 5 + [2] * 2
    for row in (-1, 3):
        with pytest.raises(IndexError, match=r"not in 0\.\.2"):
            corpus.video(row)
        with pytest.raises(IndexError, match=r"not in 0\.\.2"):
            corpus.gops(row)


def test_the_same_tables_for_any_number_of_workers(videos, tmp_path):
    (videos / "broken.mp4").write_bytes(b"x" * 100)
    for workers in (1, 2):
        build(videos, out=tmp_path / str(workers), workers=workers)
    assert rows(tmp_path / "1") == rows(tmp_path / "2")
    assert quarantine(tmp_path / "1") == quarantine(tmp_path / "2") != {}
    assert Corpus.open(tmp_path / "1").fingerprint == Corpus.open(tmp_path / "2").fingerprint


def test_broken_files_become_quarantine_rows(videos, tmp_path):
    (videos / "empty.mp4").touch()
    (videos / "text, with comma.mov").write_text("no video")
    (videos / ".hidden.mp4").write_text("left by a file browser")
    (videos / "notes.txt").write_text("no video, and nobody says so")
    summary = build(videos, out=tmp_path / "out")
    assert (summary.videos, summary.quarantined) == (3, 2)
    assert "2 files cannot be used" in summary.lines()[2]
    assert summary.lines()[3:] == ["1 files left out for their suffix: 1 .txt"]
    reasons = quarantine(tmp_path / "out")
    assert list(reasons) == [str(videos / "empty.mp4"), str(videos / "text, with comma.mov")]
    assert "the file is empty" in reasons[str(videos / "empty.mp4")]


def test_a_name_that_is_not_utf8_is_quarantined(videos, tmp_path):
    bad = os.fsencode(videos) + b"/Op\xe9ration.mp4"
    with open(bad, "wb") as file:
        file.write((videos / "b.mkv").read_bytes())
    assert build(videos, out=tmp_path / "out").videos == 3
    ((path, reason),) = quarantine(tmp_path / "out").items()
    assert path.endswith(r"Op\udce9ration.mp4")
    assert reason.endswith("the name is not UTF-8; rename it")
    assert r"Op\udce9ration" in reason


def test_a_folder_that_cannot_be_listed_is_quarantined(videos, tmp_path, monkeypatch):
    scandir = os.scandir

    def denied(path):
        if os.path.basename(path) == "day 2":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    summary = build(videos, out=tmp_path / "out")
    assert (summary.videos, summary.quarantined) == (2, 1)
    assert "cannot be listed (Permission denied)" in quarantine(tmp_path / "out")[str(videos / "day 2")]


def test_no_usable_video_writes_the_quarantine_and_raises(tmp_path):
    videos, out = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    for name in "abcd":
        (videos / f"{name}.mp4").touch()
    with pytest.raises(CorpusError, match=r"none of 4 files can be used(.|\n)*a\.mp4: the file is empty"):
        build(videos, out=out)
    assert len(quarantine(out)) == 4
    assert not (out / VIDEOS_NAME).exists()
    assert [path.name for path in out.iterdir()] == [QUARANTINE_NAME]


def test_sources(videos, tmp_path, monkeypatch):
    def found(*sources):
        return [os.path.relpath(entry.path, videos) for entry in list_videos(sources)]

    monkeypatch.chdir(videos)
    everything = ["a.MP4", "b.mkv", "day 2/Köln.webm"]
    assert found(".") == found(videos) == found(str(videos) + "/") == everything
    assert found("**") == found("**/*") == found("**/*.*") == everything
    assert found("*") == found("*/", "*.*") == everything
    assert found("*.mkv") == found("b.mkv") == found("[b].mkv") == ["b.mkv"]
    assert found("**/*.webm") == found("*2") == ["day 2/Köln.webm"]
    Path("odd.bin").write_bytes(b"x")
    assert found("*.bin") == found("odd.bin") == ["odd.bin"]
    assert found(".") == everything
    os.symlink("b.mkv", "again.mkv")
    os.symlink(".", "loop")
    assert len(found(".", "b.mkv", videos / "b.mkv", "**/*.mkv")) == 3
    for missing in ("nothing.mp4", "*.ogv", "**/*.ogv", str(tmp_path / "nowhere")):
        with pytest.raises(CorpusError, match=r"no such file|no video found there"):
            list_videos([missing])
    with pytest.raises(CorpusError, match="no source given"):
        list_videos([])


def test_csv_sources(videos, tmp_path):
    table = videos / "list.csv"
    table.write_text(
        "\ufeffdomain,path,source\nlaparoscopy,a.MP4,hospital\n,day 2/Köln.webm,\n,gone.mp4,\n", encoding="utf-8"
    )
    summary = build(videos, table, out=tmp_path / "out")
    assert (summary.videos, summary.quarantined) == (3, 1)
    assert "No such file" in quarantine(tmp_path / "out")[str(videos / "gone.mp4")]
    video = Corpus.open(tmp_path / "out").video(0)
    assert (video.source, video.domain) == ("hospital", "laparoscopy")
    for text, reason in [
        ("file\na.MP4\n", "no column `path`"),
        ("", "no column `path`"),
        ("path,source\na.MP4,x\n,y\n", "line 3: `path` is empty"),
        ("path\n", "no video found there"),
    ]:
        table.write_text(text)
        with pytest.raises(CorpusError, match=reason):
            list_videos([table])
    table.write_bytes(b"path\nOp\xe9ration.mp4\n")
    with pytest.raises(CorpusError, match="not a readable CSV file in UTF-8"):
        list_videos([table])
    with pytest.raises(CorpusError, match=r"missing\.csv: no such file; correct the path"):
        list_videos([tmp_path / "missing.csv"])


def test_only_changed_files_are_probed_again(videos, tmp_path, probed):
    out = tmp_path / "out"
    (videos / "broken.mp4").write_text("still copying")
    build(videos, out=out)
    assert sorted(probed) == ["Köln.webm", "a.MP4", "b.mkv", "broken.mp4"]
    before, fingerprint = rows(out), Corpus.open(out).fingerprint

    probed.clear()
    assert build(videos, out=out).reused == 3
    assert probed == ["broken.mp4"]
    assert rows(out) == before
    assert Corpus.open(out).fingerprint == fingerprint

    probed.clear()
    os.utime(videos / "b.mkv", ns=(1, 1))
    assert build(videos, out=out).reused == 2
    assert sorted(probed) == ["b.mkv", "broken.mp4"]
    assert Corpus.open(out).fingerprint == fingerprint

    probed.clear()
    clips.write_numbered(videos / "b.mkv", 26, gop=5)
    clips.write_numbered(videos / "aa.mp4", 12)
    (videos / "a.MP4").unlink()
    (videos / "broken.mp4").unlink()
    summary = build(videos, out=out)
    assert (summary.videos, summary.reused, summary.quarantined) == (3, 1, 0)
    assert sorted(probed) == ["aa.mp4", "b.mkv"]
    assert names(out) == ["aa.mp4", "b.mkv", "Köln.webm"]
    assert Corpus.open(out).fingerprint != fingerprint
    build(videos, out=tmp_path / "fresh")
    assert rows(out) == rows(tmp_path / "fresh")


def test_asking_for_more_probes_again(videos, tmp_path, probed):
    out = tmp_path / "out"
    build(videos, out=out, content_box=False)
    assert Corpus.open(out).gops(0).crc32 is None
    for options, count in [
        ({}, 3),
        ({"checksum": True}, 3),
        ({"checksum": True}, 0),
        ({}, 0),
        ({"content_box": False}, 3),
    ]:
        probed.clear()
        build(videos, out=out, **options)
        assert len(probed) == count, options
        corpus = Corpus.open(out)
        assert corpus.has_checksums == options.get("checksum", False)
        assert (corpus.gops(1).crc32 is None) != corpus.has_checksums
        assert corpus.video(1).boxed == options.get("content_box", True)


def test_a_changed_byte_shows_in_the_checksum(videos, tmp_path):
    out, path = tmp_path / "out", videos / "a.MP4"
    build(videos, out=out, checksum=True)
    before = Corpus.open(out)
    gops = before.gops(0)
    data = bytearray(path.read_bytes())
    data[gops.byte_offset[1] + gops.num_bytes[1] // 2] ^= 4
    path.write_bytes(data)
    build(videos, out=out, checksum=True)
    after = Corpus.open(out).gops(0).crc32
    assert after is not None
    assert gops.crc32 is not None
    assert (after != gops.crc32).tolist() == [False, True, False]


def test_mismatched_missing_damaged_and_old_tables_are_refused(videos, tmp_path, probed):
    out, other = tmp_path / "out", tmp_path / "other"
    with pytest.raises(CorpusError, match=r"no such folder; build it with `trocar index"):
        Corpus.open(out)
    build(videos, out=out)
    build(videos, out=other)
    (out / GOPS_NAME).write_bytes((other / GOPS_NAME).read_bytes())
    with pytest.raises(CorpusError, match=r"of different builds .*trocar index"):
        Corpus.open(out)
    probed.clear()
    assert build(videos, out=out).reused == 0
    assert len(probed) == 3

    table = pq.read_table(out / VIDEOS_NAME)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"version": b"0"}), out / VIDEOS_NAME)
    with pytest.raises(CorpusError, match="format version '0', expected '4'"):
        Corpus.open(out)
    (out / VIDEOS_NAME).write_bytes(b"PAR1 not really")
    with pytest.raises(CorpusError, match="damaged"):
        Corpus.open(out)
    (out / VIDEOS_NAME).unlink()
    with pytest.raises(CorpusError, match=r"videos\.parquet: missing"):
        Corpus.open(out)
    assert build(videos, out=out).videos == 3


def test_an_interrupt_leaves_the_old_tables(videos, tmp_path, monkeypatch):
    out = tmp_path / "out"
    build(videos, out=out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    os.utime(videos / "b.mkv", ns=(1, 1))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(probers.Probers, "result", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(videos, out=out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def killing_probe(path, **options):
    """Dies on a file named killer, as a decoder does that writes where it must not; fails oddly on one named odd."""
    if "killer" in path:
        time.sleep(0.1)
        os._exit(11)
    if "odd" in path:
        raise ZeroDivisionError("division by zero")
    return probe_video(path, **options)


def test_a_file_that_kills_its_prober_is_quarantined_alone(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(probers, "probe_video", killing_probe)
    for name in ("0 killer.mp4", "aa killer.mp4", "zz killer.mp4", "odd.mp4"):
        (videos / name).write_bytes(b"x")
    summary = build(videos, out=tmp_path / "out", workers=2)
    assert (summary.videos, summary.quarantined) == (3, 4)
    assert names(tmp_path / "out") == ["a.MP4", "b.mkv", "Köln.webm"]
    reasons = [reason for path, reason in quarantine(tmp_path / "out").items() if "killer" in path]
    assert len(reasons) == 3
    assert all("kills the prober process" in reason for reason in reasons)
    assert quarantine(tmp_path / "out")[str(videos / "odd.mp4")].endswith("ZeroDivisionError: division by zero")


def cheap_probe(path, **_):
    """Facts and 40 GOPs of a made-up video."""
    first_frame = np.arange(0, 1000, 25, dtype=np.int32)
    ticks = first_frame.astype(np.int64)
    flags = np.ones(40, bool)
    some = np.full(40, 25, np.int32)
    every = np.arange(1000)
    packets = PacketTable(
        every * 99, every.astype(np.int32), every, every.astype(np.int32), (every * 0).astype(np.uint8)
    )
    gops = GopTable(
        first_frame, some, ticks, ticks, ticks * 999, ticks + 9, some * 0, flags, flags, ticks, some, packets
    )
    numbers = {field.name: 1 for field in fields(VideoFacts)}
    texts = {"path": path, "container": "mp4", "codec": "h264", "pix_fmt": "yuv420p", "header": b"", "health": "ok"}
    others = {"frames": 1000, "duration_seconds": 40.0, "mirrored": False, "variable_rate": False, "pauses": ()}
    facts = VideoFacts(**{**numbers, **texts, **others})  # pyright: ignore[reportArgumentType]
    return facts, gops


def peak_bytes(count: int, folder: Path) -> int:
    entries = [SourceFile(f"/none/{number:06d}.mp4") for number in range(count)]
    index.list_videos = lambda *_: entries  # pyright: ignore[reportAttributeAccessIssue]
    build(folder, out=folder / "out")
    tracemalloc.start()
    # Over the tables of the first time, so that reading them counts as well.
    build(folder, out=folder / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.slow
def test_memory_is_flat_from_10_to_10000_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(probers, "probe_video", cheap_probe)
    monkeypatch.setattr(index, "list_videos", index.list_videos)
    few = peak_bytes(10, tmp_path / "few")
    arrow_before = pa.default_memory_pool().max_memory()
    many = peak_bytes(10_000, tmp_path / "many")
    arrow_growth = pa.default_memory_pool().max_memory() - arrow_before
    print(
        f"\npeak: {few / 1e6:.2f} MB for 10 entries, {many / 1e6:.2f} MB for 10,000; Arrow's rose {arrow_growth / 1e6:.2f} MB"
    )
    assert many - few < 6e6
    assert arrow_growth < 8e6
    corpus = Corpus.open(tmp_path / "many" / "out")
    assert len(corpus) == 10_000
    groups = pq.ParquetFile(tmp_path / "many" / "out" / GOPS_NAME).metadata
    assert groups.num_rows == 400_000
    assert {groups.row_group(group).num_rows % 40 for group in range(groups.num_row_groups)} == {0}
    assert (
        max(groups.row_group(group).num_rows for group in range(groups.num_row_groups))
        <= corpus_writer.GOPS_PER_ROW_GROUP
    )
    started = time.perf_counter()
    for row in np.random.default_rng(0).integers(0, 10_000, 200):
        assert corpus.gops(int(row)).byte_offset[3] == 75 * 999
        assert corpus.video(int(row)).facts.path == f"/none/{row:06d}.mp4"
    print(f"random reads of a video's facts and GOPs: {(time.perf_counter() - started) / 200 * 1e3:.2f} ms each")


def test_a_video_longer_than_a_row_group(tmp_path, monkeypatch):
    def long_probe(path, **_):
        facts, gops = cheap_probe(path)
        count = 40_000 if "long" in os.path.basename(path) else 40
        return replace(facts, frames=count), gops[np.arange(count) % 40]

    monkeypatch.setattr(probers, "probe_video", long_probe)
    monkeypatch.setattr(corpus_writer, "GOPS_PER_ROW_GROUP", 1000)
    for name in ("a.mp4", "long.mp4", "z.mp4"):
        (tmp_path / name).touch()
    build(tmp_path, out=tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    assert [len(corpus.gops(row)) for row in range(3)] == [40, 40_000, 40]
    assert corpus.gops(1).first_frame[-1] == 975
    assert corpus.gops(2).first_frame[1] == 25


def test_threads_may_share_a_corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(probers, "probe_video", cheap_probe)
    monkeypatch.setattr(corpus_writer, "GOPS_PER_ROW_GROUP", 80)
    for number in range(100):
        (tmp_path / f"{number:03d}.mp4").touch()
    build(tmp_path, out=tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")

    def read(row: int) -> bool:
        return corpus.video(row).facts.path.endswith(f"{row:03d}.mp4") and len(corpus.gops(row)) == 40

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, np.random.default_rng(0).integers(0, 100, 1000).tolist()))


def test_progress_prints_lines_where_there_is_no_terminal(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    index_corpus([videos], tmp_path / "out", workers=1)
    assert capsys.readouterr().err.splitlines()[-1] == "3 of 3 files: 3 videos, 0 refused"
    build(videos, out=tmp_path / "out")
    assert capsys.readouterr() == ("", "")


def test_few_files_are_probed_in_this_process(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(probers, "_process_pool", lambda _: pytest.fail("started a pool for three files"))
    index_corpus([videos], tmp_path / "out", progress=False)
    with pytest.raises(CorpusError, match="workers=0"):
        index_corpus([videos], tmp_path / "out", workers=0)


@pytest.mark.skipif("TROCAR_TEST_VIDEOS" not in os.environ, reason="TROCAR_TEST_VIDEOS names no folder of real videos")
def test_real_videos(tmp_path):
    summary = build(os.environ["TROCAR_TEST_VIDEOS"], out=tmp_path / "out", workers=2)
    assert (summary.videos, summary.quarantined) == (31, 0)
    corpus = Corpus.open(tmp_path / "out")
    assert {corpus.video(row).facts.health for row in range(len(corpus))} == {"ok"}
    for row in (0, 15, 30):
        with av.open(corpus.video(row).facts.path) as container:
            assert sum(1 for _ in container.decode(video=0)) == corpus.frames[row]


def test_a_probe_error_names_the_path(tmp_path):
    with pytest.raises(VideoError, match=str(tmp_path)):
        probe_video(tmp_path / "missing.mp4")
