"""Named ways to split a table: official, the paper's, a card's others, leak-free by subject, one centre or subject left out.

Each returns the table with the column `split` filled anew: train, val or test. Subjects are shared out whole, by scikit-learn's
StratifiedGroupKFold, which keeps the classes' shares alike; what it draws depends on the table and the seed alone.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...loaders.corpus.text_file import unreadable_text
from .dataset import SPLITS, Card, DatasetError, Segment

ROOT_PLACEHOLDER = "__DATA_ROOT__"
FOLDS = 5  # a test split is a fifth of the subjects, a validation split a fifth of the rest


def official(table: Sequence[Segment], *, seed: int = 0, is_partial: bool = False) -> list[Segment]:
    """The official split; validation is carved from the training subjects where there is none.

    is_partial: rows without a split stay as they are and take no part. Raises DatasetError where a row has none otherwise.
    """
    splits = Counter(segment.split for segment in table)
    strange = sorted(set(splits) - {*SPLITS} - ({""} if is_partial else set()))
    if strange or not splits["train"] or not splits["test"]:
        raise DatasetError(
            f"no official split: {dict(splits)} rows, where train and test, and at most val, are expected; "
            "use the leak-free one, or the release's files"
        )
    return list(table) if splits["val"] else _carve(table, "train", "val", seed)


def leak_free(table: Sequence[Segment], *, seed: int = 0) -> list[Segment]:
    """No subject in two splits: the official split where that holds for it, else subjects drawn anew.

    Raises DatasetError where there are fewer than three subjects.
    """
    splits: dict[str, set[str]] = {}
    for segment in table:
        splits.setdefault(segment.subject, set()).add(segment.split)
    found = set().union(*splits.values())
    if {"train", "test"} <= found <= {*SPLITS} and all(len(of_subject) == 1 for of_subject in splits.values()):
        return official(table, seed=seed)
    if len(splits) < len(SPLITS):
        raise DatasetError(f"{len(splits)} subjects cannot be shared out between {len(SPLITS)} splits")
    whole = _carve([replace(segment, split="train") for segment in table], "train", "test", seed)
    return _carve(whole, "train", "val", seed)


def leave_one_out(table: Sequence[Segment], by: str = "centre", *, seed: int = 0) -> dict[str, list[Segment]]:
    """For each centre (or subject) a table of which it is the test split; validation is carved from the other subjects.

    Raises DatasetError where the column holds fewer than two values, or where some are unknown.
    """
    values = sorted({getattr(segment, by) for segment in table})
    if len(values) < 2 or "" in values:
        raise DatasetError(f"the column {by} holds {values}; leaving one out needs two or more, and all of them known")
    folds = {}
    for value in values:
        held_out = [replace(segment, split="test" if getattr(segment, by) == value else "train") for segment in table]
        folds[value] = _carve(held_out, "train", "val", seed)
    return folds


def papers(table: Sequence[Segment], card: Card) -> list[Segment]:
    """The paper's split where a rule gives it. Raises DatasetError where only the release's files tell.

    Where its validation is its test split, the rows are there twice. What it selects on, it has seen: for comparison alone.
    """
    if not card.paper_rule:
        raise DatasetError(
            f"{card.title}: the paper's split ({card.paper_split or 'not described'}) follows from no rule; "
            "give its files: train.csv, val.csv and test.csv"
        )
    if card.paper_rule == "official":
        return official(table, is_partial=card.official_is_partial)
    test = [segment for segment in table if segment.split == "test"]
    train = [segment for segment in table if segment.split == "train"]
    if not train or not test:
        raise DatasetError(
            f"{card.title}: the paper's split takes the official one's train and test, which are missing"
        )
    return [*train, *(replace(segment, split="val") for segment in test), *test]


def named(table: Sequence[Segment], card: Card, name: str) -> list[Segment]:
    """One of the card's named splits. Raises DatasetError where a subject of its validation or test videos has no row."""
    chosen = {subject: split for split, subjects in card.named_splits[name].items() for subject in subjects}
    missing = sorted({*chosen} - {segment.subject for segment in table})
    if missing:
        raise DatasetError(
            f"{card.title}: the split {name} validates and tests on {', '.join(missing)}, of which the table has no row; "
            "without them its scores are not those of that split: fetch them, or take another split"
        )
    return [replace(segment, split=chosen.get(segment.subject, "train")) for segment in table]


def from_release(
    folder: Path, root: str, card: Card | None = None, *, files: Sequence[str] = ("train.csv", "val.csv", "test.csv")
) -> list[Segment]:
    """The table of split files as the release writes them: `<path> <label>` without a header, one file a split.

    root: what stands for __DATA_ROOT__, and before relative paths. card: tells subjects and names of labels by `clip_name`; without
    it, or where a path says neither, the subject is the file and the label its number. A path with spaces is quoted; a comma may
    stand instead of the space. Raises DatasetError, which names file and line.
    """
    table = []
    for name, split in zip(files, SPLITS, strict=True):
        path = folder / name
        try:
            rows = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            mend = f"give a folder with {', '.join(files)}"
            raise DatasetError(unreadable_text(path, error, "split file", mend)) from error
        for line, row in enumerate(rows, start=1):
            if row.strip():
                table.append(_release_row(row.strip(), f"{path}, line {line}", root, card, split))
    return table


def _release_row(row: str, where: str, root: str, card: Card | None, split: str) -> Segment:
    # The last separator is what stands before the label; paths may hold commas and spaces.
    quoted = re.fullmatch(r'("(?:[^"]|"")*")\s*[ ,\t]\s*(\S+)', row)
    plain = re.fullmatch(r"([^\"].*?)\s*[ ,\t]\s*([^\s,]+)", row)
    match = quoted or plain
    if not match:
        raise DatasetError(f"{where}: {row!r} is not a path and a label")
    clip, label = next(csv.reader([match[1]]))[0] if quoted else match[1], match[2]
    clip = clip.replace(ROOT_PLACEHOLDER, root, 1) if clip.startswith(ROOT_PLACEHOLDER) else clip
    video = str(Path(root) / clip)
    named = re.search(card.clip_name, video) if card and card.clip_name else None
    subject = video
    if card and named:
        groups = {name: value or "" for name, value in named.groupdict().items()}
        subject, label = card.clip_subject.format(**groups), groups.get("label") or label
    return Segment(video, None, None, label, subject, source=card.title if card else "", split=split)


def _carve(table: Sequence[Segment], of: str, into: str, seed: int) -> list[Segment]:
    """Moves a fifth of the subjects of one split to another. Raises DatasetError where it has one subject alone."""
    rows = [row for row, segment in enumerate(table) if segment.split == of]
    subjects = [table[row].subject for row in rows]
    number = len(set(subjects))
    if number < 2:
        raise DatasetError(f"{number} subject of the split {of!r} cannot be shared with a split {into!r}")
    labels = np.unique([table[row].label for row in rows], return_inverse=True)[1]
    # Folds are stratified by classes with a row for each of them; the others are counted among the largest.
    counts = np.bincount(labels)
    labels = np.where(counts[labels] < min(FOLDS, number), counts.argmax(), labels)
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    folds = StratifiedGroupKFold(min(FOLDS, number), shuffle=True, random_state=seed)
    drawn = (moved for _, moved in folds.split(np.zeros(len(rows)), labels, subjects))
    moved_rows = {rows[place] for place in next(moved for moved in drawn if 0 < len(moved) < len(rows))}
    return [replace(segment, split=into) if row in moved_rows else segment for row, segment in enumerate(table)]
