"""`trocar predict`: what a cell of `trocar finetune` says of videos, equal to what it said of its own test split."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from clips import write_numbered
from motion_task import FPS, FRAMES, motion_table, tiny_conversion

from trocar.engine.cli import main
from trocar.engine.weights.convert import save_encoder
from trocar.judge.downstream.predictor import Problem, listed_videos
from trocar.judge.labels.table import write_table
from trocar.loaders.corpus import progress

QUICK = [
    "epochs=2",
    "train_views=1",
    "segments=2",
    "crops=2",
    "learning_rates=[1e-3]",
    "weight_decays=[0.05]",
    "balances=[0]",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of three short videos with its encoder, and cells of two protocols."""
    folder = tmp_path_factory.mktemp("predict")
    rows = motion_table(folder, {"train": 2, "val": 1, "test": 2}, 6)
    write_table(folder / "labels.csv", rows)
    write_table(folder / "test.csv", [row for row in rows if row.split == "test"])
    save_encoder(tiny_conversion(), folder / "encoder.safetensors")
    for protocol in ("linear", "full"):
        assert main(finetune(folder, protocol)) == 0
    return folder


def finetune(folder: Path, protocol: str) -> list[str]:
    words = ["finetune", str(folder / "labels.csv"), str(folder), str(folder / "encoder.safetensors"), *QUICK]
    options = ["--stride", "1", "--split", "as-is", "--device", "cpu"]
    return [*words, *options, "--protocol", protocol, "--out", str(folder / protocol)]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("protocol", ["linear", pytest.param("full", marks=pytest.mark.slow)])
def test_the_test_split_has_the_scores_of_its_evaluation(folder: Path, protocol: str, tmp_path: Path) -> None:
    words = ["predict", str(folder / protocol), "--table", str(folder / "test.csv"), "--out", str(tmp_path / "out.csv")]
    assert main([*words, "--device", "cpu"]) == 0
    found, table = read(tmp_path / "out.csv"), read(folder / "test.csv")
    with np.load(folder / protocol / "predictions.npz") as known:
        scores = known["scores"]
    assert len(found) == len(table) == len(scores) == 12
    assert list(found[0]) == ["file", "start_seconds", "end_seconds", "label", "p(left)", "p(right)"]
    given = np.array([[float(row["p(left)"]), float(row["p(right)"])] for row in found])
    assert np.abs(given - scores).max() <= 1e-6
    assert np.ptp(scores[:, 0]) > 1e-4, "rows that differ"
    for row, wanted, score in zip(found, table, scores, strict=True):
        assert row["file"] == wanted["video"]
        assert float(row["start_seconds"]) == pytest.approx(float(wanted["start"]), abs=1e-3)
        assert row["label"] == ("left", "right")[int(score[1] > score[0])]


def test_videos_are_cut_by_the_clock_and_what_fails_is_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    (tmp_path / "videos").mkdir()
    write_numbered(tmp_path / "videos" / "ä b.mp4", 60, fps=25)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"not a video")
    sources = [str(tmp_path / "videos"), str(tmp_path / "gone.mp4"), str(folder / "test_0.mp4")]
    out = tmp_path / "out.csv"
    out.write_text("before")
    words = ["predict", str(folder / "linear"), *sources, "--out", str(out), "--device", "cpu"]
    assert main([*words, "--every", "1"]) == 1
    said = capsys.readouterr().err
    assert f"not predicted: {tmp_path / 'gone.mp4'}: no such file or folder" in said
    assert f"not predicted: {tmp_path / 'videos' / 'broken.mp4'}" in said
    assert re.search(r"\d+ of \d+ clips: \S+test_0\.mp4", said), "how far a long video is"
    rows = read(out)
    cuts = [(Path(row["file"]).name, float(row["start_seconds"]), float(row["end_seconds"])) for row in rows]
    length = 6 * FRAMES / FPS
    assert cuts == [
        ("ä b.mp4", 0, 1),
        ("ä b.mp4", 1, 2),
        ("ä b.mp4", 2, 2.4),
        ("test_0.mp4", 0, 1),
        ("test_0.mp4", 1, length),
    ]
    for row in rows:
        assert float(row["p(left)"]) + float(row["p(right)"]) == pytest.approx(1, abs=1e-6)
    # Where nothing is asked for, pieces are as long as the rows that it was trained on.
    assert main([*words[:2], str(folder / "test_0.mp4"), *words[-4:]]) == 0
    assert [float(row["start_seconds"]) for row in read(out)] == pytest.approx(
        [n * FRAMES / FPS for n in range(6)], abs=1e-3
    )


def test_a_corpus_names_its_originals_and_so_do_its_proxies(folder: Path, tmp_path: Path) -> None:
    originals = [str(folder / f"test_{number}.mp4") for number in range(2)]
    corpus, packed = tmp_path / "corpus", tmp_path / "packed"
    assert main(["index", *originals, "--out", str(corpus)]) == 0
    assert main(["pack", str(corpus), "--out", str(packed), "--short-side", "32"]) == 0
    for sources in ([str(corpus)], [str(packed)], [str(packed), *originals]):
        problems: list[Problem] = []
        assert sorted(listed_videos(sources, problems)) == originals
        assert not problems


def test_nothing_predicted_leaves_what_was_there(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.csv"
    out.write_text("before")
    words = ["--out", str(out), "--device", "cpu"]
    assert main(["predict", str(folder / "linear"), str(tmp_path / "gone.mp4"), *words]) == 2
    assert "nothing could be predicted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]
    assert out.read_text() == "before"
    assert main(["predict", str(folder / "linear"), *words]) == 2
    assert "name videos, or pieces of them" in capsys.readouterr().err
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "rows.csv").write_text("video,label\n1.mp4,\n2.mp4,\n")
    assert main(["predict", str(folder / "linear"), "--table", str(elsewhere / "rows.csv"), *words]) == 2
    said = capsys.readouterr().err
    assert (
        f"none of its 2 videos is there, for example {elsewhere / '1.mp4'}; relative paths begin at {elsewhere}" in said
    )


def test_other_weights_and_unfinished_cells_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(folder / "test_0.mp4"), "--out", str(tmp_path / "out.csv"), "--device", "cpu"]
    other = tiny_conversion()
    other.tensors["norm.bias"] += 1
    save_encoder(other, tmp_path / "other.safetensors")
    assert main(["predict", str(folder / "linear"), *words, "--model", str(tmp_path / "other.safetensors")]) == 2
    assert "its weights are others than those that the head" in capsys.readouterr().err
    assert main(["predict", str(tmp_path), *words]) == 2
    assert "name the --out of a `trocar finetune` that has finished" in capsys.readouterr().err
    # A cell of an earlier trocar: the same command adds what is missing.
    record = folder / "linear" / "predictor.json"
    known = json.loads(record.read_text())
    record.unlink()
    assert main(["predict", str(folder / "linear"), *words]) == 2
    assert "run the same `trocar finetune` again" in capsys.readouterr().err
    assert main(finetune(folder, "linear")) == 0
    assert json.loads(record.read_text()) == known


def again(words: list[str]) -> tuple[str, bool]:
    """(what a command says on stdout, whether it needed PyTorch), in a process of its own."""
    program = "import sys; from trocar.engine.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True)
    said, needed = done.stdout.rstrip("\n").rsplit("\n", 1)
    return said, needed == "True"


def test_what_is_done_is_told_without_pytorch_until_something_differs(folder: Path, tmp_path: Path) -> None:
    kept = folder / "kept"
    words = [*finetune(folder, "linear")[:-1], str(kept)]
    first, needed = again(words)
    assert needed
    assert again(words) == (first, False)
    assert again([*words, "--device", "auto"]) == (first, True), "asked for otherwise"
    encoder = folder / "encoder.safetensors"
    os.utime(encoder, ns=(0, 0))
    assert again([*words, "--device", "auto"]) == (first, True), "another file, for all that is known"

    video, out = str(folder / "test_0.mp4"), tmp_path / "vectors"
    words = ["features", video, "--model", str(encoder), "--out", str(out), "--stride", "1", "--device", "cpu"]
    said, needed = again(words)
    assert needed
    assert "1 videos have their vectors" in said
    assert again(words) == ("1 videos have their vectors; 0 shards were made now", False)
    for shard in out.rglob("*.npy"):
        shard.unlink()
    remade, needed = again(words)
    assert needed
    assert "0 shards" not in remade
