"""Files without an index: probed once, when needed, by one thread; a bounded part is kept; what fails says so."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import clips
import fsspec
import numpy as np
import pytest

from trocar.loaders.corpus import video_files
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.video_files import VideoFiles
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import VideoError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    for number in range(3):
        clips.write_numbered(
            tmp_path / "videos" / f"{number}.mp4", 40 + 10 * number, video_id=number, rotation=90 * number
        )
    return tmp_path


@pytest.fixture
def probed(monkeypatch) -> list[str]:
    """The paths that are probed, in order; each takes a while."""
    paths: list[str] = []

    def slow_probe(path, **options):
        paths.append(Path(path).name)
        time.sleep(0.02)
        return probe_video(path, **options)

    monkeypatch.setattr(video_files, "probe_video", slow_probe)
    return paths


def test_a_path_keeps_its_row_and_no_file_is_touched(folder, probed, monkeypatch):
    monkeypatch.chdir(folder / "videos")
    files = VideoFiles(["0.mp4", Path("1.mp4"), "no such file.mp4"])
    assert [files.add(name) for name in ("1.mp4", str(folder / "videos/0.mp4"), "memory://a/0.mp4")] == [1, 0, 3]
    assert len(files) == 4
    assert files.video_path(0) == str(folder / "videos" / "0.mp4")
    assert files.video_path(3) == "memory://a/0.mp4"
    assert not probed


@pytest.mark.parametrize("content_box", [True, False])
def test_what_an_index_would_say(folder, content_box):
    index_corpus([folder / "videos"], folder / "corpus", workers=1, content_box=content_box, progress=False)
    corpus = Corpus.open(folder / "corpus")
    files = VideoFiles([corpus.video_path(row) for row in range(3)], content_box=content_box)
    for row in range(3):
        known, found = corpus.video(row), files.video(row)
        assert (found.id, found.facts, found.boxed) == (known.id, known.facts, content_box)
        assert (found.num_gops, found.gops_digest) == (known.num_gops, known.gops_digest)
        packets, expected = (videos.gops(row).packets[0 : known.facts.frames] for videos in (files, corpus))
        assert np.array_equal(packets.offset, expected.offset)


def test_threads_probe_a_file_once(folder, probed):
    files = VideoFiles(sorted((folder / "videos").iterdir()))
    start = threading.Barrier(8)

    def ask(turn: int) -> tuple[int, int]:
        start.wait()
        return turn % 3, files.video(turn % 3).facts.rotation

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {(0, 0), (1, 90), (2, 180)}
    assert sorted(probed) == ["0.mp4", "1.mp4", "2.mp4"]


def test_the_least_recently_used_are_dropped(folder, probed):
    files = VideoFiles(sorted((folder / "videos").iterdir()))
    for row in (0, 1, 0, 1):
        files.gops(row)
    assert probed == ["0.mp4", "1.mp4"]
    # Room for two.
    files.kept_bytes = sum(files._bytes.values()) * 3 // 2
    for row in (0, 2, 0, 2, 1, 2):
        assert files.video(row).facts.frames == 40 + 10 * row
    assert probed == ["0.mp4", "1.mp4", "2.mp4", "1.mp4"]
    assert sum(files._bytes.values()) <= files.kept_bytes
    files.kept_bytes = 0
    for row in (0, 1, 1):
        files.video(row)
    assert probed[4:] == ["0.mp4", "1.mp4"]


def test_broken_and_missing_files_are_named_and_tried_again(folder, probed):
    path = folder / "videos" / "late.mp4"
    files = VideoFiles([path])
    with pytest.raises(VideoError, match=r"late\.mp4: cannot be read \(No such file or directory\); correct the path"):
        files.video(0)
    path.write_bytes(bytes(1000))
    with pytest.raises(VideoError, match=r"late\.mp4: cannot be opened as a video"):
        files.gops(0)
    clips.write_numbered(path, 30)
    assert files.video(0).facts.frames == 30
    assert probed == ["late.mp4"] * 3


def test_urls(folder):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/videos/0.mp4", (folder / "videos" / "0.mp4").read_bytes())
    try:
        files = VideoFiles(["memory://videos/0.mp4", "memory://videos/1.mp4"])
        assert files.video(0).facts.path == "memory://videos/0.mp4"
        assert files.video(0).facts.frames == 40
        with pytest.raises(VideoError, match=r"memory://videos/1\.mp4: cannot be read"):
            files.video(1)
    finally:
        memory.rm("/videos", recursive=True)
