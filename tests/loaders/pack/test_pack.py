"""A packed corpus stands for its originals, however the pack was interrupted, repeated or disturbed."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import clips
import numpy as np
import pytest

from trocar.engine.cli import main
from trocar.engine.config.file import load_config
from trocar.engine.config.settings import Config, ConfigError
from trocar.engine.draws.samplers import build_sampler
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.corpus.corpus import Corpus, CorpusError
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.cpu import ClipLoader
from trocar.loaders.draw.augment import CropRecipe
from trocar.loaders.pack import pack as pack_module
from trocar.loaders.pack.gain import expected_gain, mean_lead
from trocar.loaders.pack.isolated import ProcessDied, run_isolated, worker_number
from trocar.loaders.pack.pack import PackSummary, pack_corpus
from trocar.loaders.pack.pseudonyms import Names
from trocar.loaders.pack.record import finished_proxy
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import VideoError

SETTINGS = PackSettings(short_side=64, stride=2, gop=4)
WHOLE = CropRecipe((1, 1), (4 / 3, 4 / 3), 0)


def write_originals(folder: Path, frames: int = 60, count: int = 3) -> Path:
    """Numbered videos, each with its source and domain, and their corpus, whose path is returned."""
    (folder / "originals").mkdir(parents=True)
    rows = []
    for number in range(count):
        path = folder / "originals" / f"{number}.mp4"
        clips.write_numbered(path, frames + number, video_id=number, gop=12, b_frames=2)
        rows.append([path, f"source {number}", f"domain {number}"])
    with open(folder / "originals.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["path", "source", "domain"], *rows])
    index_corpus([folder / "originals.csv"], folder / "corpus", workers=1, progress=False)
    return folder / "corpus"


def pack(
    corpus: Path, out: Path, settings: PackSettings = SETTINGS, workers: int = 1, replace: bool = False
) -> PackSummary:
    return pack_corpus(corpus, out, settings, workers=workers, progress=False, replace=replace)


def quarantine(out: Path) -> dict[str, str]:
    with open(out / "quarantine.csv", newline="", encoding="utf-8") as file:
        return {os.path.basename(row["path"]): row["reason"] for row in csv.DictReader(file)}


def proxies(out: Path) -> dict[str, bytes]:
    """Every file under OUT/videos, records without their folder's name."""
    return {str(path.relative_to(out)): path.read_bytes() for path in (out / "videos").rglob("*") if path.is_file()}


def times(out: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (out / "videos").rglob("*.mp4")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_originals(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def packed(corpus: Path) -> Path:
    pack(corpus, corpus.parent / "packed", workers=2)
    return corpus.parent / "packed"


def test_a_packed_corpus_stands_for_its_originals(corpus: Path, packed: Path) -> None:
    originals, small = Corpus.open(corpus), Corpus.open(packed)
    assert len(small) == len(originals) == 3
    assert small.packed_stride.tolist() == [2, 2, 2]
    known = {originals.video(row).id: originals.video(row) for row in range(3)}
    for row in range(3):
        video = small.video(row)
        original = known[video.id]
        assert (video.original, video.source, video.domain) == (original.facts.path, original.source, original.domain)
        assert Path(video.facts.path) == packed / "videos" / video.id[:2] / f"{video.id}.mp4"
        assert video.facts.frames == -(-original.facts.frames // 2)
        assert (video.facts.height, video.boxed) == (64, False)
        assert small.gops(row).first_frame.tolist() == list(range(0, video.facts.frames, 4))
    assert quarantine(packed) == {}


def test_clips_of_proxies_are_clips_of_the_originals(corpus: Path, packed: Path) -> None:
    small = Corpus.open(packed)
    overrides = ["data.frames=4", "data.stride=4", "data.resolution=64"]
    sampler = build_sampler(config(packed, *overrides), small)
    assert sampler.stride.tolist() == [2, 2, 2]
    with ClipLoader(small, sampler, WHOLE, [np.arange(20)], resolution=64, threads=2) as loader:
        (batch,) = loader
    for clip, row, numbers in zip(batch.frames.numpy(), batch.videos, batch.frame_numbers, strict=True):
        video_id = int(Path(small.video(row).original).stem)
        assert np.diff(numbers).tolist() == [2, 2, 2]
        assert [clips.read_number(picture) for picture in clip] == [(video_id, 2 * number) for number in numbers]


def config(corpus: Path, *overrides: str) -> Config:
    return load_config("demo_cpu", [f"data.corpus={corpus}", f"run.dir={corpus.parent / 'run'}", *overrides])


def test_stride_counts_frames_of_the_originals(corpus: Path, packed: Path) -> None:
    small, fit = Corpus.open(packed), ["data.resolution=64", "data.frames=4"]
    assert build_sampler(config(packed, *fit, "data.stride=2"), small).stride.tolist() == [1, 1, 1]
    assert build_sampler(config(corpus, "data.stride=3"), Corpus.open(corpus)).stride.tolist() == [3, 3, 3]
    by_rate = ["data.stride=null", "data.sample_fps=6.25"]
    assert build_sampler(config(packed, *fit, *by_rate), small).stride.tolist() == [2, 2, 2]
    for override, message in [
        ("data.stride=3", r"data.stride 3 is not a multiple of 2, .*: trocar pack --stride 3"),
        ("data.resolution=112", r"data.resolution: 112 is more than the 64 pixels .*: trocar pack --short-side 112"),
    ]:
        with pytest.raises(ConfigError, match=message):
            build_sampler(config(packed, *fit, "data.stride=2", override), small)
    with pytest.raises(ConfigError, match=r"data.sample_fps 25 is more than the 12.5 frames a second .* --stride"):
        build_sampler(config(packed, *fit, "data.stride=null", "data.sample_fps=25"), small)


def test_originals_and_proxies_mix(corpus: Path, packed: Path, tmp_path: Path) -> None:
    index_corpus(
        [packed / "proxies.csv", corpus.parent / "originals" / "0.mp4"], tmp_path / "mixed", workers=1, progress=False
    )
    mixed = Corpus.open(tmp_path / "mixed")
    sampler = build_sampler(config(tmp_path / "mixed", "data.resolution=64", "data.stride=4"), mixed)
    assert sorted(sampler.stride.tolist()) == [2, 2, 2, 4]
    assert (sampler.stride * mixed.packed_stride).tolist() == [4] * 4


def test_training_from_proxies(packed: Path, tmp_path: Path) -> None:
    tiny = [
        "data.frames=4",
        "data.stride=2",
        "data.resolution=32",
        "model.patch=8",
        "model.depth=1",
        "model.decoder_depth=1",
    ]
    run = [
        f"data.corpus={packed}",
        f"run.dir={tmp_path / 'run'}",
        "optim.steps=2",
        "optim.batch=4",
        "run.tensorboard=false",
    ]
    assert main(["pretrain", "demo_cpu", *tiny, *run]) == 0
    assert (tmp_path / "run" / "checkpoints" / "step_00000002").exists()
    assert main(["pretrain", "demo_cpu", *tiny, *run, "data.stride=3"]) == 2


def test_the_command_says_what_it_does(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pack", str(corpus), "--out", str(tmp_path / "out")]
    settings = ["--short-side", "64", "--stride", "2", "--gop", "8", "--codec", "h264", "--quality", "20"]
    assert main([*command, *settings, "--workers", "2", "--compare"]) == 0
    printed = capsys.readouterr()
    assert "to pack: 3 videos, 183 frames" in printed.err
    assert "expected: 92 frames of " in printed.err
    assert "from the originals, 1.22 from proxies" in printed.err
    assert "3 proxies of 92 frames" in printed.out
    rows = [line.split() for line in printed.out.splitlines() if line.startswith(("originals", "proxies "))]
    assert [row[0] for row in rows] == ["originals", "proxies"]
    assert float(rows[1][3]) < 1.6
    assert "3 x 32 clips of 16 frames at 224 px, CPU loader" in printed.out
    (record, *_) = (tmp_path / "out" / "videos").rglob("*.json")
    made_of = json.loads(record.read_text(encoding="utf-8"))["made_of"]
    assert [made_of[name] for name in ("short_side", "stride", "gop", "codec", "quality")] == [64, 2, 8, "h264", 20]
    for arguments, status, message in [
        (["--codec", "av1"], 2, "codec='av1'"),
        (["--short-side", "33"], 2, "short_side=33"),
    ]:
        assert main([*command, *arguments]) == status
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, "--workers", "0"])
    assert "--workers: 0 is not accepted" in capsys.readouterr().err


def test_a_missing_proxy_is_made_of_its_original_again(tmp_path: Path) -> None:
    corpus, out = write_originals(tmp_path, 20, count=1), tmp_path / "out"
    pack(corpus, out)
    video = Corpus.open(out).video(0)
    size = {"batch": 1, "num_frames": 2, "stride": 2, "resolution": 32, "device": "cpu", "loader": "cpu"}
    remedy = f"make the proxy anew from {video.original}: run `trocar pack ORIGINALS --out THERE` again"
    for harm, said in ((lambda path: os.utime(path, ns=(0, 1)), "changed since"), (os.unlink, "restore the file or ")):
        harm(video.facts.path)
        with pytest.raises(VideoError) as error:
            next(iter(clip_loader(Corpus.open(out), training=False, **size)))
        assert said in str(error.value)
        assert remedy in str(error.value)
    os.unlink(Corpus.open(corpus).video(0).facts.path)
    with pytest.raises(VideoError, match="restore the file or run `trocar index` again"):
        next(iter(clip_loader(Corpus.open(corpus), training=False, **size)))


def test_originals_may_be_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command again, when the proxies are all that is left; nothing is measured that nobody asked for."""
    corpus = write_originals(tmp_path, 30, count=2)
    command = ["pack", str(corpus), "--out", str(tmp_path / "out"), "--short-side", "64", "--workers", "1"]
    assert main(command) == 0
    assert "clips/s" not in capsys.readouterr().out
    shutil.rmtree(tmp_path / "originals")
    assert main([*command, "--compare"]) == 0
    said = capsys.readouterr().out
    assert "(2 were there before)" in said
    assert "not compared: 2 of the originals are not there any more" in said


def test_what_is_finished_is_not_made_again(tmp_path: Path) -> None:
    corpus, out = write_originals(tmp_path, 20), tmp_path / "out"
    first = pack(corpus, out)
    assert (first.videos, first.reused, first.frames) == (3, 0, 32)
    made = times(out)
    again = pack(corpus, out)
    assert (again.videos, again.reused, again.packed_bytes) == (3, 3, first.packed_bytes)
    assert times(out) == made
    # Another quality, another file under the same name, a proxy cut short and one without its record.
    other = PackSettings(short_side=64, stride=2, gop=4, quality=30)
    with pytest.raises(
        CorpusError, match=r"holds 3 proxies made with other settings \(quality 23 -> 30\); set that back"
    ):
        pack(corpus, out, other)
    assert times(out) == made
    assert pack(corpus, out, other, replace=True).reused == 0
    with pytest.raises(CorpusError, match=r"quality 30 -> 23.* another --out, or make them anew with --replace"):
        pack(corpus, out)
    command = ["pack", str(corpus), "--out", str(out), "--short-side", "64", "--stride", "2", "--gop", "4"]
    assert main(command) == 1
    assert main([*command, "--replace", "--workers", "1"]) == 0
    assert proxies(out).keys() == {f"videos/{name[:2]}/{name}.{suffix}" for name in made for suffix in ("mp4", "json")}
    clips.write_numbered(tmp_path / "originals" / "1.mp4", 24, video_id=1, gop=12)
    index_corpus([tmp_path / "originals.csv"], corpus, workers=1, progress=False)
    assert pack(corpus, out).reused == 2
    short, unknown = sorted((out / "videos").rglob("*.mp4"))[:2]
    os.truncate(short, short.stat().st_size - 1)
    unknown.with_suffix(".json").write_text("{", encoding="utf-8")
    assert pack(corpus, out).reused == 1
    assert pack(corpus, out).reused == 3
    (tmp_path / "originals" / "2.mp4").unlink()
    assert pack(corpus, out).reused == 3, "a proxy may be all that is left"
    assert Corpus.open(out).frames.sum() == 10 + 12 + 11


def test_proxies_of_other_sides_stay_unless_asked(tmp_path: Path) -> None:
    """Those of whose record nobody knew the multiple are even."""
    corpus, out = write_originals(tmp_path, 20, count=1), tmp_path / "out"
    pack(corpus, out, replace(SETTINGS, side_multiple=2))
    (record,) = (out / "videos").rglob("*.json")
    told = json.loads(record.read_text(encoding="utf-8"))
    assert told["made_of"].pop("side_multiple") == 2
    record.write_text(json.dumps(told), encoding="utf-8")
    video = Corpus.open(corpus).video(0)
    for multiple, width in ((None, 86), (2, 86), (16, None)):
        proxy = finished_proxy(out, video, Names().named(video), replace(SETTINGS, side_multiple=multiple))
        assert (proxy and proxy.width) == width
    wider = replace(SETTINGS, side_multiple=16)
    with pytest.raises(CorpusError, match=r"side_multiple 2 -> 16"):
        pack(corpus, out, wider)
    assert pack(corpus, out, wider, replace=True).reused == 0
    facts = Corpus.open(out).video(0).facts
    assert (facts.width, facts.height) == (80, 64)
    assert facts.pixel_aspect == pytest.approx(128 / 96 * 64 / 80, rel=0.01)
    assert finished_proxy(out, video, Names().named(video), SETTINGS)


def test_an_older_way_of_making_them_is_made_anew(tmp_path: Path) -> None:
    corpus, out = write_originals(tmp_path, 20, count=1), tmp_path / "out"
    pack(corpus, out)
    (record,) = (out / "videos").rglob("*.json")
    text = record.read_text(encoding="utf-8")
    assert json.loads(text)["made_of"]["version"] == 1
    record.write_text(text.replace('"version": 1', '"version": 0'), encoding="utf-8")
    assert pack(corpus, out).reused == 0


def test_a_killed_pack_goes_on(tmp_path: Path) -> None:
    """Ctrl-C, then kill -9, in the middle: only whole files, nobody left at work, and in the end the same as without."""
    corpus = write_originals(tmp_path, 200, count=24)
    whole, out = tmp_path / "whole", tmp_path / "out"
    pack(corpus, whole, workers=2)
    # A shell without job control has what it starts in the background ignore Ctrl-C.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from trocar.loaders.pack.pack import *; from trocar.loaders.pack.settings import *; "
        f"pack_corpus({str(corpus)!r}, {str(out)!r}, {SETTINGS!r}, workers=2, progress=False)"
    )
    for wanted, number in [(1, signal.SIGINT), (4, signal.SIGKILL)]:
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(out.glob("videos/*/*.json"))) < wanted:
            time.sleep(0.01)
        children = children_of(process.pid)
        process.send_signal(number)
        assert process.wait() == -number
        deadline = time.monotonic() + 20
        while any(is_running(child) for child in children):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.01)
        finished = sorted(out.glob("videos/*/*.mp4"))
        assert wanted <= len(finished) < 8
        for path in finished:
            assert path.read_bytes() == (whole / path.relative_to(out)).read_bytes()
        assert not (out / "videos.parquet").exists()
    summary = pack(corpus, out, workers=2)
    assert (summary.videos, summary.quarantined) == (24, 0)
    assert summary.reused >= 4
    assert proxies(out) == proxies(whole)
    assert Corpus.open(out).frames.tolist() == Corpus.open(whole).frames.tolist()


def children_of(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def test_videos_that_cannot_be_packed_are_listed(tmp_path: Path) -> None:
    corpus, out = write_originals(tmp_path, 60, count=5), tmp_path / "out"
    assert pack(corpus, out).quarantined == 0
    changed, early, late, gone = (tmp_path / "originals" / f"{number}.mp4" for number in range(4))
    spoil(early, 2)
    spoil(late, 40)
    gone.unlink()
    stamp(corpus, tmp_path, [early, late])
    os.utime(changed, ns=(0, 0))
    summary = pack(corpus, out)
    assert (summary.videos, summary.shortened, summary.quarantined) == (3, 1, 2)
    assert "2 videos could not be packed and 1 not to their end" in summary.lines()[-1]
    reasons = quarantine(out)
    assert list(reasons) == ["0.mp4", "1.mp4", "2.mp4"]
    assert "changed since it was indexed; run `trocar index` again" in reasons["0.mp4"]
    assert "do not decode" in reasons["1.mp4"]
    assert "of its 62 frames are packed: " in reasons["2.mp4"]
    small = Corpus.open(out)
    assert sorted(Path(small.video(row).original).name for row in range(len(small))) == ["2.mp4", "3.mp4", "4.mp4"]
    for number in (0, 2, 4):
        (tmp_path / "originals" / f"{number}.mp4").write_bytes(b"nothing")
    with pytest.raises(CorpusError, match=r"none of 5 videos can be packed; the first reasons are:\n.*0\.mp4: changed"):
        pack(corpus, tmp_path / "nothing")
    assert len(quarantine(tmp_path / "nothing")) == 5


def spoil(path: Path, frame: int) -> None:
    """Overwrites a slice with zeros; the index cannot tell."""
    video, gops = probe_video(path)
    packets = gops.packets[0 : video.frames]
    (row,) = np.flatnonzero(packets.frame == frame)
    with open(path, "r+b") as file:
        file.seek(int(packets.offset[row]) + 12)
        file.write(bytes(int(packets.size[row]) - 12))


def stamp(corpus: Path, folder: Path, paths: list[Path]) -> None:
    """Indexes again, so that changed files are known as they are."""
    assert all(path.exists() for path in paths)
    listed = (folder / "originals.csv").read_text(encoding="utf-8")
    gone = folder / "originals" / "3.mp4"
    clips.write_numbered(gone, 63, video_id=3, gop=12, b_frames=2)
    index_corpus([folder / "originals.csv"], corpus, workers=1, progress=False)
    pack(corpus, folder / "out")
    gone.unlink()
    assert listed


def test_jobs_are_isolated() -> None:
    """A job that dies takes nothing with it; errors are handed out; nobody waits for what is not wanted any more."""
    jobs = [(number,) for number in (4.0, -1.0, 9.0)]
    results = dict(run_isolated(math.sqrt, jobs, 2))
    assert (results[4.0,], results[9.0,]) == (2, 3)
    assert isinstance(results[-1.0,], ValueError)
    died = list(run_isolated(os._exit, [(3,), (0,)], 1))
    assert [type(result) for _, result in died] == [ProcessDied, ProcessDied]
    began = time.monotonic()
    sleepers = run_isolated(time.sleep, [(0,), (600,), (600,)], 2)
    assert next(sleepers) == ((0,), None)
    sleepers.close()
    assert time.monotonic() - began < 60
    assert list(run_isolated(math.sqrt, [], 0)) == []
    numbers = {number for _, number in run_isolated(worker_number, [()] * 6, 2)}
    assert numbers <= {0, 1}, "a worker keeps its number, whichever jobs it does"
    assert worker_number() == 0


def test_refused_packs(corpus: Path, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="holds proxies, which lose with every packing"):
        pack(packed, tmp_path / "twice")
    with pytest.raises(CorpusError, match="is the corpus itself"):
        pack(corpus, corpus)
    with pytest.raises(CorpusError, match="workers=0"):
        pack(corpus, tmp_path / "out", workers=0)
    with pytest.raises(CorpusError, match="no such folder"):
        pack(tmp_path / "none", tmp_path / "out")
    (tmp_path / "locked").mkdir()
    with open(tmp_path / "locked" / pack_module.LOCK_NAME, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CorpusError, match="another `trocar pack` is writing to it"):
            pack(corpus, tmp_path / "locked")


def test_a_folder_that_cannot_be_written_ends_it(corpus: Path, tmp_path: Path) -> None:
    video_id = Corpus.open(corpus).video(0).id
    (tmp_path / "out" / "videos").mkdir(parents=True)
    (tmp_path / "out" / "videos" / video_id[:2]).write_text("in the way")
    with pytest.raises(OSError, match=r"exists|[Nn]ot a directory"):
        pack(corpus, tmp_path / "out")


def test_leftovers_of_a_killed_pack_go(corpus: Path, tmp_path: Path) -> None:
    left = tmp_path / "out" / "videos" / "ab" / "abcd.mp4.77.tmp"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    pack(corpus, tmp_path / "out")
    assert not left.exists()


def test_the_lead_is_what_random_starts_have_to_decode(corpus: Path) -> None:
    opened = Corpus.open(corpus)
    gops, frames = opened.gops(2), int(opened.frames[2])
    for span in (1, 7, 30, 62, 90):
        starts = np.arange(max(frames - span + 1, 1))
        leads = [start - gops.first_frame[gops.clean_start(int(start))] for start in starts]
        assert mean_lead(gops, frames, span) == pytest.approx(np.mean(leads))
    gain = expected_gain(opened, [0, 1, 2], SETTINGS, 2)
    assert (gain.videos, gain.frames, gain.packed_frames, gain.tried) == (3, 183, 92, 3)
    assert gain.packed_amplification == (1.5 + 16) / 16
    assert gain.amplification == pytest.approx((5 + 31) / 16, abs=0.1)
    assert gain.packed_bytes is not None
    assert 0.3 < gain.packed_bytes / sum(len(data) for name, data in proxies_of(corpus).items() if "mp4" in name) < 3
    assert re.search(r"\d kB, in [\d.]+ core seconds \(by a trial on 3 videos\)", gain.lines()[1])
    large = replace(gain, bytes=12_345_678, packed_bytes=3_200_000_000, core_hours=0.02).lines()
    assert large[0].endswith(", 12.3 MB")
    assert ", 3.2 GB, in 1.2 core minutes (" in large[1]
    assert "in 25.00 core hours (" in replace(gain, core_hours=25.0).lines()[1]


def proxies_of(corpus: Path) -> dict[str, bytes]:
    out = corpus.parent / "measured"
    pack(corpus, out)
    return proxies(out)
