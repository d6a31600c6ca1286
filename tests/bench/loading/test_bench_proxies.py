"""The figures that proxies are chosen by are counted right, and likeness is what it is called."""

from __future__ import annotations

import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import clips
import numpy as np
import pytest

from trocar.bench.loading import packed as packed_module
from trocar.bench.loading import proxies as bench
from trocar.bench.loading.likeness import likeness, pictures
from trocar.bench.loading.packed import compare_loading, measure_loading
from trocar.bench.loading.packed import table as loading_table
from trocar.bench.loading.proxies import (
    Variant,
    bench_proxies,
    measure_speeds,
    proxy_arm,
    table_line,
    uncompressed_arm,
    variants,
)
from trocar.bench.rows.row import read_rows
from trocar.engine.cli import main
from trocar.loaders.corpus.corpus import Corpus
from trocar.loaders.corpus.index import index_corpus
from trocar.loaders.pack.pack import pack_corpus
from trocar.loaders.pack.settings import PackSettings
from trocar.loaders.video.probe import probe_video
from trocar.loaders.video.video import VideoError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "a.mp4"
    clips.write_numbered(path, 80, gop=40, b_frames=2)
    return path


def measured(original: Path, folder: Path, variant: Variant) -> dict[str, Any]:
    video, gops = probe_video(original)
    with ExitStack() as opened:
        arm = proxy_arm(video, gops, pictures(video, gops, variant.stride), variant, folder / "p.mp4", opened)
        return {**arm.figures, **measure_speeds([arm])[0]}


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "ROUNDS", 2)


@pytest.mark.parametrize("gop", [1, 4, 8])
def test_amplification_is_counted(original: Path, tmp_path: Path, gop: int) -> None:
    """Every start of a 16-frame clip is drawn once: the mean way from a keyframe is known."""
    figures = measured(original, tmp_path, Variant(short_side=96, stride=2, gop=gop))
    starts = np.arange(40 - 16 + 1)
    assert figures["clips"] == len(starts)
    assert figures["amplification"] == pytest.approx((16 + (starts % gop).mean()) / 16)
    assert figures["bytes_per_frame"] == (tmp_path / "p.mp4").stat().st_size / 40
    assert figures["frames_per_core_second"] == pytest.approx(16 * figures["clips_per_core_second"])
    assert figures["psnr_db"] > 30


def test_better_quality_is_more_alike_and_larger(original: Path, tmp_path: Path) -> None:
    good, bad = (measured(original, tmp_path, Variant(short_side=96, quality=quality)) for quality in (12, 33))
    assert good["psnr_db"] > bad["psnr_db"] + 3
    assert good["ssim"] > bad["ssim"]
    assert good["bytes_per_frame"] > bad["bytes_per_frame"]


def test_uncompressed_frames_differ_by_scaling_alone(original: Path, tmp_path: Path) -> None:
    video, gops = probe_video(original)
    seen = pictures(video, gops, 2)
    figures = uncompressed_arm(video, gops, seen, PackSettings(short_side=96, stride=2), tmp_path / "raw").figures
    assert figures["bytes_per_frame"] == 128 * 96 * 3
    assert figures["amplification"] == 1
    assert figures["psnr_db"] > 40


def test_likeness_is_psnr_and_ssim() -> None:
    first = np.random.default_rng(0).integers(60, 180, (3, 224, 224, 3), np.uint8)
    same = likeness(first, first)
    assert (same["psnr_db"], same["ssim"]) == (100, 1)
    second = first + np.random.default_rng(1).integers(0, 9, first.shape, np.uint8)
    error = ((first.astype(float) - second) ** 2).mean()
    noisy = likeness(first, second)
    assert noisy["psnr_db"] == pytest.approx(10 * math.log10(255**2 / error), abs=0.01)
    assert 0.9 < noisy["ssim"] < 1
    with pytest.raises(AssertionError):
        likeness(first, first[:2])


def test_every_variant_can_be_encoded(original: Path, tmp_path: Path) -> None:
    labels = [variant.label for variant in variants(96, 4)]
    assert len(set(labels)) == len(labels) >= 20
    assert "h264 gop 8 quality 23" in labels
    assert "h264 gop 8 quality 23 cabac=1 no-deblock=0" in labels
    changed = next(variant for variant in variants(96, 4) if variant.more == "cabac=1")
    assert changed.encoder_options()["x264-params"].endswith(":cabac=1")
    assert "cabac=0" in PackSettings().encoder_options()["x264-params"]
    assert measured(original, tmp_path, changed)["bytes_per_frame"] > 0


def test_rows_and_table(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    chosen = [Variant(short_side=96, stride=4), Variant(short_side=96, stride=4, codec="mjpeg")]
    monkeypatch.setattr(bench, "variants", lambda short_side, stride: chosen)
    out = tmp_path / "rows.jsonl"
    assert main(["bench", "proxies", str(original), "--short-side", "96", "--out", str(out)]) == 0
    rows = read_rows(out)
    assert [row["variant"] for row in rows] == ["h264 gop 8 quality 23", "mjpeg gop 1 quality 3", "uncompressed RGB"]
    assert {row["benchmark"] for row in rows} == {"proxies"}
    assert {"machine", "versions", "commit", "spread_percent", "rounds", "clips"} <= set(rows[0])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [table_line(row) for row in rows]
    assert len({line.count("|") for line in lines}) == 1
    short = tmp_path / "short.mp4"
    clips.write_numbered(short, 40)
    with pytest.raises(VideoError, match="40 frames at stride 4 hold no clip of 16"):
        bench_proxies([short])
    monkeypatch.undo()
    assert main(["bench", "proxies", str(original), "--short-side", "95", "--out", str(out)]) == 2


def test_loading_before_and_after(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_corpus([original], tmp_path / "corpus", workers=1, progress=False)
    settings = PackSettings(short_side=96, stride=2, gop=4)
    summary = pack_corpus(tmp_path / "corpus", tmp_path / "packed", settings, workers=1, progress=False)
    monkeypatch.setattr(packed_module, "CLIPS", 16)
    before, after = rows = compare_loading(tmp_path / "corpus", tmp_path / "packed", 2)
    assert (before.bytes, after.bytes) == (original.stat().st_size, summary.packed_bytes)
    assert (before.frames, after.frames, after.clips, after.passes) == (80, 40, 16, 3)
    assert 1 <= after.amplification <= 1.25 < before.amplification
    assert after.clips_per_second > 0
    assert "3 x 16 and 3 x 16 clips of 16 frames at 224 px" in loading_table(rows)
    monkeypatch.setattr(packed_module, "SHORT_PASS_SECONDS", 0)
    assert measure_loading("again", Corpus.open(tmp_path / "packed"), 1).passes == 1


def test_the_documented_table_is_that_of_the_rows() -> None:
    root = Path(__file__).resolve().parents[3]
    rows = read_rows(root / "bench/results/proxies.jsonl")
    assert bench.table(rows) in (root / "docs/performance.md").read_text(encoding="utf-8")
