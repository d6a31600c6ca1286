"""Readers, vectors, heads, table: whole benchmarks in their original layout, planted videos, and what a cell leaves behind."""

from __future__ import annotations

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from dataset_fixtures import FIXTURES

from trocar.engine.cli import main
from trocar.engine.config.error import ConfigError
from trocar.judge.labels.dataset import DatasetError, Segment, load_card, read_dataset
from trocar.judge.workflow import cell as cells
from trocar.judge.workflow.choices import HeadChoices, MetricChoices
from trocar.judge.workflow.labels import WorkflowTask, dense_labels, dense_sets
from trocar.judge.workflow.matrix import load_workflow
from trocar.judge.workflow.phases import chapters, clock

REAL = os.environ.get("TROCAR_TEST_VIDEOS", "")
TINY = {"name": "tiny", "weights": "random:tiny", "frames": 2, "stride": 1, "resolution": 32}
LINEAR = {"name": "probe", "head": {"kind": "linear", "epochs": 2}}
TECNO = {"name": "tecno", "head": {"kind": "tcn", "width": 8, "layers": 2, "epochs": 2}}
BOTH_WAYS = {
    "name": "all",
    "head": {"kind": "transformer", "mode": "offline", "width": 8, "layers": 1, "attention_heads": 2, "epochs": 2},
}


def written(path: Path, **settings: object) -> Path:
    path.write_text(yaml.safe_dump({"models": [TINY], "seeds": [0], **settings}), encoding="utf-8")
    return path


def run(path: Path, root: Path, *more: str) -> int:
    return main(
        ["bench", "workflow", str(path), "--data", str(root), "--out", str(root / "out"), "--device", "cpu", *more]
    )


def test_cholec80_from_its_files_to_a_table_and_chapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FIXTURES["cholec80"](tmp_path / "cholec80")
    entries = [{"name": "cholec80", "root": "cholec80", "split": "official"}]
    config = written(tmp_path / "c.yaml", datasets=entries, heads=[LINEAR, TECNO, BOTH_WAYS], features={"rate": 5})
    assert run(config, tmp_path) == 0
    out = tmp_path / "out"
    cell = out / "cells/cholec80/tiny/tecno/seed0"
    row = json.loads((cell / "row.json").read_text())
    assert row["split_videos"] == {"train": 2, "val": 1, "test": 1}
    assert (row["frames"], row["frames_without_label"], row["of"]) == (20, 0, 7)
    assert row["left_out"] == 5, "of seven phases the test video has two"
    assert row["selected"]["leak"] == 0
    assert row["baselines"]["copy last frame"]["accuracy"] == pytest.approx(17 / 20)
    assert (cell / "test_opened.json").exists()
    report = (out / "report.md").read_text()
    for text in (
        *(
            "| majority |",
            "| prior by time |",
            "| copy last frame |",
            "| tiny | tecno | online |",
            "| tiny | all | offline |",
        ),
        *("5 of 7 scores of a class in a video are left out", "rule absent_left_out", "relaxed Jaccard"),
    ):
        assert text in report, text
    page = (out / "report.html").read_text()
    assert page.count("data:image/png") == 1
    assert page.count("data:image/jpeg") == 2
    assert "http" not in page.replace("https://www.w3.org", "")
    table = list(csv.DictReader((out / "report.csv").read_text().splitlines()))
    mine = next(line for line in table if line["head"] == "tecno" and line["metric"] == "accuracy")
    assert float(mine["score"]) == pytest.approx(row["metrics"]["accuracy"]["score"], abs=1e-6)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and "report" not in path.name}
    assert run(config, tmp_path) == 0
    assert "was done" in capsys.readouterr().err
    assert all(
        path.stat().st_mtime_ns == time
        for path, time in before.items()
        if path.suffix != ".png" and path.name != "failures.json"
    )
    video = tmp_path / "cholec80/videos/video41.mp4"
    assert main(["phases", str(video), str(cell), "--out", str(tmp_path / "said"), "--device", "cpu"]) == 0
    rows = list(csv.reader((tmp_path / "said/video41.csv").read_text().splitlines()))
    assert rows[0] == ["second", "label", *(f"p({name})" for name in row["classes"])]
    assert [line[0] for line in rows[1:4]] == ["0", "0.2", "0.4"]
    _, scores = cells.read_predictions(cell)
    np.testing.assert_allclose(np.array(rows[1:])[:, 2:].astype(float), scores[0], atol=1e-5)
    assert (tmp_path / "said/video41.vtt").read_text().startswith("WEBVTT\n\n1\n00:00:00.000 --> ")
    assert (tmp_path / "said/video41.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ConfigError, match="no trained head there"):
        cells.read_phase_predictor(tmp_path)


def test_labels_of_every_moment() -> None:
    """Half open, a player's seconds; beyond the video, before its end, and between pieces."""
    truth, known = dense_labels([(0.0, 1.32, 1), (2.0, 3.0, 0), (3.0, 99.0, 2)], 5, 1.0)
    assert truth.tolist() == [1, 1, 0, 2, 2]
    truth, known = dense_labels([(0.4, 1.0, 1)], 4, 2.0)
    assert (truth.tolist(), known.tolist()) == ([0, 1, 0, 0], [False, True, False, False])
    # A third of a second written with three digits, as tables have it.
    assert dense_labels([(0.333, 0.667, 1)], 3, 3.0)[1].tolist() == [False, True, False]
    with pytest.raises(DatasetError, match="two labels hold at 2 s"):
        dense_labels([(0.0, 3.0, 1), (2.0, 4.0, 0)], 5, 1.0, "v")
    assert dense_labels([(0.0, 2.4, 1), (2.3, 4.0, 0)], 5, 1.0)[0].tolist() == [
        1,
        1,
        1,
        0,
        0,
    ]  # they meet between two moments
    sets, known = dense_sets([(0.0, 2.0, [0, 2]), (2.0, 3.0, [])], 5, 1.0, 3)
    assert sets.sum(axis=1).tolist() == [2, 2, 0, 0, 0]
    assert known.tolist() == [True] * 3 + [False] * 2


def segments(root: Path, splits: dict[str, str]) -> list[Segment]:
    for name in splits:
        (root / name).touch()
    return [Segment(str(root / name), 0.0, 2.0, "a", name, split=split) for name, split in splits.items()] + [
        Segment(str(root / name), 3.0, 4.0, "b", name, split=split) for name, split in splits.items()
    ]


def test_a_task_keeps_videos_whole_and_its_test_labels_closed(tmp_path: Path) -> None:
    card = replace(load_card("cholec80"), classes=("a", "b", "c"), num_classes=3)
    table = segments(tmp_path, {"1.mp4": "train", "2.mp4": "val", "3.mp4": "test"})
    task = WorkflowTask("made", card, table, MetricChoices())
    (video,) = task.labels("train", [5], 1.0)
    assert video.truth[video.known].tolist() == [0, 0, 1]
    as_class = WorkflowTask("made", card, table, MetricChoices(unlabelled="a_class"))
    assert as_class.classes == ("a", "b", "c", "none")
    assert as_class.labels("train", [5], 1.0)[0].truth.tolist() == [0, 0, 3, 1, 3]
    with pytest.raises(DatasetError, match="opens after the selection"):
        task.labels("test", [5], 1.0, folder=tmp_path)
    with pytest.raises(DatasetError, match="for a cell's folder alone"):
        task.labels("test", [5], 1.0)
    (tmp_path / "selected.json").write_text("{}")
    assert task.labels("test", [5], 1.0, folder=tmp_path)[0].name == "3"
    (tmp_path / "selected.json").write_text('{"epoch": 2}')
    with pytest.raises(DatasetError, match="not opened twice"):
        task.labels("test", [5], 1.0, folder=tmp_path)
    torn = [replace(table[0], split="test"), *table[1:]]
    with pytest.raises(DatasetError, match="stand in several splits"):
        WorkflowTask("made", card, torn, MetricChoices())
    with pytest.raises(DatasetError, match="no video for val"):
        WorkflowTask("made", card, [row for row in table if row.split != "val"], MetricChoices())


@pytest.mark.slow
def test_a_killed_cell_goes_on_to_the_same_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FIXTURES["autolaparo"](tmp_path / "autolaparo")
    entries = [{"name": "autolaparo", "root": "autolaparo", "split": "official"}]
    config = written(
        tmp_path / "c.yaml", datasets=entries, heads=[{"name": "tecno", "head": {**TECNO["head"], "epochs": 3}}]
    )  # type: ignore[dict-item]
    for number, step in enumerate(["save_state", "write_arrays_whole", "_judged"]):
        kept = getattr(cells, step)

        def killed(*arguments: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(cells, step, killed)
        assert run(config, tmp_path) == 130, step
        monkeypatch.setattr(cells, step, kept)
        assert number < 3
    assert run(config, tmp_path) == 0
    assert (
        main(
            [
                "bench",
                "workflow",
                str(config),
                "--data",
                str(tmp_path),
                "--out",
                str(tmp_path / "whole"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    rows = [
        json.loads((tmp_path / out / "cells/autolaparo/tiny/tecno/seed0/row.json").read_text())
        for out in ("out", "whole")
    ]
    assert rows[0] == rows[1]


def test_chapters_that_players_show() -> None:
    text = chapters(["Rhexis", "Rhexis", "", "a < b & c --> d"], 0.5)
    assert text.splitlines() == [
        "WEBVTT", "", "1", "00:00:00.000 --> 00:00:04.000", "Rhexis", "",
        "2", "00:00:06.000 --> 00:00:08.000", "a &lt; b &amp; c to d",
    ]  # fmt: skip
    assert clock(3723.5) == "01:02:03.500"


def test_the_matrix_that_ships_is_understood_and_wrong_ones_are_refused(tmp_path: Path) -> None:
    shipped = load_workflow("workflow")
    assert {head.head.mode for head in shipped.heads} == {"online", "offline"}
    for dataset in shipped.datasets:
        load_card(dataset.name)
    entries = [{"name": "cholec80", "root": "."}]
    with pytest.raises(ConfigError, match="causal for heads of mode online"):
        load_workflow(written(tmp_path / "a.yaml", datasets=entries, heads=[TECNO], features={"clips": "centred"}))
    with pytest.raises(ConfigError, match="multiple of twice its 3"):
        HeadChoices("transformer", width=64, attention_heads=3)
    score = {"dataset": "other", "name": "x", "metric": "accuracy", "score": 90.0, "source": "y"}
    with pytest.raises(ConfigError, match="one of cholec80"):
        load_workflow(written(tmp_path / "a.yaml", datasets=entries, heads=[TECNO], published=[score]))


DENSE = (
    *(
        "autolaparo",
        "cataract101",
        "cataract1k",
        "cholec80",
        "cholec80_tools",
        "cholect45",
        "cholect50",
        "endoscapes",
        "m2cai16",
        "multibypass140",
    ),
    *("multibypass140_steps", "pitvis", "sar_rarp50"),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", DENSE)
def test_every_layout_from_its_files_to_a_table(name: str, tmp_path: Path) -> None:
    FIXTURES[name](tmp_path / name)
    card, table = load_card(name), read_dataset(name, tmp_path / name)
    split = "official" if {row.split for row in table} >= {"train", "test"} else "leak-free"
    heads = [LINEAR, TECNO, BOTH_WAYS]
    config = written(
        tmp_path / "c.yaml", datasets=[{"name": name, "root": name, "split": split}], heads=heads, features={"rate": 2}
    )
    assert run(config, tmp_path) == 0
    row = json.loads((tmp_path / f"out/cells/{name}/tiny/tecno/seed0/row.json").read_text())
    assert row["frames"] > 0
    assert row["several"] == card.several
    main_metric = "video_mean_average_precision" if card.several else "accuracy"
    assert 0 <= row["metrics"][main_metric]["score"] <= 1


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="TROCAR_TEST_VIDEOS names no folder of real clips")
def test_phases_of_real_clips(tmp_path: Path) -> None:
    FIXTURES["cholec80"](tmp_path / "cholec80")
    config = written(
        tmp_path / "c.yaml", datasets=[{"name": "cholec80", "root": "cholec80", "split": "official"}], heads=[TECNO]
    )
    assert run(config, tmp_path) == 0
    cell = tmp_path / "out/cells/cholec80/tiny/tecno/seed0"
    clips = sorted(path for path in Path(REAL).iterdir() if path.suffix == ".mp4")
    assert clips
    for clip in clips:
        out = tmp_path / "said" / clip.stem
        assert main(["phases", str(clip), str(cell), "--out", str(out), "--device", "cpu"]) == 0
        assert {path.suffix for path in out.iterdir() if path.is_file()} == {".csv", ".png", ".vtt"}, clip
        assert len((out / f"{clip.stem}.csv").read_text().splitlines()) > 1


@pytest.mark.slow
def test_folds_are_judged_one_by_one_and_averaged(tmp_path: Path) -> None:
    FIXTURES["multibypass140"](tmp_path / "bypass")
    folds = ["bern-left-out", "strasbourg-left-out"]
    entries = [{"name": "multibypass140", "root": "bypass", "folds": folds}]
    score = {"dataset": "multibypass140", "name": "theirs", "metric": "accuracy", "score": 90.0, "source": "a paper"}
    config = written(tmp_path / "c.yaml", datasets=entries, heads=[LINEAR], published=[score])
    assert run(config, tmp_path) == 0
    cells_of = [tmp_path / f"out/cells/multibypass140_{fold}/tiny/probe/seed0/row.json" for fold in folds]
    scores = [json.loads(path.read_text())["metrics"]["accuracy"]["score"] for path in cells_of]
    report = (tmp_path / "out/report.md").read_text()
    assert "2 of 2 cells are done." in report
    mean, spread = 100 * float(np.mean(scores)), 100 * float(np.std(scores, ddof=1))
    assert f"| tiny | probe | online | 2 of 2 | {mean:.2f} ± {spread:.2f} |" in report
    assert [line for line in report.splitlines() if line.startswith("## ")] == [
        "## multibypass140: mean over folds", *(f"## multibypass140 {fold}" for fold in folds)
    ]  # fmt: skip
    assert report.count("theirs") == 1
    with pytest.raises(ConfigError, match=r"datasets\.folds: .* two or more, each once"):
        load_workflow(written(tmp_path / "d.yaml", datasets=[{**entries[0], "folds": folds[:1]}], heads=[LINEAR]))
