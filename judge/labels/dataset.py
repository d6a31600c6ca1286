"""A labelled benchmark: its table, its card, and the reader that makes one of the other.

A reader is one function, `read(root)` in `judge/labels/datasets/NAME.py`: the folder as downloaded -> a table. A card is one
YAML, `configs/datasets/NAME.yaml`: what the labels are, whose data it is; it may name a function of another reader. A table is a
list of `Segment`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ...engine.config.error import ConfigError, require
from ...engine.config.file import CONFIGS, load_settings
from ...loaders.corpus.text_file import open_table
from ...loaders.video.error import TrocarError

CARDS = CONFIGS / "datasets"
SPLITS = ("train", "val", "test")
TABLE_SUBJECT = "as the table says"  # of a table without a card
MANY = "|"  # between the labels of one segment, where it may have several


class DatasetError(TrocarError):
    """A data set that is not as its reader expects; the message names what was looked for and where to get it."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A labelled piece of a video.

    video: path of a file, of a folder of numbered pictures, or a pattern of names of pictures (train/1_*.jpg). start, end: seconds
    as a player shows them, to the first frame behind the piece; None: the video's own. label: a class by its name; several are
    joined by "|", none is "". subject: what must not stand in two splits: the patient where known, else as the card says. centre:
    hospital, "" where unknown. source: the data set, and the part of it. split: the official one, train, val or test; "" where
    there is none.
    """

    video: str
    start: float | None
    end: float | None
    label: str
    subject: str
    centre: str = ""
    source: str = ""
    split: str = ""

    def seconds(self) -> tuple[float | None, float | None]:
        """(start, end) to the millisecond, for comparisons."""
        return tuple(None if moment is None else round(moment, 3) for moment in (self.start, self.end))  # pyright: ignore[reportReturnType]


@dataclass(frozen=True)
class Card:
    """What is known of a data set beside its files.

    title: its name. domain: kind of surgery, by which results are averaged. classes: the labels that are evaluated, in the order of
    their numbers; empty: those that occur, sorted. num_classes: how many there are. ignored: labels that are no class, left out on
    purpose. others: what to do with a label that is neither: "refuse" it, or "drop" it where the data set has many more. several:
    segments may have several labels, or none. subject: what the column holds. videos: how many there are. official_split,
    paper_split: in words. named_splits: others that are published, by name: the subjects of val and of test; all others train.
    official_is_partial: the official split leaves rows out on purpose; they take no part in it. paper_rule:
    how the paper's split follows from the official one: "official", "validation_is_test", or "" where only the release's files
    tell. main_metric: by which it is ranked. clip_name: regular expression on the paths of the paper's clips, with a group `label`
    where they tell it; clip_subject: the subject, made of its groups. corpus_name: one on the names that videos of this data set
    have in others, up to the number `corpus_last`, and corpus_subject: the subject, made of `number` and of what other groups there
    are. picture_fps: rate of folders of pictures. reader: FILE:FUNCTION beside the other readers, where it is not `read` in a file
    of the card's own name. licence, source, citation: as the publisher states them; where that was not seen,
    the text says who states it, and "not confirmed".
    """

    title: str
    domain: Literal["endoscopy", "laparoscopy", "cataract", "robotic", "open", "other"]
    task: str
    num_classes: int
    subject: str
    videos: int
    main_metric: str
    licence: str
    source: str
    citation: str
    classes: tuple[str, ...] = ()
    official_split: str = ""
    official_is_partial: bool = False
    paper_split: str = ""
    paper_rule: Literal["", "official", "validation_is_test"] = ""
    named_splits: dict[str, dict[str, tuple[str, ...]]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    others: Literal["refuse", "drop"] = "refuse"
    several: bool = False
    clip_name: str = ""
    clip_subject: str = "{subject}"
    corpus_name: str = ""
    corpus_subject: str = ""
    corpus_last: int | None = None
    picture_fps: float | None = None
    reader: str = ""

    def __post_init__(self) -> None:
        repeated = [name for name, count in Counter((*self.classes, *self.ignored)).items() if count > 1]
        require(not repeated, "classes", repeated, "every label once, in classes or in ignored")
        require(self.num_classes > 1, "num_classes", self.num_classes, "two or more")
        accepted = f"none, or num_classes ({self.num_classes}) of them"
        require(len(self.classes) in (0, self.num_classes), "classes", self.classes, accepted)
        for name, split in self.named_splits.items():
            chosen = [subject for subjects in split.values() for subject in subjects]
            accepted = "the subjects of val and of test, none of them twice"
            require(
                {*split} == {"val", "test"} and len({*chosen}) == len(chosen), f"named_splits.{name}", split, accepted
            )
        require(self.picture_fps is None or self.picture_fps > 0, "picture_fps", self.picture_fps, "a positive rate")


def dataset_names() -> list[str]:
    """The data sets that ship with trocar."""
    return sorted(path.stem for path in CARDS.glob("*.yaml"))


def load_card(name: str | Path) -> Card:
    """The card of a data set: one of `dataset_names()`, or the path of a YAML. Raises ConfigError."""
    return load_settings(Card, _card_path(name))


def table_card(path: Path, table: Sequence[Segment]) -> Card:
    """A card for a table that has none: its labels are the classes, and "|" in one of them, or a row that was let have none, says
    that rows may have several. Raises DatasetError where they are fewer than two."""
    several = any(MANY in segment.label or not segment.label for segment in table)
    labels = {label for s in table for label in (s.label.split(MANY) if several else [s.label]) if label}
    if len(labels) < 2:
        raise DatasetError(
            f"{path}: its column label holds {' and '.join(map(repr, labels)) or 'nothing'} alone; two classes or more are needed"
        )
    return Card(
        path.stem,
        "other",
        "labels of a table",
        num_classes=len(labels),
        subject=TABLE_SUBJECT,
        videos=len({segment.video for segment in table}),
        main_metric="mean_average_precision" if several else "balanced_accuracy",
        licence="not stated",
        source=str(path),
        citation="not stated",
        several=several,
    )


def check_dataset(dataset: str, root: str | os.PathLike[str]) -> None:
    """Whether a data set can be in `root`, before it is read. dataset: one of `dataset_names()`, the path of a card, or a table's
    (.csv). Raises DatasetError and ConfigError."""
    if dataset.endswith(".csv"):
        with open_table(dataset, DatasetError):
            return
    card, folder = load_card(dataset), Path(root).absolute()
    if not folder.is_dir():
        raise DatasetError(f"{card.title}: {folder}: no such folder; it comes from {card.source}")


def read_dataset(name: str | Path, root: str | os.PathLike[str]) -> list[Segment]:
    """The table of the data set `name`, which lies in `root` as downloaded.

    name: one of `dataset_names()`, or the path of a card whose reader, a .py of the same name, lies beside it. Raises DatasetError
    where a part is missing or not as expected, ConfigError where there is no such data set.
    """
    check_dataset(os.fspath(name), root)
    card, folder = load_card(name), Path(root).absolute()
    read = _load_reader(name, card)
    try:
        table = read(folder)
        if not table:
            raise DatasetError(f"{folder}: nothing labelled was found")
        return evaluated(table, card)
    except DatasetError as error:
        raise DatasetError(f"{card.title}: {error}; it comes from {card.source}") from error


def evaluated(table: Iterable[Segment], card: Card) -> list[Segment]:
    """The segments whose labels are classes. Raises DatasetError on a label that the card does not know, unless it drops others."""
    table = list(table)
    known, kept = {*class_names(table, card)}, []
    for segment in table:
        labels = labels_of(segment, card)
        strange = [label for label in labels if label not in known and label not in card.ignored]
        if strange and card.others == "refuse":
            raise DatasetError(
                f"{segment.video}: the label {strange[0]!r} is none of {', '.join((*card.classes, *card.ignored))}; "
                "correct the annotation, or the card"
            )
        if all(label in known for label in labels):
            kept.append(segment)
    return kept


def class_names(table: Iterable[Segment], card: Card) -> tuple[str, ...]:
    """The classes in the order of their numbers. Raises DatasetError where more labels occur than there are classes."""
    if card.classes:
        return card.classes
    found = tuple(sorted({label for segment in table for label in labels_of(segment, card)} - {*card.ignored}))
    if len(found) > card.num_classes:
        raise DatasetError(f"{len(found)} labels occur, but there are {card.num_classes} classes: {', '.join(found)}")
    return found


def labels_of(segment: Segment, card: Card) -> list[str]:
    """The names of a segment's labels."""
    if not card.several:
        return [segment.label]
    return segment.label.split(MANY) if segment.label else []


def _card_path(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        return path
    if str(name) not in dataset_names():
        raise ConfigError(f"{name}: no such data set; there are {', '.join(dataset_names())}, or give a card's path")
    return CARDS / f"{name}.yaml"


def _load_reader(name: str | Path, card: Card) -> Callable[[Path], list[Segment]]:
    path = _card_path(name)
    file, _, function = card.reader.partition(":")
    stem, function = file or path.stem, function or "read"
    if path.parent == CARDS:
        return getattr(importlib.import_module(f".datasets.{stem}", __package__), function)
    # A reader outside of trocar is loaded as if it stood among the others, so that it imports what they import.
    reader, module_name = path.with_name(f"{stem}.py"), f"{__package__}.datasets.{stem}"
    spec = importlib.util.spec_from_file_location(module_name, reader)
    if not reader.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{reader}: no such file; a card's reader lies beside it under the same name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # where dataclasses look it up
    spec.loader.exec_module(module)
    if not hasattr(module, function):
        raise ConfigError(f"{reader}: no function {function} in it, which {path} names as its reader")
    return getattr(module, function)
