"""Clips of a list: the frames that the seconds say, with their labels; what is not such a list is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest

from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.corpus.video_files import VideoFiles
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.decode.batch import ClipBatch
from trocar.loaders.draw.augment import Box, Crop, CropRecipe
from trocar.loaders.draw.clip_list import ClipList
from trocar.loaders.draw.evaluation_crops import EvaluationCrops
from trocar.loaders.draw.order import ClipOrder
from trocar.loaders.draw.sampler import Clip
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.video import VideoError

pytestmark = pytest.mark.timeout(120)

FRAMES = 4
WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)
# 25 frames a second; the gaps of the second video cycle through 1, 1, 2 and 4 of them. The place of a name is the video's id.
VIDEOS: list[tuple[str, int, dict[str, Any]]] = [
    ("0.mp4", 100, {"gop": 12, "b_frames": 3, "open_gop": True}),
    ("1.mkv", 100, {"gop": 30, "b_frames": 2, "variable_rate": True}),
    ("2.mp4", 6, {}),
]
CONSTANT, VARIABLE, SHORT = (name for name, _, _ in VIDEOS)
BEGINS = {
    CONSTANT: np.arange(100) / 25,
    VARIABLE: np.append(0, np.cumsum(np.resize([1, 1, 2, 4], 99))) / 25,
    SHORT: np.arange(6) / 25,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for video_id, (name, frames, encoding) in enumerate(VIDEOS):
        clips.write_numbered(folder / name, frames, video_id=video_id, **encoding)
    return folder


@pytest.fixture(scope="module")
def corpus(folder: Path, tmp_path_factory) -> Corpus:
    out = tmp_path_factory.mktemp("corpus")
    index_corpus([folder], out, workers=1, progress=False)
    return Corpus.open(out)


def shown(name: str, seconds: float) -> int:
    return int(np.flatnonzero(BEGINS[name] <= seconds + 1e-6)[-1])


# So that a file is probed once for all tests.
FILES = VideoFiles(content_box=False)


def one(rows: list[Any], folder: Path, *, draw: int = 0, view: int = 0, **options: Any) -> Clip:
    """The clip of a draw from rows that name files in the folder."""
    rows = [(folder / row[0], *row[1:]) for row in rows]
    (clip,) = ClipList(rows, FILES, **{"num_frames": FRAMES, "stride": 2, **options}).clips([draw], view=view)
    assert not clip.problem
    return clip


def check_frames(batch: ClipBatch, videos: Corpus | VideoFiles) -> None:
    """Every picture carries the number and the video that the batch says."""
    for clip, row, numbers in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
        video = [CONSTANT, VARIABLE, SHORT].index(Path(videos.video_path(row)).name)
        assert [clips.read_number(picture) for picture in clip] == [(video, number) for number in numbers]


@pytest.mark.parametrize("name", [CONSTANT, VARIABLE])
@pytest.mark.parametrize("start", [0, 0.04, 0.41, 1.0, 2.159, 3.2])
def test_a_clip_starts_at_its_start(folder, name, start):
    for view in range(3):
        clip = one([(name, start, "label")], folder, view=view)
        assert clip.frames.tolist() == [shown(name, start) + 2 * step for step in range(FRAMES)]
        assert (clip.label, clip.repeated, clip.view) == ("label", 0, view)


@pytest.mark.parametrize("sample_fps", [5, 10, 25, 60])
@pytest.mark.parametrize("name", [CONSTANT, VARIABLE])
def test_sampling_by_time(folder, name, sample_fps):
    """The frame nearest to each moment counted from the clip's first frame, also where the rate varies."""
    clip = one([(name, 1.5, None)], folder, stride=None, sample_fps=sample_fps)
    moments = BEGINS[name][shown(name, 1.5)] + np.arange(FRAMES) / sample_fps
    expected = [
        int(np.flatnonzero(np.abs(BEGINS[name] - t) <= np.abs(BEGINS[name] - t).min() + 1e-6)[-1]) for t in moments
    ]
    assert clip.frames.tolist() == expected
    assert clip.repeated == FRAMES - len(set(expected))


def test_the_end_of_the_video_is_repeated(folder):
    clip = one([(CONSTANT, 3.88, None)], folder)
    assert (clip.frames.tolist(), clip.repeated) == ([97, 99, 99, 99], 2)
    clip = one([(CONSTANT, 3.88, None)], folder, stride=None, sample_fps=12.5)
    assert (clip.frames.tolist(), clip.repeated) == ([97, 99, 99, 99], 2)
    clip = one([(SHORT, 0, None, 10)], folder)
    assert (clip.frames.tolist(), clip.repeated) == ([0, 2, 4, 5], 1)
    clip = one([(SHORT, None, None)], folder, stride=None, sample_fps=60, num_frames=20)
    assert clip.frames.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5]
    assert clip.repeated == 20 - 6


@pytest.mark.parametrize("name", [CONSTANT, VARIABLE])
@pytest.mark.parametrize("timing", [{"stride": 2}, {"stride": None, "sample_fps": 12.5}])
def test_a_clip_lies_anywhere_between_start_and_end(folder, name, timing):
    begins, rows = BEGINS[name], [(name, 1.0, 0, 2.0)]
    all_clips = [one(rows, folder, draw=draw, **timing) for draw in range(200)]
    for clip in all_clips:
        assert begins[clip.frames[0]] >= begins[shown(name, 1.0)]
        assert begins[clip.frames[-1]] <= 2.0
    last = shown(name, 2.0) - 6 if "sample_fps" not in timing else shown(name, 2.0 - 3 / 12.5)
    assert {int(clip.frames[0]) for clip in all_clips} == set(range(shown(name, 1.0), last + 1))
    # Keyed by seed, draw and view.
    starts = [int(clip.frames[0]) for clip in all_clips[:20]]
    assert starts == [int(one(rows, folder, draw=draw, **timing).frames[0]) for draw in range(20)]
    for other in ({"view": 1}, {"seed": 1}):
        assert starts != [int(one(rows, folder, draw=draw, **timing, **other).frames[0]) for draw in range(20)]


def test_ranges_that_are_open_or_too_short(folder):
    whole = {int(one([(CONSTANT, None, 0)], folder, draw=draw).frames[0]) for draw in range(1500)}
    assert whole == set(range(94))
    until = {int(one([(CONSTANT, None, 0, 0.4)], folder, draw=draw).frames[0]) for draw in range(100)}
    assert until == set(range(5))
    behind = {int(one([(CONSTANT, 3.6, 0, 1000.0)], folder, draw=draw).frames[0]) for draw in range(100)}
    assert behind == set(range(90, 94))
    for end in (1.0, 1.1, 1.2):
        assert one([(CONSTANT, 1.0, 0, end)], folder).frames.tolist() == [25, 27, 29, 31]


def test_every_item_once_a_pass(folder):
    rows = [(folder / CONSTANT, item / 50, item) for item in range(150)]
    for seed in (0, 1):
        source = ClipList(rows, num_frames=FRAMES, stride=2, shuffle=True, seed=seed)
        assert (len(source), source.num_draws) == (150, 150)
        passes = [[clip.label for clip in source.clips(np.arange(150) + 150 * number)] for number in range(3)]
        assert all(sorted(labels) == list(range(150)) for labels in passes)
        assert len({tuple(labels) for labels in passes}) == 3
        assert source.items(np.arange(300)).tolist() == passes[0] + passes[1]
    in_order = ClipList(rows, num_frames=FRAMES, stride=2)
    assert in_order.items(np.arange(300)).tolist() == list(range(150)) * 2


def test_labels_of_any_kind_in_order_with_their_frames(folder, corpus):
    labels: list[Any] = ["grasp", 3, np.arange(3), {"step": 1, "tools": ["hook"]}, None, ("a", "b"), 2.5]
    rows = [(row % 2, 0.3 * row, label) for row, label in enumerate(labels)]

    def table() -> Iterator[Any]:
        yield from rows

    source = ClipList(table(), corpus, num_frames=FRAMES, stride=2)
    draws = [np.arange(first, min(first + 3, 7)) for first in range(0, 7, 3)]
    with ClipLoader(corpus, source, WHOLE, draws, resolution=64, threads=2) as loader:
        batches = list(loader)
    assert [len(batch.labels) for batch in batches] == [3, 3, 1]
    found = [label for batch in batches for label in batch.labels]
    assert all(label is expected for label, expected in zip(found, labels, strict=True))
    for batch in batches:
        check_frames(batch, corpus)
        expected = [shown(VIDEOS[rows[draw][0]][0], rows[draw][1]) for draw in batch.draws]
        assert batch.frame_numbers[:, 0].tolist() == expected


def test_videos_by_path_id_and_row(folder, corpus, monkeypatch):
    monkeypatch.chdir(folder)
    identity = corpus.video(1).id
    rows = [(VARIABLE, 0, 0), (folder / VARIABLE, 0, 0), (str(folder / VARIABLE), 0, 0), (identity, 0, 0), (1, 0, 0)]
    source = ClipList([*rows, (np.int64(1), 0, 0)], corpus, num_frames=FRAMES, stride=2)
    assert [clip.video for clip in source.clips(np.arange(6))] == [1] * 6
    files = VideoFiles([SHORT])
    source = ClipList(rows[:3], files, num_frames=FRAMES, stride=2)
    assert (source.videos, source.num_videos, len(files)) == (files, 2, 2)
    assert [clip.video for clip in source.clips(np.arange(3))] == [1] * 3


def test_proxies_stand_for_their_originals(folder, corpus, tmp_path):
    """Seconds, strides and names are those of the originals."""
    settings = PackSettings(short_side=64, stride=2, gop=4)
    pack_corpus(corpus.path, tmp_path / "packed", settings, workers=1, progress=False)
    packed = Corpus.open(tmp_path / "packed")
    rows = [(folder / CONSTANT, 1.0, "a"), (corpus.video(1).id, 2.04, "b", 2.5), (folder / VARIABLE, None, "c")]
    source = ClipList(rows, packed, num_frames=FRAMES, stride=4)
    with ClipLoader(packed, source, WHOLE, [range(3)], resolution=64, threads=1) as loader:
        (batch,) = loader
    for clip, row, numbers in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
        video = [CONSTANT, VARIABLE].index(Path(packed.video(row).original).name)
        assert np.diff(numbers).tolist() == [2, 2, 2]
        assert [clips.read_number(picture) for picture in clip] == [(video, 2 * number) for number in numbers]
    # The frame on screen is the last one that the proxy has.
    assert batch.frame_numbers[:2, 0].tolist() == [shown(CONSTANT, 1.0) // 2, shown(VARIABLE, 2.04) // 2]
    (by_time,) = ClipList(rows, packed, num_frames=FRAMES, sample_fps=6.25).clips([0])
    assert by_time.frames.tolist() == [12, 14, 16, 18]
    with pytest.raises(
        ValueError, match=r"stride 3 is not a multiple of 2, the stride with which .* trocar pack --stride 3"
    ):
        ClipList(rows, packed, num_frames=FRAMES, stride=3)
    with pytest.raises(ValueError, match=r"sample_fps 20 is more than the .* frames a second of proxies"):
        ClipList(rows, packed, num_frames=FRAMES, sample_fps=20)


@pytest.mark.parametrize("segments", [1, 2, 3, 5])
@pytest.mark.parametrize(
    "row", [(CONSTANT, None, 0), (CONSTANT, 1.0, 0, 3.0), (VARIABLE, None, 0), (VARIABLE, 1, 0, 6)]
)
@pytest.mark.parametrize("timing", [{"stride": 2}, {"stride": None, "sample_fps": 12.5}])
def test_segments_are_spaced_evenly(folder, segments, row, timing):
    name, start, _, *rest = row
    end = rest[0] if rest else None
    begins = BEGINS[name]
    first = shown(name, start or 0)
    last = shown(name, begins[-1] if end is None else end)
    latest = last - 6 if "sample_fps" not in timing else shown(name, begins[last] - 3 / 12.5)
    expected = [first + (latest - first) * segment / max(segments - 1, 1) for segment in range(segments)]
    if segments == 1:
        expected = [first + (latest - first) / 2]
    for seed, view in ((0, 0), (5, 0), (0, 2)):
        found = [
            one([row], folder, draw=draw, segments=segments, seed=seed, view=view, **timing) for draw in range(segments)
        ]
        starts = [int(clip.frames[0]) for clip in found]
        assert np.abs(np.subtract(starts, expected)).max() <= 0.5
        assert begins[found[-1].frames[-1]] <= begins[last]


def test_one_segment_of_a_start_alone_is_at_the_start(folder):
    assert one([(CONSTANT, 1.0, 0)], folder, segments=1).frames.tolist() == [25, 27, 29, 31]


def test_evaluation_views_follow_one_another(folder):
    """Item by item, segment by segment, crop by crop; every segment is decoded once for all its crops."""
    rows = [(folder / CONSTANT, None, "a"), (folder / VARIABLE, 1.0, "b", 3.0)]
    source = ClipList(rows, num_frames=FRAMES, stride=2, segments=2)
    assert source.num_draws == 4
    order, numbers = ClipOrder(views_per_span=3), [np.arange(first, min(first + 5, 12)) for first in range(0, 12, 5)]
    runs = []
    for threads in (1, 3):
        with ClipLoader(
            source.videos, source, EvaluationCrops(3), numbers, order=order, resolution=64, threads=threads
        ) as loader:
            batches = list(loader)
        assert [label for batch in batches for label in batch.labels] == ["a"] * 6 + ["b"] * 6
        assert [view for batch in batches for view in batch.views.tolist()] == [0, 1, 2] * 4
        assert [draw for batch in batches for draw in batch.draws.tolist()] == np.repeat(range(4), 3).tolist()
        assert (loader.total.spans, loader.total.clips, loader.total.frames_used) == (4, 12, 4 * FRAMES)
        runs.append([(batch.frames.numpy().tobytes(), batch.frame_numbers.tolist()) for batch in batches])
    assert runs[0] == runs[1]


def test_crops_are_the_squares_of_the_short_side(tmp_path):
    """A ramp from left to right (or top to bottom) tells where a square was cut."""
    ramp = np.broadcast_to(np.linspace(20, 235, 192)[None, :, None], (96, 192, 3)).astype(np.uint8)
    for name, picture in (("wide", ramp), ("tall", ramp.transpose(1, 0, 2))):
        path = tmp_path / f"{name}.mp4"
        clips.write_pictures(path, [np.ascontiguousarray(picture)] * 8, options={"crf": "5"})
        means = []
        for crops in (1, 3):
            source = ClipList([(path, None, 0)], num_frames=2, stride=2, segments=1, content_box=False)
            with ClipLoader(
                source.videos,
                source,
                EvaluationCrops(crops),
                [np.arange(crops)],
                order=ClipOrder(views_per_span=crops),
                resolution=32,
                threads=1,
                content_box=False,
            ) as loader:
                frames = next(loader).frames.float()
            along = frames.mean(dim=(1, 2, 4)) if name == "wide" else frames.mean(dim=(1, 3, 4))
            assert (along.diff(dim=1) > 0).all()
            means += along.mean(dim=1).tolist()
        quarter = (235 - 20) / 4
        assert means == pytest.approx([127.5, 127.5 - quarter, 127.5, 127.5 + quarter], abs=3)


def test_crops_are_even_and_inside():
    content = Box(10, 6, 151, 97)
    assert EvaluationCrops().crop(content) == Crop(Box(10 + 26, 6, 96, 96), flip=False)
    lefts = [EvaluationCrops(5).crop(content, seed=3, draw=7, view=view).box.left for view in range(5)]
    assert lefts == [10, 22, 36, 50, 64]
    assert EvaluationCrops(2).crop(Box(0, 0, 64, 128), view=1).box == Box(0, 64, 64, 64)
    with pytest.raises(ValueError, match=r"view 3 is not in 0 \.\. 2; set ClipOrder\(views_per_span=3\)"):
        EvaluationCrops(3).crop(content, view=3)
    with pytest.raises(ValueError, match=r"crops must lie in 1 \.\. 64, got 0"):
        EvaluationCrops(0)


def list_with_a_bad_item(folder: Path, bad: Any) -> list[Any]:
    rows = [(folder / (CONSTANT if item % 2 else VARIABLE), item / 10, item) for item in range(12)]
    rows[5] = bad
    return rows


@pytest.mark.parametrize(
    ("name", "start", "reason"),
    [
        ("gone.mp4", 0.5, r"gone\.mp4: cannot be read \(No such file or directory\); .* \(item 5 of the list\)"),
        ("noise.mp4", 0.5, r"noise\.mp4: cannot be opened as a video .* \(item 5 of the list\)"),
        (
            CONSTANT,
            4.0,
            r"0\.mp4: a clip starts at 4 s, but the video ends at 4 s; correct its start \(item 5 of the list\)",
        ),
    ],
)
def test_items_that_cannot_be_read(folder, tmp_path, name, start, reason):
    """Without replacements they are left out; with them another item with its own label takes the place; both are reported."""
    (tmp_path / "noise.mp4").write_bytes(bytes(5000))
    path = (folder if name == CONSTANT else tmp_path) / name
    rows = list_with_a_bad_item(folder, (path, start, "bad"))
    draws = [np.arange(4) + 4 * number for number in range(3)]
    for max_spares in (0, 5):
        source = ClipList(rows, num_frames=FRAMES, stride=2, max_spares=max_spares)
        with ClipLoader(source.videos, source, WHOLE, draws, resolution=64, threads=2) as loader:
            batches = list(loader)
        (failure,) = loader.total.failures
        assert (failure.draw, failure.spare, failure.path) == (5, 0, str(path))
        with pytest.raises(VideoError, match=reason):
            raise VideoError(failure.reason)
        expected: list[Any] = list(range(12))
        expected[5:6] = source.items([5], spare=1).tolist() if max_spares else []
        assert [label for batch in batches for label in batch.labels] == expected
        assert [len(batch.frames) for batch in batches] == [4, 4 if max_spares else 3, 4]
        for batch in batches:
            check_frames(batch, source.videos)
            assert batch.draws.tolist() == [draw for draw in batch.numbers if draw != 5 or max_spares]
            begins = [shown(rows[item][0].name, rows[item][1]) for item in batch.labels]
            assert batch.frame_numbers[:, 0].tolist() == begins


def test_the_budget_counts_items_that_cannot_be_read(folder):
    rows = list_with_a_bad_item(folder, ("/no/such/file.mp4", 0, 0))
    source = ClipList(rows, num_frames=FRAMES, stride=2)
    with (
        ClipLoader(
            source.videos, source, WHOLE, [range(12)], resolution=32, threads=1, failure_budget=0, failure_floor=0
        ) as loader,
        pytest.raises(VideoError, match=r"1 failures in 12 draws(.|\n)*/no/such/file\.mp4: cannot be read"),
    ):
        next(loader)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("a.mp4", -1, 0), r"item 1 \(a\.mp4\): start is -1; give seconds .*, at least 0, or None"),
        (("a.mp4", float("nan"), 0), r"item 1 \(a\.mp4\): start is nan; give seconds"),
        (("a.mp4", "soon", 0), r"item 1 \(a\.mp4\): start is 'soon'; give seconds"),
        (("a.mp4", 1, 0, float("inf")), r"item 1 \(a\.mp4\): end is inf; give seconds"),
        (("a.mp4", 3, 0, 2.5), r"item 1 \(a\.mp4\) ends at 2\.5 s, before it starts; exchange start and end"),
        (("a.mp4", 1), r"item 1 is \('a\.mp4', 1\); give \(video, start, label\) or \(video, start, label, end\)"),
        ("abc", r"item 1 is 'abc'; give \(video, start, label\)"),
        ({"video": 1, "start": 2, "label": 3}, r"item 1 is \{.*\}; give \(video, start, label\)"),
        (7, r"item 1 is 7; give \(video, start, label\)"),
        ((4, 1, 0), r"item 1 \(4\): the video is 4; give a path, or a corpus beside the list"),
    ],
)
def test_rows_that_are_none(row, message):
    with pytest.raises(ValueError, match=message):
        ClipList([("a.mp4", 0, 0), row], num_frames=FRAMES, stride=2)


def test_lists_that_cannot_be(folder, corpus):
    rows = [(folder / CONSTANT, 1.0, 0)]
    with pytest.raises(ValueError, match=r"the list of clips is empty; give at least one \(video, start, label\)"):
        ClipList([], num_frames=FRAMES, stride=2)
    for video in ("gone.mp4", 3, -1, True, 1.5):
        with pytest.raises(
            ValueError, match=rf"item 0 \({video}\) is none of the 3 videos of .*; give one's path, id or row"
        ):
            ClipList([(video, 0, 0)], corpus, num_frames=FRAMES, stride=2)
    with pytest.raises(ValueError, match=r"item 0 .* has a start and no end, between which several segments could lie"):
        ClipList(rows, num_frames=FRAMES, stride=2, segments=2)
    wrong: list[dict[str, Any]] = [
        {"sample_fps": 5},
        {"stride": None},
        {"stride": 0},
        {"stride": None, "sample_fps": 0},
    ]
    for options in wrong:
        with pytest.raises(ValueError, match="give either stride, at least 1, or sample_fps, above 0"):
            ClipList(rows, **{"num_frames": FRAMES, "stride": 2, **options})
    for name, value, least in (("num_frames", 0, 1), ("segments", -1, 0), ("max_spares", -1, 0)):
        one: dict[str, Any] = {"num_frames": FRAMES, "stride": 2, name: value}
        with pytest.raises(ValueError, match=f"^{name} must be at least {least}, got {value}$"):
            ClipList(rows, **one)
