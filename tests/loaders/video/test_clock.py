"""One clock: rows in seconds, corpus draws, proxies and exported draws show the frames that a player shows then.

Shapes: F frames of a video, B clips, T frames of a clip.
"""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path
from typing import Any

import av
import clips
import numpy as np
import pytest

from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.draw.clip_list import ClipList
from trocar.loaders.draw.phases import uniform_order
from trocar.loaders.draw.sampler import Sampler
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import VideoError

FRAMES, SAMPLE_FPS, PROXY_STRIDE = 6, 5.0, 2
WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)
PAUSE, SLOW = [1] * 59 + [15_000] + [1] * 59, [1] * 59 + [6] * 60
# name, frames, encoding; ticks are of 1/25 s. The place of a name is the video's id.
VIDEOS: list[tuple[str, int, dict[str, Any]]] = [
    ("0_alone.mp4", 90, {"gop": 12, "b_frames": 2}),
    ("1_late.mp4", 90, {"gop": 12, "b_frames": 2, "first_tick": 50, "audio": True}),
    ("2_late.mkv", 90, {"gop": 12, "first_tick": 50, "audio": True}),
    ("3_late.ts", 90, {"gop": 12, "b_frames": 2, "first_tick": 50, "audio": True}),
    ("4_clock_time.ts", 90, {"gop": 12, "first_tick": 90_000}),
    ("5_hidden_start.mp4", 90, {"gop": 12, "first_tick": -10}),
    ("6_pause.mp4", 120, {"gop": 12, "b_frames": 2, "gaps": PAUSE}),
    ("7_slow_half.mkv", 120, {"gop": 12, "gaps": SLOW}),
    ("8_late_and_uneven.mkv", 90, {"gop": 12, "first_tick": 50, "audio": True, "variable_rate": True}),
    ("9_untold_start.wmv", 90, {"codec": "mpeg4", "gop": 12, "b_frames": 2}),
]
NAMES = [name for name, *_ in VIDEOS]
PAUSED, UNEVEN = 6, (6, 7, 8)


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("clock")
    (folder / "videos").mkdir()
    for video_id, (name, frames, encoding) in enumerate(VIDEOS):
        size = {"width": 96, "height": 64, "options": {"preset": "ultrafast"}}
        clips.write_numbered(folder / "videos" / name, frames, video_id=video_id, **size, **encoding)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, content_box=False, progress=False)
    return Corpus.open(folder / "corpus")


@pytest.fixture(scope="module")
def proxies(originals: Corpus) -> Corpus:
    out = originals.path.parent / "packed"
    pack_corpus(originals.path, out, PackSettings(short_side=64, stride=PROXY_STRIDE), workers=1, progress=False)
    return Corpus.open(out)


def player_begins(path: str) -> dict[int, float]:
    """When a player shows each number, by plain decoding: seconds from where the first stream starts."""
    begins = {}
    with av.open(path) as container:
        zero = (container.start_time or 0) / av.time_base
        for frame in container.decode(video=0):
            assert frame.time is not None
            begins[clips.read_number(frame.to_ndarray(format="rgb24"))[1]] = frame.time - zero
    return begins


@pytest.fixture(scope="module")
def begins(originals: Corpus) -> list[np.ndarray]:
    """(F,) for each video, when its frames begin; their numbers from the first shown one on."""
    tables = [player_begins(originals.video_path(row)) for row in range(len(originals))]
    return [np.array([table[number] for number in sorted(table)]) for table in tables]


def numbers(row: int, frames: np.ndarray) -> list[tuple[int, int]]:
    first = 10 if "hidden" in NAMES[row] else 0
    return [(row, first + int(frame)) for frame in frames]


def read(pictures: Any) -> list[tuple[int, int]]:
    return [clips.read_number(picture) for picture in pictures.numpy()]


def test_zero_is_where_the_first_stream_starts(begins: list[np.ndarray]) -> None:
    starts = dict(zip(NAMES, [table[0] for table in begins], strict=True))
    assert starts["0_alone.mp4"] == starts["4_clock_time.ts"] == starts["5_hidden_start.mp4"] == 0
    assert starts["9_untold_start.wmv"] == pytest.approx(0.04), "timestamps from 0, the first picture behind B-frames"
    for name in ("1_late.mp4", "2_late.mkv", "3_late.ts"):
        assert starts[name] == pytest.approx(2, abs=0.15), (
            "two seconds of sound first, but for what encoders put before it"
        )


def test_every_frame_begins_when_a_player_shows_it(originals: Corpus, begins: list[np.ndarray]) -> None:
    for row, table in enumerate(begins):
        timeline = originals.timeline(row)
        assert timeline.begins(np.arange(len(table))) == pytest.approx(table, abs=2e-6)
        assert originals.video(row).facts.frames == len(table)
        assert originals.video(row).facts.start_seconds == pytest.approx(table[0], abs=2e-6)


def test_rows_in_seconds(originals: Corpus, begins: list[np.ndarray]) -> None:
    """With an index and without one: a row at a time is the frame that a player shows then, with its time."""
    rows = []
    for row, table in enumerate(begins):
        moments = np.random.default_rng(row).uniform(max(0, table[0] - 1), min(table[-1], table[0] + 8), 3)
        rows += [(row, float(moment)) for moment in moments]
    expected = [max(0, int(np.searchsorted(begins[row], moment + 5e-4, side="right")) - 1) for row, moment in rows]
    assert 0 in expected, "some are before the first picture"
    for videos in (originals, None):
        listed = [(originals.video_path(row), moment, None) for row, moment in rows]
        loader = clip_loader(
            listed, videos=videos, batch=len(rows), num_frames=1, stride=1, resolution=64, crops=WHOLE, shuffle=False,
            content_box=False, device="cpu", threads=1,
        )  # fmt: skip
        (batch,) = loader
        for place, (row, _) in enumerate(rows):
            assert batch.frame_numbers[place].tolist() == [expected[place]]
            assert read(batch.frames[place]) == numbers(row, batch.frame_numbers[place])
            assert batch.pts_seconds[place, 0] == pytest.approx(begins[row][expected[place]], abs=2e-6)


def drawn(corpus: Corpus, draws: int, **timing: Any) -> Any:
    sampler = Sampler.of(corpus, num_frames=FRAMES, **timing)
    with ClipLoader(
        corpus, sampler, WHOLE, [np.arange(draws)], resolution=64, content_box=False, threads=1
    ) as loader:  # fmt: skip
        return next(loader)


def test_draws_by_time_are_rows_by_time(originals: Corpus, begins: list[np.ndarray]) -> None:
    """Pictures, times and frames of a draw with sample_fps are those of a row that starts when it does, at any rate, and as far
    from one another as was asked for."""
    batch = drawn(originals, 64, sample_fps=SAMPLE_FPS)
    assert set(batch.videos.tolist()) == set(range(len(VIDEOS)))
    repeated = 0
    for place, (row, frames) in enumerate(zip(batch.videos.tolist(), batch.frame_numbers, strict=True)):
        table = begins[row]
        assert read(batch.frames[place]) == numbers(row, frames)
        assert batch.pts_seconds[place] == pytest.approx(table[frames], abs=2e-6)
        wanted = table[frames[0]] + np.arange(FRAMES) / SAMPLE_FPS
        largest_gap = np.diff(table[frames[0] : frames[-1] + 2]).max()
        assert np.abs(table[frames] - wanted).max() <= largest_gap / 2 + 1e-3
        (clip,) = ClipList([(row, table[frames[0]], None)], originals, num_frames=FRAMES, sample_fps=SAMPLE_FPS).clips(
            [0]
        )
        assert clip.frames.tolist() == frames.tolist()
        repeated += FRAMES - len(set(frames.tolist()))
        assert clip.repeated == FRAMES - len(set(frames.tolist()))
    assert batch.count.repeated_frames == repeated


def test_rates_above_a_videos_own_repeat_and_are_counted(originals: Corpus, begins: list[np.ndarray]) -> None:
    batch = drawn(originals, 40, sample_fps=50.0)
    distinct = sum(len(set(frames.tolist())) for frames in batch.frame_numbers)
    assert batch.count.repeated_frames == 40 * FRAMES - distinct > 40


@pytest.mark.parametrize("timing", [{"sample_fps": SAMPLE_FPS}, {"stride": 5}])
def test_no_clip_crosses_a_pause(originals: Corpus, begins: list[np.ndarray], timing: dict[str, Any]) -> None:
    facts = originals.video(PAUSED).facts
    assert facts.pauses == (60,)
    assert facts.variable_rate
    assert facts.fps_numerator / facts.fps_denominator == pytest.approx(25, abs=0.01), "pauses do not count"
    sampler = Sampler.of(originals, num_frames=FRAMES, seed=1, **timing)
    videos, frames, _ = sampler.frames(np.arange(4 * sampler.num_spans))
    of_paused = frames[videos == PAUSED]
    assert (np.diff(begins[PAUSED][of_paused], axis=1) < 0.3).all()
    assert {bool(first < 60) for first in of_paused[:, 0]} == {True, False}, "both sides are drawn"
    # A video weighs what it has pictures: 4 spans of 26 frames, as one without a pause.
    spans = np.bincount(sampler.grid()[0])
    assert spans[PAUSED] == 4
    assert spans[0] == 3
    assert len(of_paused) == 4 * spans[PAUSED]


def test_only_uneven_videos_are_flagged(originals: Corpus) -> None:
    assert np.flatnonzero(originals.variable_rate).tolist() == list(UNEVEN)
    assert originals.pauses.tolist() == [[PAUSED, 60]]


def test_missing_frames_make_a_rate_variable(tmp_path: Path) -> None:
    """Three gaps, none of them a pause, but 45 frames that are not there."""
    gaps = [1] * 80
    gaps[20] = gaps[40] = gaps[60] = 16
    clips.write_numbered(tmp_path / "a.mkv", 80, width=64, height=64, gaps=gaps)
    clips.write_numbered(tmp_path / "b.mkv", 80, width=64, height=64, gaps=[1] * 30 + [2] + [1] * 60)
    uneven, even = (probe_video(tmp_path / name, content_box=False)[0] for name in ("a.mkv", "b.mkv"))
    assert (uneven.variable_rate, uneven.pauses) == (True, ())
    assert (even.variable_rate, even.pauses) == (False, ())


def test_stretches_too_short_for_a_clip_are_left_out() -> None:
    """10 frames alone between two pauses, 20 behind them, and a video that has nothing longer than 5."""
    pauses = np.array([[0, 100], [0, 110], [1, 5], [1, 8]])
    sampler = Sampler([130, 12], num_frames=6, stride=5, pauses=pauses)
    videos, first, frames = sampler.grid()
    assert videos.tolist() == [0, 0, 0, 0, 1]
    assert first.tolist() == [0, 26, 52, 110, 0]
    assert frames.tolist() == [26] * 5
    for clip in sampler.clips(np.arange(200)):
        if clip.video == 1:
            assert (clip.frames.tolist(), clip.repeated) == ([0, 4, 4, 4, 4, 4], 5)
        else:
            assert clip.frames[-1] < 100 or clip.frames[0] == 110
            assert clip.repeated == (2 if clip.frames[0] == 110 else 0)


def test_draws_do_not_depend_on_how_they_are_asked_for(originals: Corpus) -> None:
    whole = Sampler.of(originals, num_frames=FRAMES, sample_fps=SAMPLE_FPS, seed=5).clips(np.arange(60))
    for world_size in (2, 7):
        for rank in range(world_size):
            again = Sampler.of(Corpus.open(originals.path), num_frames=FRAMES, sample_fps=SAMPLE_FPS, seed=5)
            mine = again.clips(np.arange(rank, 60, world_size))
            expected = [(clip.video, clip.frames.tolist(), clip.repeated) for clip in whole[rank::world_size]]
            assert [(clip.video, clip.frames.tolist(), clip.repeated) for clip in mine] == expected


@pytest.mark.parametrize(
    ("timing", "with_order", "digest", "fingerprint"),
    [
        ({"stride": 4}, False, "0e09da622c669555", "d122fc5f4756ebe31d7e11baf6898936"),
        ({"sample_fps": 6.0}, False, "64768018c7043378", "e7007a7d814377f65135de7e3212b0d9"),
        ({"stride": 4}, True, "c5940810691f464c", "f8ee0da7966b7226c64c739f7e2454d2"),
        ({"sample_fps": 6.0}, True, "96d4bac030b33f46", "f9cc101706038f76610e8895c809251e"),
    ],
)
def test_constant_rates_are_drawn_from_as_ever(
    timing: dict[str, Any], with_order: bool, digest: str, fingerprint: str
) -> None:
    """Taken down before pauses and variable rates were looked at: what has neither is drawn from alike."""
    frames, fps = np.array([61, 500, 7000, 30, 12345]), np.array([25, 50, 30000 / 1001, 12.5, 60.0])
    options: dict[str, Any] = {"num_frames": 16, "video_fps": fps, "variable_rate": np.zeros(5, bool), **timing}
    sampler = Sampler(frames, seed=7, **options)
    if with_order:
        order = uniform_order(sampler, np.array([1, 0, 1, 1, 1], bool), 3)
        sampler = Sampler(frames, seed=3, order=order, **options)
    found = hashlib.blake2b(digest_size=8)
    draws = (
        sampler.frames(np.arange(3000)),
        sampler.frames(np.arange(500), view=2),
        sampler.frames(np.arange(500), spare=3),
    )
    for array in (part for drawn in draws for part in drawn):
        found.update(np.ascontiguousarray(array).tobytes())
    assert (found.hexdigest(), sampler.fingerprint(3000)) == (digest, fingerprint)


def test_a_fingerprint_tells_of_pauses_and_variable_rates(originals: Corpus) -> None:
    def fingerprint(**changes: Any) -> str:
        options = {
            "num_frames": 4,
            "sample_fps": 5.0,
            "video_fps": originals.fps,
            "timeline": originals.timeline,
            **changes,
        }
        return Sampler(originals.frames, **options).fingerprint(100)

    plain, uneven, paused = fingerprint(), {"variable_rate": originals.variable_rate}, {"pauses": originals.pauses}
    assert len({plain, fingerprint(**uneven), fingerprint(**paused), fingerprint(**uneven, **paused)}) == 4


def test_proxies_keep_the_clock(originals: Corpus, proxies: Corpus, begins: list[np.ndarray]) -> None:
    """A row in seconds is the same moment in a proxy, within a frame of the original, and so is a draw's."""
    rows_of = {originals.video_path(row): row for row in range(len(originals))}
    original_of = [rows_of[proxies.video(place).original] for place in range(len(proxies))]
    for place, row in enumerate(original_of):
        facts, table = proxies.video(place).facts, begins[row]
        assert facts.start_seconds == pytest.approx(table[0], abs=1e-3)
        kept = proxies.timeline(place).begins(np.arange(facts.frames))
        assert kept == pytest.approx(table[::PROXY_STRIDE], abs=0.021)
    assert sorted(np.array(original_of)[proxies.variable_rate]) == list(UNEVEN)
    rows = [
        (originals.video_path(row), float(begins[row][first]), None) for row in range(len(VIDEOS)) for first in (6, 30)
    ]
    sample_fps = 3.0  # no more than the slow half's proxy has on average
    options: dict[str, Any] = {"num_frames": FRAMES, "sample_fps": sample_fps}
    for clip, from_proxy in zip(
        ClipList(rows, originals, **options).clips(np.arange(len(rows))),
        ClipList(rows, proxies, **options).clips(np.arange(len(rows))),
        strict=True,
    ):
        assert (clip.problem, from_proxy.problem) == ("", "")
        table = begins[clip.video]
        gaps = np.diff(table, append=table[-1] + 0.04)
        off = np.abs(table[from_proxy.frames * PROXY_STRIDE] - table[clip.frames])
        assert (off <= PROXY_STRIDE * gaps[clip.frames] + 1e-3).all()
    batch = drawn(proxies, 48, sample_fps=sample_fps)
    for place, (video, frames) in enumerate(zip(batch.videos.tolist(), batch.frame_numbers, strict=True)):
        row = original_of[video]
        assert read(batch.frames[place]) == numbers(row, frames * PROXY_STRIDE)
        assert batch.pts_seconds[place] == pytest.approx(begins[row][frames * PROXY_STRIDE], abs=0.021)
        assert np.diff(batch.pts_seconds[place]).max() < 0.9


def test_rows_beyond_the_picture(originals: Corpus) -> None:
    """The sound alone is no clip; a row that only begins before the picture starts with its first frame."""
    late = originals.video_path(1)
    rows = [(late, 0.5, None, 1.5), (late, 0.5, None), (late, 5.9, None), (late, 0.5, None, 2.5)]
    before, over, behind, around = ClipList(rows, originals, num_frames=2, stride=1).clips(np.arange(4))
    assert "a clip ends at 1.5 s, but the picture begins at 2 s, behind the sound; correct its end" in before.problem
    assert over.frames.tolist() == [0, 1]
    assert "a clip starts at 5.9 s, but the video ends at 5.6 s" in behind.problem
    assert around.frames[-1] <= 13
    with pytest.raises(VideoError, match=r"the picture begins at 2 s"):
        list(clip_loader(rows[:1], batch=1, num_frames=2, stride=1, training=False, device="cpu", threads=1))


def test_exported_draws_name_the_players_seconds(originals: Corpus, begins: list[np.ndarray], tmp_path: Path) -> None:
    from trocar.engine.curate.draws import export_draws, plan  # slow to import

    data = [f"data.corpus={originals.path}", f"data.frames={FRAMES}", "data.stride=null", "data.sample_fps=5"]
    planned = plan("demo_cpu", [*data, "data.resolution=32", "model.patch=16"])
    export_draws(planned, 0, 40, tmp_path / "draws.csv")
    rows = {originals.video(row).id: row for row in range(len(originals))}
    with (tmp_path / "draws.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 40
    for line in table:
        expected = begins[rows[line["video"]]][[int(line["first_frame"]), int(line["last_frame"])]]
        assert [float(line["start_seconds"]), float(line["end_seconds"])] == pytest.approx(expected, abs=2e-6)
