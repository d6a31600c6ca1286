"""Tables as people write them: trimmed and compared as they are meant, refused where they cannot be, with file and line."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from trocar.judge.downstream.task import Task
from trocar.judge.labels.audit import audit
from trocar.judge.labels.dataset import DatasetError, Segment, table_card
from trocar.judge.labels.table import read_table
from trocar.loaders.corpus.names import twins


def written(folder: Path, *lines: str) -> Path:
    path = folder / "table.csv"
    path.write_text("\n".join(["video,start,end,label", *lines]), encoding="utf-8")
    return path


def test_labels_are_trimmed_and_in_one_normal_form(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "nähen")
    path = written(
        tmp_path, "a.mp4,0,1,cut", " b.mp4,0,1,cut ", "c.mp4,0,1,\u00a0nähen\u200b", f"d.mp4,0,1,{decomposed}"
    )
    assert [(s.video, s.label) for s in read_table(path)] == [
        ("a.mp4", "cut"), ("b.mp4", "cut"), ("c.mp4", "nähen"), ("d.mp4", "nähen")
    ]  # fmt: skip


def test_one_empty_label_does_not_change_the_task(tmp_path: Path) -> None:
    path = written(tmp_path, *(f"{n}.mp4,0,1,{'cut' if n % 2 else 'sew'}" for n in range(26)), "z.mp4,0,1, ")
    with pytest.raises(DatasetError, match=r"1 of 27 rows have no label, line 28; .*--unlabelled drop"):
        read_table(path)
    dropped = read_table(path, "drop")
    assert len(dropped) == 26
    assert not table_card(path, dropped).several
    assert table_card(path, read_table(path, "none")).several


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.mp4,5,2,cut", "line 2: it ends at 2 s, before its start at 5 s; exchange them"),
        ("a.mp4,-1,2,cut", "line 2: start is -1; give seconds"),
        ("a.mp4,0,nan,cut", "line 2: end is nan; give seconds"),
        (" ,0,1,cut", "line 2: names no video"),
    ],
)
def test_rows_that_cannot_be_are_refused(row: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=reason):
        read_table(written(tmp_path, row))


def test_missing_videos_of_every_split_are_named(tmp_path: Path) -> None:
    rows = []
    for split in ("train", "val", "test"):
        for name in ("here", "gone"):
            video = tmp_path / f"{split}_{name}.mp4"
            if name == "here":
                video.touch()
            rows.append(Segment(str(video), 0.0, 1.0, name, video.stem, split=split))
    with pytest.raises(DatasetError) as refused:
        Task("made", table_card(tmp_path / "made.csv", rows), rows)
    assert str(refused.value).splitlines()[:4] == [
        "made: 3 videos are missing:",
        *(f"  {split}, 1: {tmp_path / f'{split}_gone.mp4'}" for split in ("train", "val", "test")),
    ]


def test_twins_overlaps_and_classes_of_the_test_split_alone_are_found() -> None:
    rows = [
        Segment("a.mp4", 0.0, 10.0, "cut", "a", split="train"),
        Segment("a.mp4", 9.0, 12.0, "Cut", "a", split="train"),
        Segment("a.mp4", 12.0, 14.0, "sew", "a", split="train"),
        Segment("b.mp4", 0.0, 1.0, "sew", "b", split="test"),
        Segment("b.mp4", 1.0, 2.0, "clip", "b", split="test"),
    ]
    found = {finding.kind: str(finding) for finding in audit(rows).findings}
    assert "'Cut' and 'cut' count as 2 classes (1 rows, 1 rows)" in found["near twins"]
    assert found["overlaps"].startswith("overlaps: 1 rows of train begin before")
    assert "a.mp4, 0 .. 10 s and from 9 s on" in found["overlaps"]
    assert "1 rows of test are of classes without a training row" in audit(rows).lines()


def test_what_is_a_twin() -> None:
    same = ["suture pass", "Suture  Pass", "suture_pass", "suture-pass", "\u0455uture pass", "suture\u200b pass"]
    assert [set(group) for group in twins([*same, "suture", "grade 1-2", "grade 12"])] == [{*same}]
