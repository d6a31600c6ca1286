"""`trocar features`: the right frames at every moment, each GOP once, the same bits whoever makes them, in bounded memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import number_picture, read_number, write_numbered, write_pictures
from killing import started

from trocar.engine.config.error import ConfigError
from trocar.engine.weights.encoder_sources import ClipShape
from trocar.judge.workflow import feature_shards
from trocar.judge.workflow.choices import FeatureChoices
from trocar.judge.workflow.feature_clips import clip_frames, num_moments, read_clips
from trocar.judge.workflow.features import extract_features, read_vectors
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.video_files import VideoFiles
from trocar.loaders.video.decode import DecodeCount

SHAPE = ClipShape(4, 3, None, 64)
TINY = {"frames": 2, "stride": 5, "resolution": 32}
MODEL = "random:tiny"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine seconds and a bit of numbered frames, B-frames and open GOPs among them."""
    path = tmp_path_factory.mktemp("videos") / "operation.mp4"
    write_numbered(path, 230, video_id=7, width=96, height=96, fps=25, gop=20, b_frames=2)
    return path


def clips_at(path: Path, shape: ClipShape, choices: FeatureChoices) -> tuple[np.ndarray, list[np.ndarray], DecodeCount]:
    videos, count = VideoFiles(), DecodeCount()
    row = videos.add(path)
    timeline = videos.timeline(row)
    moments = np.arange(num_moments(timeline, choices.rate)) / choices.rate
    frames = clip_frames(timeline, moments, shape, choices)
    return frames, list(read_clips(videos, row, frames, shape.resolution, count)), count


@pytest.mark.parametrize(
    ("shape", "choices", "at_three", "at_zero", "at_the_end"),
    [
        (SHAPE, FeatureChoices(), [66, 69, 72, 75], [0, 0, 0, 0], [216, 219, 222, 225]),
        (SHAPE, FeatureChoices(clips="centred"), [69, 72, 75, 78], [0, 0, 0, 3], [219, 222, 225, 228]),
        (ClipShape(4, None, 5.0, 64), FeatureChoices(), [60, 65, 70, 75], [0, 0, 0, 0], [210, 215, 220, 225]),
        (ClipShape(1, 4, None, 64), FeatureChoices(rate=2), [75], [0], [225]),
    ],
)
def test_the_frames_of_every_moment(
    shape: ClipShape, choices: FeatureChoices, at_three: list, at_zero: list, at_the_end: list, video: Path
) -> None:
    frames, clips, count = clips_at(video, shape, choices)
    assert len(frames) == len(clips) == int(np.ceil(9.2 * choices.rate))
    rate = int(choices.rate)
    assert frames[[3 * rate, 0, 9 * rate]].tolist() == [at_three, at_zero, at_the_end]
    assert [[read_number(picture)[1] for picture in clip] for clip in clips] == frames.tolist()
    # Each GOP once: no more than the video has, but for what open GOPs need twice.
    assert count.frames <= 230 + 10
    if choices.clips == "causal":
        assert (frames <= np.arange(len(frames))[:, None] * 25 / choices.rate).all()


def test_pictures_are_those_of_the_loaders(video: Path) -> None:
    frames, clips, _ = clips_at(video, SHAPE, FeatureChoices())
    rows = [(str(video), int(first) / 25, number) for number, first in enumerate(frames[1:, 0])]
    times = {"num_frames": SHAPE.frames, "stride": SHAPE.stride, "resolution": SHAPE.resolution}
    loader = clip_loader(rows, training=False, batch=4, rank=0, ranks=1, device="cpu", segments=0, **times)  # type: ignore[arg-type]
    for batch in loader:
        for picture, number in zip(batch.frames.numpy(), batch.labels, strict=True):
            np.testing.assert_array_equal(picture, clips[number + 1])


def vectors(path: Path, out: Path, **more: Any) -> np.ndarray:
    found = extract_features(
        [str(path)], out, MODEL, FeatureChoices(rate=8), options=TINY, progress=False, device="cpu", **more
    )  # type: ignore[arg-type]
    assert not found.failed
    return read_vectors(found.folders[str(path)])


def test_the_same_vectors_whatever_shard_or_resume_made_them(
    video: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = vectors(video, tmp_path / "whole")
    assert whole.shape == (74, 192)
    assert whole.dtype == np.float16
    np.testing.assert_array_equal(vectors(video, tmp_path / "shards", rows_per_shard=16), whole)
    # In two parts, of which each is half of the shards.
    for part in (0, 1):
        found = extract_features([str(video)], tmp_path / "parts", MODEL, FeatureChoices(rate=8), options=TINY, device="cpu",
                                 part=(part, 2), rows_per_shard=16, progress=False)  # fmt: skip
        assert found.made == (3, 2)[part]
    np.testing.assert_array_equal(vectors(video, tmp_path / "parts", rows_per_shard=16), whole)
    written = []

    def killed(*arguments: object) -> None:
        written.append(1)
        if len(written) == 3:
            raise KeyboardInterrupt
        write(*arguments)  # type: ignore[arg-type]

    write = feature_shards.write_shard
    monkeypatch.setattr(feature_shards, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        vectors(video, tmp_path / "killed", rows_per_shard=16)
    monkeypatch.setattr(feature_shards, "write_shard", write)
    moved = tmp_path / "elsewhere" / video.name
    moved.parent.mkdir()
    moved.write_bytes(video.read_bytes())
    found = extract_features([str(moved)], tmp_path / "killed", MODEL, FeatureChoices(rate=8), options=TINY, rows_per_shard=16,
                             device="cpu", progress=False)  # fmt: skip
    assert found.made == 3, "the two that were there are known by the video's contents"
    np.testing.assert_array_equal(read_vectors(found.folders[str(moved)]), whole)
    assert "times real time; decoding took" in found.lines()[1]


def test_a_vector_does_not_change_with_what_comes_after(video: Path, tmp_path: Path) -> None:
    """A video that goes on otherwise behind its fifth second."""
    other = tmp_path / "operation.mp4"
    pictures = [
        number_picture(7, number, 96, 96) if number <= 125 else number_picture(9, 999, 96, 96) for number in range(230)
    ]
    write_pictures(other, pictures, gop=1, fps=25, options={"qp": "0"})
    intra = tmp_path / "same.mp4"
    write_pictures(
        intra, [number_picture(7, number, 96, 96) for number in range(230)], gop=1, fps=25, options={"qp": "0"}
    )
    first, second = vectors(intra, tmp_path / "out"), vectors(other, tmp_path / "out")
    changed = (first != second).any(axis=1)
    assert not changed[: 5 * 8 + 1].any()
    assert changed[5 * 8 + 2 :].all()


def test_features_of_something_else_are_refused(video: Path, tmp_path: Path) -> None:
    vectors(video, tmp_path)
    with pytest.raises(ConfigError, match=r"settings \(clip_shape\.stride was 5, is 4\)"):
        extract_features(
            [str(video)], tmp_path, MODEL, FeatureChoices(rate=8), options={**TINY, "stride": 4}, progress=False
        )
    with pytest.raises(ConfigError, match=r"settings \(rate was 8(\.0)?, is 4\)"):
        extract_features([str(video)], tmp_path, MODEL, FeatureChoices(rate=4), options=TINY, progress=False)
    with pytest.raises(ConfigError, match="multiple of 16"):
        vectors(video, tmp_path / "other", rows_per_shard=10)


def test_a_broken_video_is_told_of_and_the_others_are_done(video: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:2000])
    found = extract_features(
        [str(broken), str(video)], tmp_path / "out", MODEL, FeatureChoices(), options=TINY, progress=False
    )
    assert list(found.folders) == [str(video)]
    assert [path for path, _ in found.failed] == [str(broken)]
    assert "broken.mp4" in found.lines()[-1]


@pytest.mark.slow
def test_three_hours_in_bounded_memory(tmp_path: Path) -> None:
    """Python's own memory, in which the pictures are, grows with a clip and a batch, not with the video."""
    path = tmp_path / "long.mp4"
    write_pictures(path, (number_picture(1, number % 60000, 96, 96) for number in range(3 * 3600 * 2)), gop=20, fps=2)
    videos, count = VideoFiles(), DecodeCount()
    row = videos.add(path)
    timeline = videos.timeline(row)
    frames = clip_frames(timeline, np.arange(num_moments(timeline, 1.0), dtype=float), SHAPE, FeatureChoices())
    assert len(frames) == 3 * 3600
    tracemalloc.start()
    clips = read_clips(videos, row, frames, 64, count)
    peaks = []
    for _ in range(3):
        tracemalloc.reset_peak()
        for place, clip in enumerate(islice(clips, 3600)):
            assert clip.shape == (4, 64, 64, 3), place
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    print(f"peaks of the three hours: {[round(peak / 1e6, 1) for peak in peaks]} MB; {count.frames} frames decoded")
    assert max(peaks) < 1.2 * peaks[0] + 4e6
    assert count.frames <= 21600 + 20


@pytest.mark.slow
def test_workers_and_a_killed_process_leave_the_same_bits(video: Path, tmp_path: Path) -> None:
    whole = vectors(video, tmp_path / "whole", rows_per_shard=16)
    np.testing.assert_array_equal(vectors(video, tmp_path / "two", rows_per_shard=16, workers=2), whole)
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "trocar.engine.cli", "features", str(video), "--model", MODEL, "--out", str(out)]
    command += ["--rate", "8", "--frames", "2", "--stride", "5", "--resolution", "32", "--device", "cpu"]
    process = started(command, out)
    process.kill()
    process.wait()
    assert subprocess.run(command, check=False).returncode == 0
    (folder,) = (path for path in out.iterdir() if path.is_dir())
    np.testing.assert_array_equal(read_vectors(folder), whole)


def test_a_thread_that_decodes_hands_its_error_on() -> None:
    def batches() -> Iterator[np.ndarray]:
        yield np.zeros(1, np.uint8)
        raise ValueError("broken")

    found = feature_shards._ahead(batches())
    assert next(found).shape == (1,)
    with pytest.raises(ValueError, match="broken"):
        next(found)
    assert torch.get_num_threads() > 0
