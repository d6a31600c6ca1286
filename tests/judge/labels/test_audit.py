"""The audit finds the faults of the release, rebuilt here by its rules and names, and none on the leak-free splits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from clips import number_picture, read_number, write_numbered
from dataset_fixtures import FIXTURES
from PIL import Image

from trocar.engine.cli import main
from trocar.judge.downstream.finetune_command import open_task
from trocar.judge.labels.audit import Audit, audit, duplicates
from trocar.judge.labels.audit_command import dataset_table
from trocar.judge.labels.corpus_overlap import KnownVideo
from trocar.judge.labels.dataset import DatasetError, Segment, load_card, read_dataset
from trocar.judge.labels.segment_clips import clip_rows, picture_video
from trocar.judge.labels.splits import from_release, leak_free, official
from trocar.judge.labels.table import read_table
from trocar.judge.labels.thumbnails import thumbnails
from trocar.loaders.clip_loader import clip_loader
from trocar.loaders.video.probe import probe_video


def audit_release(name: str, folder: Path, train: Iterable[str], val: Iterable[str], test: Iterable[str]) -> Audit:
    """Audits split files as the release writes them: paths below __DATA_ROOT__ and a number, without a header."""
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", train), ("val", val), ("test", test)):
        lines = [f'"__DATA_ROOT__/{row}" 0' if " " in row else f"__DATA_ROOT__/{row} 0" for row in rows]
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return audit(from_release(folder, "/data", load_card(name)), load_card(name))


def known(*paths: str) -> list[KnownVideo]:
    """Videos of a corpus; those that are there may be looked at."""
    found = []
    for path in paths:
        facts = probe_video(path)[0] if Path(path).exists() else None
        found.append(KnownVideo((path,), facts.duration_seconds if facts else 1e9, partial(probe_video, path)))
    return found


def kinds(result: Audit) -> list[str]:
    return [finding.kind for finding in result.findings]


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("cholec80", "split_video/cholec80_{0:02d}_1.mp4"),
        ("cat21", "split_clip/Rhexis/case_{0:02d}_training_0012.mp4"),
        ("sar_rarp50", "split_video/00_other/video_{0:02d}_label00_other_seg0000_000000-000649.mp4"),
        ("m2cai16", "split_video/m2cai16w_train_dataset_workflow_video_{0:02d}_Preparation.mp4"),
    ],
)
def test_validation_that_is_the_test_split(name: str, pattern: str, tmp_path: Path) -> None:
    train, test = ([pattern.format(video) for video in videos] for videos in (range(1, 5), range(41, 44)))
    result = audit_release(name, tmp_path, train, test, test)
    assert kinds(result) == ["identical splits"]
    assert result.findings[0].detail == "val and test hold the same 3 clips"
    assert kinds(audit_release(name, tmp_path, train, [pattern.format(30)], test)) == []


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("hyperkvasir", "videos/lower-colitis/3e9c0ab2-{0}_{1}.avi"),
        ("kvasir_capsule", "videos/Ileocecal valve/04a78ef00c5{0:04x}_{1}-{1}9.mp4"),
        ("ldpolypvideo", "videos/1_{0}_{1}_{1}9_polyps.mp4"),
    ],
)
def test_pieces_of_training_videos_in_the_test_split(name: str, pattern: str, tmp_path: Path) -> None:
    """Forty videos; 39 of the 40 test pieces come from one of which other pieces are trained on."""
    train = [pattern.format(number, 1) for number in range(39)]
    test = [pattern.format(number, 7) for number in range(1, 41) if number != 39] + [pattern.format(0, 7)]
    result = audit_release(name, tmp_path, train, test, test)
    assert kinds(result) == ["identical splits", "shared subjects", "shared subjects"]
    assert result.findings[2].share == pytest.approx(39 / 40)
    assert "39 of test stand in train too, with 97.5% of the rows" in str(result.findings[2])


def test_one_lesion_in_two_lights(tmp_path: Path) -> None:
    train = ["Adenoma/NBI(36).mp4", "Adenoma/NBI(2).mp4", "Serrated/WL(1).mp4", "Hyperplasic/WL.mp4"]
    test = ["Adenoma/WL(36).mp4", "Hyperplasic/NBI.mp4", "Adenoma/WL(1).mp4"]
    result = audit_release("colonoscopic", tmp_path, train, ["Serrated/WL(9).mp4"], test)
    assert kinds(result) == ["shared subjects"]
    assert result.findings[0].share == pytest.approx(2 / 3)
    assert result.findings[0].examples == ("Adenoma 36", "Hyperplasic ")


def test_header_word_as_class(tmp_path: Path) -> None:
    name = "split_video/m2cai16w_{0}_dataset_{1}workflow_video_{2:02d}_{3}.mp4"
    train = [name.format("train", "", n, label) for n in range(1, 4) for label in ("Preparation", "Phase")]
    test = [name.format("test", "test_", 1, label) for label in ("Preparation", "Phase")]
    result = audit_release("m2cai16", tmp_path, train, test, test)
    assert kinds(result) == ["identical splits", "header word"]
    assert "'Phase', a word of a header, is the label of 4 rows" in str(result.findings[1])
    assert result.shares["Phase"] == {"train": 0.5, "val": 0.5, "test": 0.5}


def test_nothing_labelled_as_class(tmp_path: Path) -> None:
    name = "split_clip/{0}/case_{1:02d}_training_0012.mp4"
    train = [name.format(label, case) for case in range(1, 4) for label in ("Rhexis", "not_initialized")]
    result = audit_release("cat21", tmp_path, train, [name.format("Rhexis", 5)], [name.format("Rhexis", 18)])
    assert kinds(result) == ["negative class"]
    assert result.findings[0].share == pytest.approx(3 / 8)


def test_negatives_under_the_label_of_what_they_do_not_show(tmp_path: Path) -> None:
    name = "{0}/{1}/{2}/case_{3}_{0}_7.mp4"
    train = [name.format("Bleeding", "Train", label, case) for case in range(4) for label in ("Bleeding", "Rest")]
    test = [name.format("Bleeding", "Test", label, case) for case in (3, 9) for label in ("Bleeding", "Rest")]
    result = audit_release("lapgyn", tmp_path, train, test, test)
    assert kinds(result) == ["identical splits", "shared subjects", "shared subjects", "mislabelled negatives"]
    assert "50% of 'Bleeding'" in str(result.findings[3])
    assert result.findings[3].share == 0.5


def test_test_videos_in_the_pretraining_corpus(tmp_path: Path) -> None:
    """CholecT50's VID42 is Cholec80's video 42; others are the same path, or the same bytes under another name."""
    table = [
        Segment(str(tmp_path / f"video{n}.mp4"), 0.0, 1.0, "Preparation", f"video{n}", split="test")
        for n in (42, 43, 44, 45)
    ]
    for n in (43, 44, 45):
        write_numbered(tmp_path / f"video{n}.mp4", 30, video_id=n)
    write_numbered(tmp_path / "as_long.mp4", 30, video_id=46)
    shutil.copy(tmp_path / "video44.mp4", tmp_path / "renamed.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "video43.mp4")
    paths = ["/web/BSA_1.mp4", "/x/VID42/a.mp4", "/x/VID92.mp4"]
    corpus = known(*paths, *(str(tmp_path / name) for name in ("renamed.mp4", "as_long.mp4", "link.mp4")))
    result = audit(table, load_card("cholec80"), corpus=corpus)
    assert kinds(result) == ["pretraining"]
    assert result.findings[0].share == 0.75
    assert set(result.findings[0].examples) == {
        "/x/VID42/a.mp4",
        str(tmp_path / "renamed.mp4"),
        str(tmp_path / "link.mp4"),
    }
    assert not audit([replace(s, split="train") for s in table], load_card("cholec80"), corpus=corpus).findings
    assert not audit(table[3:], load_card("cholec80"), corpus=corpus).findings
    with pytest.raises(
        DatasetError, match=r"video42.mp4: no such video \(1 of 4 are missing\), so it cannot be compared"
    ):
        audit(table, corpus=corpus)


def test_duplicates_by_any_descriptor() -> None:
    table = [
        Segment(f"{n}.mp4", None, None, "a", f"s{n}", split=split)
        for n, split in enumerate(["train"] * 3 + ["test"] * 3)
    ]
    vectors = np.eye(6)
    assert duplicates(table, vectors) == []
    vectors[4] = [0, 3, 0.1, 0, 0, 0]  # as clip 1, but for a little and for its length
    (found,) = duplicates(table, vectors)
    assert (found.kind, found.share, found.examples) == ("duplicates", 1 / 3, ("4.mp4 like 1.mp4",))
    same_video = [replace(s, video="1.mp4") if n == 4 else s for n, s in enumerate(table)]
    assert duplicates(same_video, vectors) == []
    assert kinds(audit(table, describe=lambda rows: vectors[: len(rows)])) == ["duplicates"]
    with pytest.raises(ValueError, match="6 rows have descriptors of shape"):
        duplicates(table, vectors[:5])


def test_copied_clip_is_found_by_its_thumbnail(tmp_path: Path) -> None:
    """The same pictures in another codec, under another name."""
    square = {"width": 96, "height": 96}
    for number, name in enumerate(("a.mp4", "b.mp4", "c.mp4")):
        write_numbered(tmp_path / name, 50, video_id=number, **square)
    write_numbered(tmp_path / "d.avi", 50, video_id=1, codec="mpeg4", **square)
    splits = {"a.mp4": "train", "b.mp4": "train", "c.mp4": "test", "d.avi": "test"}
    table = [Segment(str(tmp_path / name), None, None, "x", name, split=split) for name, split in splits.items()]
    (found,) = duplicates(table, thumbnails(table))
    assert found.examples == (f"{tmp_path / 'd.avi'} like {tmp_path / 'b.mp4'}",)


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_nothing_is_wrong_with_leak_free_splits(name: str, tmp_path: Path) -> None:
    FIXTURES[name](tmp_path)
    table, card = leak_free(read_dataset(name, tmp_path)), load_card(name)
    result = audit(table, card)
    assert result.findings == ()
    assert set(result.rows) == {"train", "val", "test"}
    assert result.lines()[-1] == "no fault found"
    if not card.several:
        totals = np.sum([list(shares.values()) for shares in result.shares.values()], axis=0)
        np.testing.assert_allclose(totals, 1)


def test_shares_and_majority_baseline() -> None:
    labels = {"train": "aab", "val": "b", "test": "abb"}
    table = [
        Segment(f"{s}{n}", None, None, c, f"{s}{n}", split=s) for s, text in labels.items() for n, c in enumerate(text)
    ]
    result = audit(table)
    assert result.shares == {
        "a": {"train": 2 / 3, "val": 0.0, "test": 1 / 3},
        "b": {"train": 1 / 3, "val": 1.0, "test": 2 / 3},
    }
    assert result.majority == {"val": 0.0, "test": 1 / 3}
    with pytest.raises(ValueError, match="empty"):
        audit([])


def test_classes_that_a_split_lacks_are_said() -> None:
    labels = {"train": "aab", "val": "b", "test": "abc"}
    table = [
        Segment(f"{s}{n}", None, None, c, f"{s}{n}", split=s) for s, text in labels.items() for n, c in enumerate(text)
    ]
    result = audit(table)
    assert result.notes == (
        "train has no row of 1 of 3 classes: c",
        "val has no row of 2 of 3 classes: a, c",
        "1 rows of test are of classes without a training row",
    )
    assert result.lines()[-4:] == [*result.notes, "no fault found"]


def test_file_names_are_no_subjects() -> None:
    """AIxSuture's subject is the student, the release's files tell of clips alone; a table without the column is no better."""
    table = [
        Segment(f"/v/{n}.mp4", None, None, "x", f"{n}.mp4", split=s) for n, s in enumerate(("train", "val", "test"))
    ]
    (finding,) = audit(table).findings
    assert (finding.kind, finding.share) == ("no subjects", 1.0)
    assert "a leak-free split cannot be made from this table; give a column subject: the patient" in str(finding)
    assert "the card says who is: student" in str(audit(table, load_card("aixsuture")).findings[0])
    assert not audit([replace(s, subject=f"p{n}") for n, s in enumerate(table)]).findings
    unknown = audit([replace(s, subject=f"clip {n}") for n, s in enumerate(table)], load_card("surgicalactions160"))
    assert "clip; operations are not published" in unknown.notes[0]


def test_copies_in_two_splits_count_once() -> None:
    """Five clips of no class, of which two are validation and test alike: five, not seven."""
    rows = [Segment(f"Rest/{n}.mp4", None, None, "Bleeding", f"s{n}", split="train") for n in range(3)]
    test = [Segment(f"Rest/{n}.mp4", None, None, "Bleeding", f"s{n}", split="test") for n in (3, 4)]
    findings = audit([*rows, *test, *(replace(s, split="val") for s in test)]).findings
    (mislabelled,) = [finding for finding in findings if finding.kind == "mislabelled negatives"]
    assert mislabelled.detail.startswith(
        "5 clips from folders of negatives are labelled as a class, 100% of 'Bleeding'"
    )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FIXTURES["kvasir_capsule"](tmp_path / "data")
    arguments = ["bench", "audit", "kvasir_capsule", str(tmp_path / "data")]
    assert main([*arguments, "--split", "as-is", "--json", str(tmp_path / "audit.json")]) == 1
    assert "shared videos: 1 of test stand in train too" in capsys.readouterr().out
    assert json.loads((tmp_path / "audit.json").read_text())["findings"][0]["kind"] == "shared videos"
    assert main([*arguments, "--out", str(tmp_path / "table.csv")]) == 0
    assert "no fault found" in capsys.readouterr().out
    assert {s.split for s in read_table(tmp_path / "table.csv")} == {"train", "val", "test"}
    assert main([*arguments, "--split", "as-is", "--table", str(tmp_path / "table.csv")]) == 0
    assert main([*arguments, "--split", "odd"]) == 2
    assert "give leak-free, official, as-is, paper or CENTRE-left-out" in capsys.readouterr().err
    assert main(["bench", "audit", "kvasir_capsule", str(tmp_path / "nothing")]) == 1
    assert "it comes from https://datasets.simula.no" in capsys.readouterr().err
    FIXTURES["multibypass140"](tmp_path / "bypass")
    table = dataset_table("multibypass140", load_card("multibypass140"), tmp_path / "bypass", split="bern-left-out")
    assert {s.centre for s in table if s.split == "test"} == {"bern"}


def test_missing_videos_are_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of which nothing can be compared; what the annotations alone tell is told all the same."""
    rows = [f"{n}.mp4,{'ab'[n % 2]},s{n},{split}" for n, split in enumerate(["train", "train", "val", "test"])]
    (tmp_path / "labels.csv").write_text("\n".join(["video,label,subject,split", *rows]) + "\n")
    command = ["bench", "audit", str(tmp_path / "labels.csv")]
    assert main([*command, str(tmp_path / "nowhere"), "--split", "as-is", "--json", str(tmp_path / "audit.json")]) == 1
    said = capsys.readouterr().out
    assert "missing videos: 4 of 4 videos are not there (train 2, val 1, test 1); correct their paths" in said
    assert "no fault found" not in said
    assert json.loads((tmp_path / "audit.json").read_text())["findings"][0]["share"] == 1
    for n in range(3):
        (tmp_path / f"{n}.mp4").touch()
    assert main([*command, str(tmp_path), "--split", "as-is"]) == 1
    assert (
        f"1 of 4 videos are not there (test 1); correct their paths (relative ones of a table begin at ROOT); {tmp_path}/3.mp4"
        in (capsys.readouterr().out)
    )
    (tmp_path / "3.mp4").touch()
    assert main([*command, str(tmp_path), "--split", "as-is"]) == 0


def test_whose_split_it_is_stands_in_the_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = dict(enumerate(["test", "test", "val", "train", "train", "train"]))
    rows = {n: f"{n}.mp4,{'ab'[n % 2]},s{n}" for n in splits}
    (tmp_path / "own.csv").write_text(
        "\n".join(["video,label,subject,split", *(f"{rows[n]},{splits[n]}" for n in rows)])
    )
    (tmp_path / "none.csv").write_text("\n".join(["video,label,subject", *rows.values()]))
    for n in rows:
        (tmp_path / f"{n}.mp4").touch()
    made = "split: leak-free, made here by subject"
    own = "split: as-is, the table's own"
    for name, split, head in (
        ("own", [], f"{made}; the table's own is --split as-is"),
        ("own", ["--split", "as-is"], own),
        ("none", [], made),
    ):
        main(["bench", "audit", str(tmp_path / f"{name}.csv"), str(tmp_path), *split])
        assert capsys.readouterr().out.splitlines()[0] == head
        task = open_task(str(tmp_path / f"{name}.csv"), tmp_path, split=split[-1] if split else "leak-free")
        assert task.notes[0] == head
    assert "val has no row of 1 of 2 classes: b" in open_task(str(tmp_path / "own.csv"), tmp_path, split="as-is").notes


@pytest.mark.parametrize(("kind", "other"), [(".jpg", ".png"), (".png", ".jpg")])
def test_segments_become_exactly_their_frames(kind: str, other: str, tmp_path: Path) -> None:
    """First and last frame of a segment that ends where the next one begins; folders of pictures as well as files."""
    root = tmp_path / "pictures"
    root.mkdir()
    for number in range(12):
        Image.fromarray(number_picture(7, number, 96, 96)).save(root / f"{number + 1}{kind}", quality=95)
    card = load_card("ldpolypvideo")
    table = [Segment(str(root), 0.08, 0.2, "polyp", "s"), Segment(str(root), 0.2, 0.48, "no_polyp", "s")]
    rows = clip_rows(table, card, tmp_path / "cache")
    options = {"resolution": 96, "device": "cpu", "loader": "cpu", "content_box": False}
    batches = clip_loader(rows, batch=1, training=False, num_frames=2, stride=1, segments=2, **options)
    shown = [(b.labels[0], [read_number(frame.numpy())[1] for frame in b.frames[0]]) for b in batches]
    assert shown == [(0, [2, 3]), (0, [3, 4]), (1, [5, 6]), (1, [10, 11])]
    made = picture_video(root, 25.0, tmp_path / "cache")
    before = made.stat().st_mtime_ns
    assert picture_video(root, 25.0, tmp_path / "cache").stat().st_mtime_ns == before
    Image.fromarray(number_picture(7, 0, 96, 96)).save(root / f"13{other}")
    with pytest.raises(DatasetError, match=r"its pictures are \.jpg, \.png"):
        picture_video(root, 25.0, tmp_path / "cache")
    with pytest.raises(DatasetError, match="needs a card with picture_fps"):
        clip_rows(table)


def test_rows_that_the_official_split_leaves_out_are_counted(tmp_path: Path) -> None:
    """Kvasir-Capsule's halves name eleven of fourteen classes: the rest stands in no split, is shown and takes no part."""
    FIXTURES["kvasir_capsule"](tmp_path)
    path = tmp_path / "official_splits" / "split_0.csv"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("2fc3db47") or "Polyp" not in line]
    path.write_text("\n".join(kept) + "\n")
    card = load_card("kvasir_capsule")
    table = dataset_table("kvasir_capsule", card, tmp_path, split="official")
    assert [(s.subject, s.label) for s in table if not s.split] == [("2fc3db47", "Polyp")]
    result = audit(table, card)
    assert result.rows[""] == 1
    assert "(none)" in result.lines()[0]
    with pytest.raises(DatasetError, match="no official split"):
        official(table)


def test_videos_of_m2cai16_are_known_by_their_names(tmp_path: Path) -> None:
    FIXTURES["m2cai16"](tmp_path)
    card = load_card("m2cai16")
    table = dataset_table("m2cai16", card, tmp_path, split="official")
    names = ["/other/m2cai16w_test_dataset_test_workflow_video_01.mp4", "/other/workflow_video_02.mp4"]
    (finding,) = audit(table, card, corpus=known(*names)).findings
    assert finding.detail == "2 rows of test come from videos of the corpus"
    assert finding.examples == (names[0],)
    validation = [replace(s, video=f"{s.video} as val", subject="workflow_video_02", split="val") for s in table]
    both = audit([*table, *validation], card, corpus=known(*names)).findings
    of_corpus = {f.detail.split()[3]: f.examples for f in both if f.kind == "pretraining"}
    assert of_corpus == {"val": (names[1],), "test": (names[0],)}, "each split's own"
    assert not audit(table, card, corpus=known("/other/workflow_video_41.mp4")).findings


def test_duplicates_by_an_embedder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of a test clip under another name, by the descriptor without weights."""
    for name, identity in (("a", 1), ("b", 170), ("c", 1)):
        write_numbered(tmp_path / f"{name}.mp4", 70, video_id=identity, width=96, height=96)
    splits = dict(zip("abc", ("train", "val", "test"), strict=True))
    rows = ["video,label,subject,split", *(f"{tmp_path / name}.mp4,x,{name},{split}" for name, split in splits.items())]
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    command = [
        "bench",
        "audit",
        "hyperkvasir",
        str(tmp_path),
        "--table",
        str(tmp_path / "table.csv"),
        "--split",
        "as-is",
    ]
    assert main([*command, "--duplicates", "--likeness", "descriptor", "--similar", "0.999"]) == 1
    said = capsys.readouterr().out
    assert "duplicates: 1 of 1 rows of test look like rows of train" in said
    assert main([*command, "--duplicates", "--likeness", "nothing"]) == 2
