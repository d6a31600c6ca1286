"""`trocar screen` against made videos whose every fault is known, and on public clips."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from clips import write_pictures
from dirty_videos import EVENTS, OVERLAYS, Counts, Truth, judge, write_dirty_video

from trocar.engine.cli import main
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.folder import CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.spans import Screen, ScreenedVideo, read_screen
from trocar.loaders.screen import fit_in_body
from trocar.loaders.screen.in_body import IN_BODY, in_body
from trocar.loaders.screen.pictures import Pictures
from trocar.loaders.screen.screen import PARTS, screen_corpus
from trocar.loaders.screen.video_screen import ScreenSettings, screen_video
from trocar.loaders.video.probe import probe_video

SURGICAL = os.environ.get("TROCAR_TEST_VIDEOS")


def screened(path: Path, settings: ScreenSettings | None = None) -> ScreenedVideo:
    facts, gops = probe_video(str(path), content_box=False)
    return screen_video("v", facts, gops, settings or ScreenSettings())


def told(counts: dict[str, Counts]) -> None:
    for kind, of in counts.items():
        print(
            f"{kind}: precision {of.precision:.4f}, recall {of.recall:.4f} ({of.right} right, {of.wrong} wrong, {of.missed} missed)"
        )


def test_planted_faults_are_found(tmp_path: Path) -> None:
    events = ("similar cut", "flash", "blank", "instrument", "frozen")
    truth = write_dirty_video(
        tmp_path / "v.mp4", 2, events, overlay="text", gop=25, longest_frozen=2.5, clean_seconds=1.0
    )
    counts: dict[str, Counts] = {}
    found = screened(truth.path)
    judge(found, truth, counts)
    told(counts)
    assert counts["cut"].precision == counts["cut"].recall == 1
    assert counts["flash"].wrong == counts["instrument"].wrong == 0
    for kind in ("blank", "frozen"):
        assert min(counts[kind].precision, counts[kind].recall) > 0.95, kind
    assert found.spans["frames"].sum() == truth.frames
    assert (np.cumsum(found.spans["frames"])[:-1] == found.spans["first_frame"][1:]).all()


@pytest.fixture(scope="session")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> list[Truth]:
    """Twenty videos with every kind of fault in each."""
    folder, made = tmp_path_factory.mktemp("dirty"), []
    for seed in range(20):
        events = list(EVENTS)
        np.random.default_rng(1000 + seed).shuffle(events)
        made.append(
            write_dirty_video(
                folder / f"{seed}.mp4",
                seed,
                tuple(events),
                overlay=OVERLAYS[seed % 4],
                gop=(12, 30, 60, 250)[seed // 2 % 4],
                size=seed % 3,
                longest_frozen=120.0 if seed % 5 == 0 else 12.0,
            )
        )
    return made


@pytest.mark.slow
@pytest.mark.timeout(2400)  # writing the videos alone takes two minutes of a core
def test_twenty_of_every_kind(dirty: list[Truth]) -> None:
    counts: dict[str, Counts] = {}
    overlaps = [judge(screened(truth.path), truth, counts) for truth in dirty]
    told(counts)
    print("overlays:", ", ".join(f"{OVERLAYS[seed % 4]} {overlap:.2f}" for seed, overlap in enumerate(overlaps)))
    assert counts["cut"].right + counts["cut"].missed == 80
    assert min(counts["cut"].precision, counts["cut"].recall) >= 0.95
    assert min(counts[kind].precision for kind in ("blank", "frozen")) >= 0.98
    assert min(counts[kind].recall for kind in ("blank", "frozen")) >= 0.98
    assert counts["flash"].wrong <= 0.02 * len(dirty)
    assert counts["instrument"].wrong <= 0.02 * len(dirty)
    for kind in ("picture in picture", "defocus"):
        assert min(counts[kind].precision, counts[kind].recall) >= 0.7, kind
    assert min(counts["fade or wipe"].precision, counts["fade or wipe"].recall) >= 0.9
    assert np.mean(overlaps) >= 0.7
    assert np.quantile(overlaps, 0.1) >= 0.7


def pictures(count: int, seed: int) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    still = chance.integers(40, 220, (64, 64, 3)).astype(np.uint8)
    return [np.roll(still, number, 1) for number in range(count)]


def make_corpus(folder: Path, count: int = 3) -> Path:
    (folder / "videos").mkdir(exist_ok=True)
    for row in range(count):
        write_pictures(folder / "videos" / f"{row}.mp4", pictures(40, row), gop=10)
    index_corpus([folder / "videos"], folder / "index", workers=1, content_box=False, progress=False)
    return folder / "index"


def test_only_what_is_new_is_screened_and_a_broken_video_counts_as_blank(tmp_path: Path) -> None:
    index = make_corpus(tmp_path)
    first = screen_corpus(index, workers=1, progress=False)
    assert (first.videos, first.reused) == (3, 0)
    before = (index / "spans.parquet").read_bytes()
    again = screen_corpus(index, workers=1, progress=False)
    assert (again.reused, again.pictures) == (3, 0)
    assert (index / "spans.parquet").read_bytes() == before
    write_pictures(tmp_path / "videos" / "3.mp4", pictures(50, 9), gop=10)
    index_corpus([tmp_path / "videos"], index, workers=1, content_box=False, progress=False)
    with pytest.raises(CorpusError, match=r"3\.mp4 was not screened.*trocar screen"):
        Screen(Corpus.open(index))
    assert screen_corpus(index, workers=1, progress=False).reused == 3
    assert len(Screen(Corpus.open(index)).videos) == 4
    assert screen_corpus(index, ScreenSettings(thorough=True), workers=1, progress=False).reused == 0
    (tmp_path / "videos" / "3.mp4").write_bytes(b"gone")
    lost = screen_corpus(index, workers=1, progress=False)
    assert len(lost.unreadable) == 1
    assert "3.mp4" in lost.lines()[-1]
    screen = Screen(Corpus.open(index))
    assert screen.columns["blank"][screen.video == 3].all()


def test_a_killed_screen_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """What is there of a screen that was killed: parts, one of them torn."""
    index = make_corpus(tmp_path)
    screen_corpus(index, workers=1, progress=False)
    whole = read_screen(index)
    words = [sys.executable, "-m", "trocar.engine.cli", "screen", str(index), "--workers", "1", "--thorough"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((index / PARTS).glob("*.npz")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    parts = sorted((index / PARTS).glob("*.npz"))
    if parts:
        parts[-1].write_bytes(parts[-1].read_bytes()[:-40])
        assert [video.made_of for video in read_screen(index)] == [video.made_of for video in whole], (
            "the old one stays whole"
        )
    resumed = screen_corpus(index, ScreenSettings(thorough=True), workers=1, progress=False)
    assert resumed.reused >= len(parts) - 1
    shutil.rmtree(index / PARTS, ignore_errors=True)
    for name in ("spans.parquet", "screen.parquet"):
        (index / name).unlink()
    screen_corpus(index, ScreenSettings(thorough=True), workers=1, progress=False)
    assert [video.made_of for video in read_screen(index)]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = make_corpus(tmp_path, 1)
    assert main(["screen", str(index), "--workers", "1"]) == 0
    assert "1 videos" in capsys.readouterr().out


def test_made_scenes_are_out_of_body() -> None:
    scenes = [(kind, seed) for kind in fit_in_body.KINDS for seed in range(5)]
    scores = {scene: in_body(fit_in_body.made_scene(*scene)) for scene in scenes}
    assert len(scores) == 20
    assert max(scores.values()) <= IN_BODY, scores


@pytest.mark.skipif(not SURGICAL, reason="TROCAR_TEST_VIDEOS names no folder")
def test_public_surgical_clips_are_in_body_and_another_video_is_not() -> None:
    """Of each clip its middle picture here; all of them in the slow test."""
    clips = sorted(Path(str(SURGICAL)).glob("*.mp4"))
    assert len(clips) >= 20
    scores = {clip.name: in_body(middle_picture(clip)) for clip in clips}
    assert min(scores.values()) > IN_BODY, scores
    others = sorted(Path(str(SURGICAL)).parent.glob("*.mp4"))
    assert others
    assert max(in_body(middle_picture(clip)) for clip in others) <= IN_BODY


def middle_picture(path: Path) -> np.ndarray:
    """The first keyframe from the middle on."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        container.seek(int((stream.duration or 0) // 2), stream=stream)
        frame = next(container.decode(stream))
    return Pictures().sample(0, frame).pixels


@pytest.mark.slow
@pytest.mark.skipif(not SURGICAL, reason="TROCAR_TEST_VIDEOS names no folder")
def test_no_surgical_clip_has_a_span_out_of_body(tmp_path: Path) -> None:
    folder = Path(str(SURGICAL))
    others = [str(path) for path in folder.parent.glob("*.mp4")]
    index_corpus([str(folder), *others], tmp_path / "index", progress=False)
    screen_corpus(tmp_path / "index", progress=False)
    screen = Screen(Corpus.open(tmp_path / "index"))
    for row in range(len(screen.videos)):
        path, scores = screen.corpus.video_path(row), screen.columns["in_body"][screen.video == row]
        print(f"{Path(path).name}: {scores.min():.2f} .. {scores.max():.2f}")
        assert (scores.max() <= IN_BODY) if path in others else (scores.min() > IN_BODY), path
