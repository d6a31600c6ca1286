"""The loading benchmark: equal work is checked before speed, wrong frames have none, and the statistics are right."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import read_number, write_numbered
from made_arms import Absent, Crashing, Late, Painted

from trocar.bench.loading import loading
from trocar.bench.loading.arms import Arm, Job, PooledArm, Request, UnavailableError
from trocar.bench.loading.case import CaseError, make_1080p
from trocar.bench.loading.check import Reference, judge
from trocar.bench.loading.clips import LoadingBenchError
from trocar.bench.loading.gpu_peers import DaliReader
from trocar.bench.loading.loading import bench_loading
from trocar.bench.loading.peers import Decord, Pyav, TorchcodecApproximate, TorchcodecExact
from trocar.bench.loading.table import table
from trocar.bench.loading.worker import ArmError, Worker
from trocar.bench.rows.ratios import median_interval
from trocar.bench.rows.row import read_rows, write_rows
from trocar.engine.cli import main
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings

SMALL = dict(clips=4, rounds=2, num_frames=4, stride=2, resolution=64, batch=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of two videos with B-frames, and its proxies of every second frame."""
    folder = tmp_path_factory.mktemp("loading")
    (folder / "videos").mkdir()
    for name in ("0.mp4", "1.mp4"):
        write_numbered(folder / "videos" / name, 60, gop=20, b_frames=2)
    index_corpus([folder / "videos"], folder / "corpus", workers=1, content_box=False, progress=False)
    pack_corpus(folder / "corpus", folder / "packed", PackSettings(stride=2), workers=1, progress=False)
    return folder


@pytest.fixture
def made_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, arm in (("painted", Painted), ("late", Late), ("absent", Absent), ("crashing", Crashing)):
        monkeypatch.setitem(loading.ARMS, name, arm)


@pytest.mark.usefixtures("made_arms")
def test_right_arms_have_speeds_and_wrong_ones_have_none(folder: Path, tmp_path: Path) -> None:
    arms = ["trocar", "trocar packed", "painted", "late", "absent", "crashing"]
    rows = bench_loading(folder / "corpus", packed=folder / "packed", arms=arms, **SMALL)
    by_arm = {entry["arm"]: entry for entry in rows}
    assert list(by_arm) == arms
    for name in ("trocar", "trocar packed", "painted"):
        entry = by_arm[name]
        assert not entry["reason"]
        assert len(entry["clips_per_second_by_round"]) == 2
        assert min(entry["clips_per_second"], entry["cpu_seconds_per_clip"]) > 0
        assert entry["moving_share"] == 1
        assert entry["difference"] < entry["to_neighbours"] / 2
    assert by_arm["trocar"]["amplification"] > by_arm["trocar packed"]["amplification"] >= 1
    assert by_arm["trocar"]["bytes_per_clip"] > 0
    assert by_arm["painted"]["amplification"] is None
    speeds = [by_arm[name]["clips_per_second_by_round"] for name in ("trocar", "painted")]
    against = by_arm["painted"]["ours_against_it"]
    assert set(against) == {"trocar", "trocar packed"}
    assert against["trocar"]["median"] == pytest.approx(np.mean(np.divide(*speeds)))
    assert by_arm["trocar"]["ours_against_it"] == {}

    assert "clips_per_second" not in by_arm["late"]
    assert f"wrong frames: {folder}/videos/" in by_arm["late"]["reason"]
    assert "from ours 1 behind it by" in by_arm["late"]["reason"]
    assert "(16 of 16 frames are wrong)" in by_arm["late"]["reason"]
    assert by_arm["absent"]["reason"] == "not usable: it is not installed"
    assert by_arm["crashing"]["reason"] == "not usable: its process ended with status 3: the last words"

    write_rows(tmp_path / "loading.jsonl", rows)
    assert read_rows(tmp_path / "loading.jsonl") == rows
    text = table(rows)
    assert text.index("times as many clips/s as | trocar | trocar packed |") < text.index("| arm | clips/s |")
    assert "- late: wrong frames" in text
    assert "4 clips of 4 frames, stride 2, to 64 px, batches of 3, from h264 128x96, 20 frames a GOP." in text


@pytest.mark.parametrize("arm", [TorchcodecExact, TorchcodecApproximate, Decord, Pyav])
def test_every_library_delivers_what_is_asked_for(folder: Path, tmp_path: Path, arm: type[Arm]) -> None:
    """In its own process; decord and torchcodec may be absent or lack their FFmpeg."""
    corpus = Corpus.open(folder / "corpus")
    frames = [np.array([2, 7, 8, 31]), np.array([40, 41, 50, 59]), np.array([0, 1, 2, 3])]
    requests = tuple(Request(i % 2, corpus.video(i % 2).facts.path, numbers) for i, numbers in enumerate(frames))
    worker = Worker("it", arm, Job(str(folder / "corpus"), requests, 2, 64, 2, 2), tmp_path)
    try:
        ready = worker.ready()
        assert list(ready.seconds_by_way) == list(PooledArm.ways)
        delivered = worker.frames()
        assert worker.deliver().seconds > 0
    except ArmError as error:
        if "cannot be used" in str(error):
            pytest.skip(str(error))
        raise
    finally:
        worker.close()
    assert [[read_number(frame)[1] for frame in clip] for clip in delivered] == [list(numbers) for numbers in frames]


def test_a_missing_library_is_a_reason(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(str(folder / "corpus"), (Request(0, "a.mp4", np.arange(4)),), 1, 64, 1, 1)
    for name in ("torchcodec", "decord", "av"):
        monkeypatch.setitem(sys.modules, name, None)
    for arm, words in ((TorchcodecExact, "torchcodec cannot"), (Decord, "decord cannot"), (Pyav, "PyAV cannot")):
        with pytest.raises(UnavailableError, match=words):
            arm(job)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UnavailableError, match="no NVIDIA GPU"):
        DaliReader(job)


def test_frames_are_judged_by_their_neighbours() -> None:
    generator = np.random.default_rng(0)
    still = generator.integers(60, 180, (1, 1, 16, 16, 3), dtype=np.uint8)
    video = np.concatenate([still, still, np.roll(still, 1, axis=2), np.roll(still, 2, axis=2)], axis=1)
    same, before, behind = video[:, 1:3], video[:, 0:2], video[:, 2:4]
    reference = Reference(same, before, behind, gap=1)
    assert judge(same + 2, reference).wrong is None
    assert judge(same + 2, reference).difference == 2
    assert judge(same, reference).moving_share == 1
    assert judge(behind, reference).wrong == (0, 0)
    assert judge(same + 9, reference).wrong == (0, 0)
    assert "differs from ours by 9.0 of 255" in judge(same + 9, reference).reason
    assert "shape" in judge(same[:, :1], reference).reason
    stills = Reference(still, still, still, gap=1)
    assert judge(still, stills).wrong is None
    assert judge(still, stills).moving_share == 0


def test_medians_and_their_intervals() -> None:
    """Coverage by hand: of 7 values, the extremes hold the median unless all lie on one side, 2 / 2**7."""
    seven = median_interval([5.0, 1.0, 2.0, 7.0, 3.0, 6.0, 4.0])
    assert (seven.median, seven.low, seven.high) == (4.0, 1.0, 7.0)
    assert seven.confidence == pytest.approx(1 - 2 / 2**7)
    nine = median_interval([float(value) for value in range(9)])
    assert (nine.median, nine.low, nine.high) == (4.0, 1.0, 7.0)
    assert nine.confidence == pytest.approx(1 - 2 * (1 + 9) / 2**9)
    assert vars(median_interval([2.0])) == {"median": 2.0, "low": 2.0, "high": 2.0, "confidence": 0.0}
    with pytest.raises(ValueError, match="at least one value"):
        median_interval([])
    generator = np.random.default_rng(0)
    drawn = [median_interval(sample) for sample in generator.lognormal(size=(2000, 12)).tolist()]
    covered = np.mean([interval.low <= 1 <= interval.high for interval in drawn])
    assert covered == pytest.approx(drawn[0].confidence, abs=0.015)


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results" / "loading.jsonl"
    command = ["bench", "loading", str(folder / "corpus"), "--clips", "2", "--rounds", "1", "--stride", "1"]
    assert main([*command, "--arms", "PyAV", "--json", str(out)]) == 0
    captured = capsys.readouterr()
    assert "\n| PyAV | " in captured.out
    assert "round 1 of 1, clips/s: PyAV" in captured.err
    rows = read_rows(out)
    assert [entry["arm"] for entry in rows] == ["PyAV"]
    assert {"machine", "versions", "commit", "time", "cores", "library"} <= set(rows[0])
    json.dumps(rows, allow_nan=False)

    assert main([*command, "--arms", "trocer"]) == 1
    assert main([*command, "--packed", str(folder / "packed")]) == 1
    assert main(["bench", "loading", str(folder / "corpus"), "--clips", "2", "--stride", "40"]) == 1
    errors = capsys.readouterr().err
    assert "unknown arm trocer; there are trocar, trocar packed, torchcodec exact" in errors
    assert f"{folder}/packed: has no proxy of {folder}/videos/" in errors
    assert f"run `trocar pack {folder}/corpus --stride 1 --out {folder}/packed`" in errors
    assert "too few videos of at least 601 frames for 2 clips" in errors


def test_the_standard_case(tmp_path: Path) -> None:
    """A clip of another height stands in for 1080 lines."""
    write_numbered(tmp_path / "clip.mp4", 100, gop=10, width=128, height=96)
    made: dict[str, Any] = dict(seconds=11, height=96)
    corpus = Corpus.open(make_1080p(tmp_path / "case", tmp_path / "clip.mp4", **made))
    facts, gops = corpus.video(0).facts, corpus.gops(0)
    assert (facts.codec, facts.frames, facts.height) == ("h264", 300, 96)
    assert gops.first_frame.tolist() == [0, 250]
    assert facts.reorder_depth > 0
    written = Path(facts.path).stat().st_mtime_ns
    make_1080p(tmp_path / "case", tmp_path / "clip.mp4", **made)
    assert Path(facts.path).stat().st_mtime_ns == written
    with pytest.raises(CaseError, match="128x96 pixels; the case needs a video 1080 pixels high"):
        make_1080p(tmp_path / "other", tmp_path / "clip.mp4")


@pytest.mark.skipif("TROCAR_TEST_VIDEOS" not in os.environ, reason="TROCAR_TEST_VIDEOS names no folder of real videos")
def test_real_clips_move_enough_to_tell_frames_apart(tmp_path: Path) -> None:
    """At one frame's distance; PyAV's frames are nearer to ours than to our neighbours everywhere."""
    paths = sorted(Path(os.environ["TROCAR_TEST_VIDEOS"]).glob("*.mp4"))[:4]
    index_corpus(paths, tmp_path / "corpus", workers=1, content_box=False, progress=False)
    rows = bench_loading(tmp_path / "corpus", clips=4, rounds=1, stride=1, arms=["PyAV"])
    assert not rows[0]["reason"]
    assert rows[0]["moving_share"] > 0.5
    assert rows[0]["difference"] < rows[0]["to_neighbours"]


def test_refuses_what_cannot_be_compared(folder: Path) -> None:
    with pytest.raises(LoadingBenchError, match="at least 1, got 0 and 7"):
        bench_loading(folder / "corpus", clips=0)
