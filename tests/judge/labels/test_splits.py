"""Splits: no subject on two sides, validation from training subjects, centres left out, the release's files as they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from trocar.engine.config.error import ConfigError
from trocar.judge.labels.audit_command import split_table
from trocar.judge.labels.dataset import DatasetError, Segment, load_card
from trocar.judge.labels.splits import from_release, leak_free, leave_one_out, official, papers


def made(subjects: int, *, split: str = "", centres: tuple[str, ...] = ("",), per_subject: int = 4) -> list[Segment]:
    return [
        Segment(
            f"{subject}.mp4",
            float(piece),
            piece + 1.0,
            "abc"[(subject + piece) % 3],
            f"subject {subject}",
            centres[subject % len(centres)],
            split=split,
        )
        for subject in range(subjects)
        for piece in range(per_subject)
    ]


def subjects(table: list[Segment]) -> dict[str, set[str]]:
    return {split: {s.subject for s in table if s.split == split} for split in ("train", "val", "test")}


def assert_disjoint(table: list[Segment]) -> None:
    found = subjects(table)
    assert all(found.values())
    assert sum(map(len, found.values())) == len(set().union(*found.values()))


@pytest.mark.parametrize("count", [3, 4, 7, 25])
def test_leak_free_shares_out_subjects(count: int) -> None:
    table = made(count)
    split = leak_free(table)
    assert_disjoint(split)
    assert [replace(segment, split="") for segment in split] == table
    assert split == leak_free(table)
    if count == 25:
        assert {name: len(members) for name, members in subjects(split).items()} == {"train": 16, "val": 4, "test": 5}
        assert split != leak_free(table, seed=1)
        assert len({s.label for s in split if s.split == "test"}) == 3


def test_leak_free_keeps_an_official_split_that_is_clean_and_replaces_one_that_is_not() -> None:
    clean = made(8, split="train") + [replace(s, subject=f"t{s.subject}", split="test") for s in made(4)]
    split = leak_free(clean)
    assert_disjoint(split)
    assert [s for s in split if s.split == "test"] == clean[32:]
    leaking = [replace(s, split="test" if place % 2 else "train") for place, s in enumerate(made(8))]
    assert_disjoint(leak_free(leaking))


def test_official_carves_validation_from_training_subjects_alone() -> None:
    table = made(10, split="train") + [replace(s, subject=f"t{s.subject}", split="test") for s in made(4)]
    split = official(table)
    assert_disjoint(split)
    assert len(subjects(split)["val"]) == 2
    given = [replace(s, split="val") if s.subject == "subject 3" else s for s in table]
    assert official(given) == given
    for wrong in (made(5), made(5, split="train"), [*table, replace(table[0], split="dev")]):
        with pytest.raises(DatasetError, match="no official split"):
            official(wrong)


@pytest.mark.parametrize(("name", "videos", "sizes"), [("cholect50", 50, [35, 5, 10]), ("cholect45", 45, [31, 5, 9])])
def test_triplets_have_the_folds_that_are_published_with_them(name: str, videos: int, sizes: list[int]) -> None:
    """Each video is tested once; the last five training videos, in the order of the folds, validate."""
    card = load_card(name)
    folds = {fold: split for fold, split in card.named_splits.items() if fold.startswith("crossval-")}
    tested = [subject for split in folds.values() for subject in split["test"]]
    assert len(folds) == 5
    assert len(tested) == len({*tested}) == card.videos == videos
    for fold, split in folds.items():
        training = [subject for other in folds if other != fold for subject in folds[other]["test"]]
        assert list(split["val"]) == training[-5:], fold
    table = [Segment(f"{name}.mp4", 0.0, 1.0, "x", name) for name in tested]
    for fold in card.named_splits:
        found = subjects(split_table(table, card, fold))
        assert_disjoint(split_table(table, card, fold))
        assert [len(found[split]) for split in ("train", "val", "test")] == sizes, fold
    if name == "cholect45":
        assert all(
            {*split["test"]} < {*load_card("cholect50").named_splits[fold]["test"]} for fold, split in folds.items()
        )


def test_a_fold_without_its_videos_is_refused() -> None:
    card = load_card("cholect50")
    table = [
        Segment(f"{n}.mp4", 0.0, 1.0, "x", n)
        for fold in range(1, 6)
        for n in card.named_splits[f"crossval-{fold}"]["test"]
    ]
    assert subjects(split_table(table, card, "crossval-3"))["test"] == {
        f"VID{number:02d}" for number in (31, 57, 36, 18, 52, 68, 10, 8, 73, 103)
    }
    assert split_table([row for row in table if row.subject != "VID02"], card, "crossval-3")
    with pytest.raises(DatasetError, match="crossval-3 validates and tests on VID10, of which the table has no row"):
        split_table([row for row in table if row.subject != "VID10"], card, "crossval-3")
    with pytest.raises(
        ConfigError, match=r"'crossval-6' is not accepted; give leak-free, .*crossval-5, rendezvous or CENTRE"
    ):
        split_table(table, card, "crossval-6")
    with pytest.raises(ConfigError, match=r"named_splits\.twice: .* none of them twice"):
        replace(card, named_splits={"twice": {"val": ("a",), "test": ("a", "b")}})


def test_centres_and_subjects_are_left_out_in_turn() -> None:
    folds = leave_one_out(made(12, centres=("bern", "strasbourg")))
    assert list(folds) == ["bern", "strasbourg"]
    for centre, table in folds.items():
        assert_disjoint(table)
        assert {s.centre for s in table if s.split == "test"} == {centre}
        assert centre not in {s.centre for s in table if s.split != "test"}
    assert len(leave_one_out(made(5), "subject")) == 5
    for wrong in (made(5), made(5, centres=("bern",)), made(5, centres=("bern", ""))):
        with pytest.raises(DatasetError, match="column centre"):
            leave_one_out(wrong)


def test_papers_split_by_rule() -> None:
    table = made(3, split="train") + [replace(s, subject="t", split="test") for s in made(1)]
    split = papers(table, load_card("cholec80"))
    assert Counter(s.split for s in split) == {"train": 12, "val": 4, "test": 4}
    assert [replace(s, split="") for s in split if s.split == "val"] == [
        replace(s, split="") for s in split if s.split == "test"
    ]
    with pytest.raises(DatasetError, match=r"71, 20 and 10 videos at random.*follows from no rule"):
        papers(table, load_card("cataract101"))


def test_few_subjects_are_refused() -> None:
    with pytest.raises(DatasetError, match="2 subjects cannot be shared out"):
        leak_free(made(2))
    with pytest.raises(DatasetError, match="1 subject of the split 'train'"):
        official([*made(1, split="train"), replace(made(1)[0], subject="t", split="test")])


@pytest.mark.filterwarnings("error")
def test_rare_classes_do_not_warn() -> None:
    table = made(6)
    assert_disjoint(leak_free([*table, replace(table[0], label="rare", start=9.0)]))


def test_files_of_the_release_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "__DATA_ROOT__/Adenoma/NBI(36).mp4 0\n"
        '"__DATA_ROOT__/Adenoma/NBI (2).mp4" 0\n'
        "__DATA_ROOT__/Hyperplasic/WL.mp4,1\n"
        '"__DATA_ROOT__/Serrated/WL(1).mp4", 2\n'
        "\n"
    )
    (tmp_path / "val.csv").write_text("Adenoma/WL(36).mp4 0\n")
    (tmp_path / "test.csv").write_text("/elsewhere/a b, c/Serrated/NBI(7).mp4 2\n")
    table = from_release(tmp_path, "/data", load_card("colonoscopic"))
    assert [(s.video, s.label, s.subject, s.split) for s in table] == [
        ("/data/Adenoma/NBI(36).mp4", "Adenoma", "Adenoma 36", "train"),
        ("/data/Adenoma/NBI (2).mp4", "Adenoma", "Adenoma 2", "train"),
        ("/data/Hyperplasic/WL.mp4", "Hyperplasic", "Hyperplasic ", "train"),
        ("/data/Serrated/WL(1).mp4", "Serrated", "Serrated 1", "train"),
        ("/data/Adenoma/WL(36).mp4", "Adenoma", "Adenoma 36", "val"),
        ("/elsewhere/a b, c/Serrated/NBI(7).mp4", "Serrated", "Serrated 7", "test"),
    ]
    assert [s.label for s in from_release(tmp_path, "/data")] == ["0", "0", "1", "2", "0", "2"]
    (tmp_path / "test.csv").write_text("lonely.mp4\n")
    with pytest.raises(DatasetError, match=r"test\.csv, line 1: 'lonely\.mp4' is not a path and a label"):
        from_release(tmp_path, "/data")
    (tmp_path / "val.csv").unlink()
    with pytest.raises(DatasetError, match=r"val\.csv: no such file; give a folder with train\.csv"):
        from_release(tmp_path, "/data")
