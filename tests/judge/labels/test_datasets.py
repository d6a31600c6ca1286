"""Readers of the benchmarks: the original layout in, the table out; what is missing or wrong is named, with where to get it."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import astuple
from pathlib import Path

import av
import pytest
from clips import read_number
from dataset_fixtures import FIXTURES

from trocar.engine.config.error import ConfigError
from trocar.judge.labels.annotations import is_there, pictures
from trocar.judge.labels.dataset import CARDS, DatasetError, Segment, dataset_names, load_card, read_dataset, table_card
from trocar.judge.labels.segment_clips import clip_rows
from trocar.judge.labels.table import read_table, write_table


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The fixtures, each written once, when first asked for."""

    class Made(dict):
        def __missing__(self, name: str) -> Path:
            self[name] = tmp_path_factory.mktemp(name)
            FIXTURES[name](self[name])
            return self[name]

    return Made()


def nine_digits(row: tuple) -> list:
    return [round(value, 9) if isinstance(value, float) else value for value in row]


def test_every_reader_has_a_card_and_a_fixture() -> None:
    assert dataset_names() == sorted(path.stem for path in CARDS.glob("*.yaml")) == sorted(FIXTURES)
    assert len(dataset_names()) == 22


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_table_is_the_one_written_by_hand(name: str, tmp_path: Path) -> None:
    expected = FIXTURES[name](tmp_path)
    table = read_dataset(name, tmp_path)
    found = [(Path(segment.video).relative_to(tmp_path).as_posix(), *astuple(segment)[1:]) for segment in table]
    assert [nine_digits(row) for row in found] == [nine_digits(row) for row in expected]
    assert all(is_there(segment.video) for segment in table)


@pytest.mark.parametrize("name", sorted(FIXTURES))
def test_empty_folder_names_what_is_missing_and_where_it_comes_from(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        read_dataset(name, tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert load_card(name).source in message
    with pytest.raises(DatasetError, match="no such folder"):
        read_dataset(name, tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("cholec80", "videos/video02.mp4", r"no file .*video02\.mp4"),
        ("cholec80", "phase_annotations", "no folder phase_annotations"),
        ("m2cai16", "test_dataset", "no folder test_dataset"),
        ("autolaparo", "videos/11.mp4", r"no file .*11\.mp4"),
        ("multibypass140", "labels/strasbourg", "no folder labels/strasbourg/labels_by70"),
        ("multibypass140", "datasets/MultiBypass140/BernBypass70/videos/BBP02.mp4", r"no file .*BBP02\.mp4"),
        ("cataract101", "phases.csv", r"no file .*phases\.csv"),
        (
            "cataract1k",
            "annotations/case_4687/case_4687_annotations_phases.csv",
            r"no file .*phases\.csv or .*ions\.csv",
        ),
        ("cat21", "case_02_training.mp4", r"no file .*case_02_training\.mp4"),
        ("cholect45", "data/VID02", "no folder VID02"),
        ("cholect45", "dict/triplet.txt", r"no file .*dict/triplet\.txt"),
        ("cholect50", "videos/VID02", "no folder VID02"),
        ("cholect50", "labels", "no folder labels"),
        ("endoscapes", "val/annotation_ds_coco.json", r"no file .*val/annotation_ds_coco\.json"),
        ("endoscapes", "test/162_1050.jpg", r"162_1050\.jpg is annotated and not beside it"),
        ("sar_rarp50", "train2", "no folder train2"),
        ("sar_rarp50", "test/video_41/action_discrete.txt", None),
        ("jigsaws", "Suturing/video/Suturing_C001_capture2.avi", r"no file .*Suturing_C001_capture2\.avi"),
        ("aixsuture", "OSATS.xlsx", r"no file .*OSATS\.xlsx"),
        ("aixsuture", "Z49D.mp4", r"no file .*Z49D\.mp4"),
        ("hyperkvasir", "labeled-videos/upper-gi-tract", "no folder upper-gi-tract"),
        ("kvasir_capsule", "official_splits/split_1.csv", r"no file .*split_1\.csv"),
        ("kvasir_capsule", "labelled_videos/131368cc.mp4", r"no file .*131368cc\.mp4 or"),
        ("lapgyn", "Bleeding/Test/Rest", "no folder Rest"),
        ("ldpolypvideo", "Test/Annotations/101/7.txt", r"no file .*7\.txt"),
        ("colonoscopic", "Serrated", "no folder Serrated"),
        ("pitvis", "video_03.mp4", r"no file .*video_03\.mp4"),
    ],
)
def test_missing_part_is_named(
    made: dict[str, Path], name: str, missing: str, message: str | None, tmp_path: Path
) -> None:
    root = shutil.copytree(made[name], tmp_path / "copy")
    if (root / missing).is_dir():
        shutil.rmtree(root / missing)
    else:
        (root / missing).unlink()
    if message is None:  # the part is not needed
        assert len(read_dataset(name, root)) == len(read_dataset(name, made[name]))
        return
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(name, root)
    assert load_card(name).source in str(caught.value)


@pytest.mark.parametrize(
    ("name", "path", "old", "new", "message"),
    [
        (
            "cholec80",
            "phase_annotations/video01-phase.txt",
            "Frame\tPhase\n",
            "",
            "its first line is .*not Frame Phase",
        ),
        ("cholec80", "phase_annotations/video01-phase.txt", "\n7\t", "\n8\t", "frame 8 stands where 7 is expected"),
        ("cholec80", "phase_annotations/video01-phase.txt", "\n0\t", "\n2\t", "the first frame is 2"),
        ("cholec80", "phase_annotations/video01-phase.txt", "Preparation", "Phase", "the label 'Phase' is none of"),
        ("autolaparo", "labels/label_01.txt", "  7", "  8", r"phase 8 is not in 1 \.\. 7"),
        ("autolaparo", "labels/label_01.txt", "  7", "  x", "'x' stands where a whole number"),
        ("multibypass140", "labels/bern/labels_by70/BBP01.mp4.json", '"phases"', '"fases"', "not JSON with"),
        ("cataract101", "annotations.csv", "270;25;1", "999;25;1", r"no row for video 999"),
        ("cataract101", "videos.csv", "270;100", "270;40", "ends at frame 40"),
        ("cataract101", "phases.csv", "10;Meaning 10\n", "", "not 1 to 10"),
        (
            "cataract1k",
            "annotations/case_5100/case_5100_annotations_phases.csv",
            ",0.0,1.0",
            ",2.0,1.0",
            "before it starts",
        ),
        (
            "cataract1k",
            "annotations/case_5100/case_5100_annotations_phases.csv",
            "endSec",
            "end",
            "no column endSec among",
        ),
        (
            "endoscapes",
            "val/annotation_ds_coco.json",
            "0.0, 0.3333333333333333]",
            "0.0]",
            "not a share for each of C1, C2, C3",
        ),
        ("sar_rarp50", "test/video_41/action_continues.txt", "119 3", "119 8", r"action 8 is not in 0 \.\. 7"),
        ("jigsaws", "Suturing/transcriptions/Suturing_B001.txt", " G1 ", "", "not three columns"),
        ("kvasir_capsule", "metadata.csv", "finding_class", "class", "no column finding_class among"),
        ("ldpolypvideo", "Test/Annotations/101/7.txt", "0", "", "not the number of polyps"),
        ("pitvis", "annotations_01.csv", "1,2,1", "1,2,0", r"step 0 is neither -1 nor in 1 \.\. 14"),
    ],
)
def test_wrong_annotation_is_named(
    made: dict[str, Path], name: str, path: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    root = shutil.copytree(made[name], tmp_path / "copy")
    content = (root / path).read_text(encoding="utf-8")
    assert old in content
    (root / path).write_text(content.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DatasetError, match=message) as caught:
        read_dataset(name, root)
    assert str(tmp_path) in str(caught.value)


def test_folds_are_read_without_running_the_pickle(made: dict[str, Path], tmp_path: Path) -> None:
    root = shutil.copytree(made["multibypass140"], tmp_path / "copy")
    witness = tmp_path / "witness"

    class Command:
        def __reduce__(self) -> tuple:
            return Path.touch, (witness,)

    pickled = root / "labels/bern/labels_by70_splits/labels/test/1fps_0.pickle"
    pickled.write_bytes(pickle.dumps({"BBP04": [Command()]}))
    assert (
        next(segment.split for segment in read_dataset("multibypass140", root) if segment.subject == "BBP04") == "test"
    )
    assert not witness.exists()
    shutil.rmtree(root / "labels/bern/labels_by70_splits")
    assert {s.split for s in read_dataset("multibypass140", root) if s.centre == "bern"} == {""}


def test_other_layouts_are_read_too(made: dict[str, Path], tmp_path: Path) -> None:
    """cat-21 in two folders and without the parts in its names; MultiBypass140 beside its repository's labels."""
    for case in ("01", "02", "18"):
        (source,) = made["cat21"].glob(f"case_{case}_*.mp4")
        for path, folder in ((source, "videos"), (source.with_suffix(".csv"), "labels")):
            (tmp_path / folder).mkdir(exist_ok=True)
            shutil.copy(path, tmp_path / folder / f"case_{case}{path.suffix}")
    table = read_dataset("cat21", tmp_path)
    known = read_dataset("cat21", made["cat21"])
    assert [astuple(segment)[1:] for segment in table] == [astuple(segment)[1:] for segment in known]
    root = shutil.copytree(made["multibypass140"], tmp_path / "bypass")
    for folder in (root / "datasets/MultiBypass140").iterdir():
        folder.rename(root / folder.name)
    shutil.rmtree(root / "datasets")
    assert len(read_dataset("multibypass140", root)) == 18


def test_tables_round_trip(tmp_path: Path) -> None:
    table = [
        Segment("a b.mp4", None, None, "x,y", "s 1"),
        Segment("c.mp4", 0.5, 1.25, "z|x", "s2", "Bern", "Set/part", "val"),
    ]
    write_table(tmp_path / "table.csv", table)
    assert read_table(tmp_path / "table.csv") == table
    (tmp_path / "short.csv").write_text("video,label\na.mp4,x\nb.mp4\n")
    with pytest.raises(DatasetError, match="line 3"):
        read_table(tmp_path / "short.csv")
    (tmp_path / "odd.csv").write_text("video,labels\na.mp4,x\n")
    with pytest.raises(DatasetError, match="video and label are needed"):
        read_table(tmp_path / "odd.csv")
    (tmp_path / "text.csv").write_text("video,label,start\na.mp4,x,soon\n")
    with pytest.raises(DatasetError, match="line 2: start and end are seconds"):
        read_table(tmp_path / "text.csv")
    for split in ("Test", "valid"):  # such a row would be in no split, and not be missed
        (tmp_path / "split.csv").write_text(f"video,label,split\na.mp4,x,train\nb.mp4,y,{split}\n")
        with pytest.raises(DatasetError, match=f"split.csv, line 3: split is '{split}'; give one of train, val, test"):
            read_table(tmp_path / "split.csv")
    (tmp_path / "empty.csv").write_text("video,label\n")
    with pytest.raises(DatasetError, match=r"empty\.csv: holds no row below its header"):
        read_table(tmp_path / "empty.csv")


def test_a_table_of_one_class_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("video,label\na.mp4,cut\nb.mp4,cut\n")
    with pytest.raises(
        DatasetError, match=r"one\.csv: its column label holds 'cut' alone; two classes or more are needed"
    ):
        table_card(tmp_path / "one.csv", read_table(tmp_path / "one.csv"))


def test_unknown_names_and_bad_cards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such data set; there are aixsuture"):
        load_card("cholec81")
    card = (CARDS / "pitvis.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(card.replace("  - dural_sealant", "  - durotomy"))
    with pytest.raises(ConfigError, match=r"odd\.yaml: classes: .*every label once"):
        load_card(tmp_path / "odd.yaml")
    (tmp_path / "odd.yaml").write_text(card + "colour: red\n")
    with pytest.raises(ConfigError, match=r"odd\.yaml: colour: unknown key"):
        load_card(tmp_path / "odd.yaml")
    (tmp_path / "odd.yaml").write_text(card)
    with pytest.raises(ConfigError, match=r"odd\.py: no such file"):
        read_dataset(tmp_path / "odd.yaml", tmp_path)


def test_pictures_of_one_video_among_those_of_others(made: dict[str, Path], tmp_path: Path) -> None:
    """By a pattern, in the order of frame numbers; what no picture fits is not there."""
    video = str(made["endoscapes"] / "train/2_*.jpg")
    assert [path.name for path in pictures(Path(video))[:3]] == ["2_975.jpg", "2_1000.jpg", "2_1025.jpg"]
    assert len(pictures(Path(video))) == 9
    assert is_there(video)
    assert not is_there(video.replace("2_", "3_"))
    rows = [segment for segment in read_dataset("endoscapes", made["endoscapes"]) if segment.video == video]
    ((path, start, _, _), *_) = clip_rows(rows[1:], load_card("endoscapes"), tmp_path)
    assert (Path(path).parent, start) == (tmp_path, 3.0)
    with av.open(path) as container:
        shown = [read_number(frame.to_ndarray(format="rgb24"))[1] for frame in container.decode(video=0)]
    assert shown == list(range(9))
