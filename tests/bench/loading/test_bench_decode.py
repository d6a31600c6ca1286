"""The decode and data-wait measurements run whole on the CPU, so that a GPU finds them working."""

from __future__ import annotations

from pathlib import Path

import clips
import pytest
import torch

from trocar.bench.loading import data_wait
from trocar.bench.rows.row import read_rows
from trocar.engine.cli import main
from trocar.loaders.corpus.index import index_corpus

CPU = torch.device("cpu")
TINY = [
    "model.encoder=tiny", "model.depth=1", "model.decoder_depth=1", "optim.batch=2", "optim.accumulation=1", "data.resolution=64",
    "data.frames=4", "run.precision=float32",
]  # fmt: skip


def test_decoding_is_measured_against_the_decoders_own_ceiling() -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from trocar.bench.loading import decode

    (entry,) = decode.bench_decode(CPU)
    assert (entry["benchmark"], entry["codec"], entry["gop"]) == ("decode", "vp9", 12)
    assert entry["ceiling_frames_per_second"] > 0
    assert entry["of_ceiling"] == pytest.approx(entry["decoded_frames_per_second"] / entry["ceiling_frames_per_second"])
    assert entry["decoded_clips_per_second"] > 0
    assert entry["clips_per_second"] > 0
    assert 1 <= entry["amplification"] < 12
    assert entry["nvdec_busy_percent"] is None
    lines = decode.table([entry]).splitlines()
    assert len(lines) == 3
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "vp9 160x96 GOP 12" in lines[2]


def test_ways_to_keep_dalis_decoders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    assert main(["bench", "dali-cache", "--out", str(tmp_path / "rows.jsonl")]) == 0
    rows = read_rows(tmp_path / "rows.jsonl")
    arms = ["sides of whole blocks", "header without cropping", "as they come", "JPEG"]
    assert [(entry["benchmark"], entry["arm"]) for entry in rows] == [("dali_cache", arm) for arm in arms]
    assert [entry["width"] for entry in rows] == [112, 114, 114, 112]
    assert all(entry["clips_per_second"] > 0 for entry in rows)
    assert rows[3]["amplification"] == 1 < rows[0]["amplification"]
    assert "| JPEG, mjpeg 112x64 |" in capsys.readouterr().out


def test_data_wait_of_originals_proxies_and_reused_spans(tmp_path: Path) -> None:
    for name, gop in (("originals", 60), ("proxies", 4)):
        (tmp_path / name).mkdir()
        clips.write_numbered(tmp_path / name / "a.mp4", 60, gop=gop)
        index_corpus([tmp_path / name], tmp_path / f"{name}_corpus", workers=1, progress=False)
    corpora = {name: tmp_path / f"{name}_corpus" for name in ("originals", "proxies")}
    rows = data_wait.bench_data_wait(CPU, corpora, config="demo_cpu", views_per_span=2, steps=4, overrides=TINY)
    assert [entry["corpus"] for entry in rows] == ["originals", "proxies", "proxies, 2 views a span"]
    assert rows[0]["amplification"] > rows[1]["amplification"]
    assert rows[1]["clips_per_second"] == rows[1]["spans_per_second"]
    assert rows[2]["clips_per_second"] == pytest.approx(2 * rows[2]["spans_per_second"])
    assert all(0 <= entry["data_wait_percent"] <= 100 for entry in rows)
    assert len(data_wait.table(rows).splitlines()) == 5


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "videos").mkdir()
    clips.write_numbered(tmp_path / "videos" / "a.mp4", 60, gop=12)
    index_corpus([tmp_path / "videos"], tmp_path / "corpus", workers=1, progress=False)
    command = [
        "bench",
        "data-wait",
        f"one={tmp_path / 'corpus'}",
        "--config",
        "demo_cpu",
        "--steps",
        "2",
        "--views",
        "2",
    ]
    assert main([*command, "--out", str(tmp_path / "rows.jsonl"), "--set", *TINY]) == 0
    assert "| one, 2 views a span |" in capsys.readouterr().out
    assert len(read_rows(tmp_path / "rows.jsonl")) == 2
    assert main(["bench", "data-wait", "nowhere"]) == 2
    assert "give each corpus as NAME=FOLDER" in capsys.readouterr().err
