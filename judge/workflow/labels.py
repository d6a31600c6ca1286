"""A labelled data set as whole videos: a label for every moment at which there is a vector, from the segments that readers give.

Shapes: T moments of a video, the k-th at k / rate seconds of a player, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...loaders.video.timeline import TOLERANCE_SECONDS
from ..downstream.task import check_videos, digest, note_opening
from ..labels.audit_command import labelled
from ..labels.corpus_overlap import KnownVideo, Overlap, overlap
from ..labels.dataset import SPLITS, Card, DatasetError, Segment, class_names, labels_of
from ..labels.segment_clips import clip_rows
from .choices import MetricChoices

NO_LABEL = "none"  # the class of what lies between segments, where that is asked for


@dataclass(frozen=True)
class DenseVideo:
    """truth: (T,) class numbers, 0 where unknown, or (T, K) bool. known: (T,) whether there is a label."""

    name: str
    subject: str
    truth: NDArray
    known: NDArray[np.bool_]


@dataclass(frozen=True)
class LabelledVideo:
    """path: the file that is decoded; of a folder of pictures the video that was made of it."""

    path: str
    name: str
    subject: str
    segments: tuple[Segment, ...]


class WorkflowTask:
    """Videos with their splits, each whole in one of them; those of the test split have labels once they are opened.

    Raises DatasetError where a split or a video is missing, or a video stands in two splits.
    """

    def __init__(
        self, name: str, card: Card, table: Sequence[Segment], choices: MetricChoices, *, cache: Path | None = None
    ) -> None:
        self.name, self.card, self.several = name, card, card.several
        self._as_class = choices.unlabelled == "a_class" and not card.several
        kept = [segment for segment in table if segment.split]
        found: dict[str, set[str]] = {}
        for segment in kept:
            found.setdefault(segment.video, set()).add(segment.split)
        torn = [video for video, splits in found.items() if len(splits) > 1]
        if torn:
            raise DatasetError(
                f"{name}: {torn[0]} and {len(torn) - 1} more stand in several splits; whole videos are judged: give a split "
                "that keeps them whole, as official or leak-free"
            )
        missing = [split for split in SPLITS if not any(split in splits for splits in found.values())]
        if missing:
            raise DatasetError(f"{name}: no video for {', '.join(missing)} in its table; choose another split")
        check_videos(name, kept)
        names = class_names(kept, card)
        self.classes = (*names, NO_LABEL) if self._as_class else names
        paths = dict(zip((s.video for s in kept), (row[0] for row in clip_rows(kept, card, cache)), strict=True))
        self.videos: dict[str, list[LabelledVideo]] = {split: [] for split in SPLITS}
        for video, splits in found.items():
            rows = tuple(segment for segment in kept if segment.video == video)
            (split,) = splits
            self.videos[split].append(LabelledVideo(paths[video], _name(video), rows[0].subject, rows))
        self.digest = digest([*map(str, kept), str(self.classes)])
        self._cache = cache
        self.left_out = len({segment.video for segment in table} - found.keys())

    def test_overlap(self, known: Sequence[KnownVideo]) -> Overlap:
        """As of `Task`: tells nothing of labels. Raises what `overlap` does."""
        return overlap([s for video in self.videos["test"] for s in video.segments], known, self.card, self._cache)

    def labels(self, split: str, frames: Sequence[int], rate: float, *, folder: Path | None = None) -> list[DenseVideo]:
        """The labels of a split's videos at so many moments of each. folder: of the cell, needed for the test split, which opens
        once the selection stands there; see `note_opening`. Raises DatasetError."""
        if split == "test":
            if folder is None:
                raise DatasetError("the test videos' labels open for a cell's folder alone")
            note_opening(folder)
        return [self._dense(video, count, rate) for video, count in zip(self.videos[split], frames, strict=True)]

    def _dense(self, video: LabelledVideo, frames: int, rate: float) -> DenseVideo:
        number = {name: place for place, name in enumerate(self.classes)}
        pieces = [
            (s.start or 0.0, np.inf if s.end is None else s.end, [number[label] for label in labels_of(s, self.card)])
            for s in video.segments
        ]
        if self.several:
            truth, known = dense_sets(pieces, frames, rate, len(self.classes))
        else:
            truth, known = dense_labels([(a, b, found[0]) for a, b, found in pieces], frames, rate, video.name)
            if self._as_class:
                truth, known = np.where(known, truth, number[NO_LABEL]), np.ones_like(known)
        return DenseVideo(video.name, video.subject, truth, known)


def dense_labels(
    pieces: Sequence[tuple[float, float, int]], frames: int, rate: float, name: str = "video"
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """((T,) class numbers, (T,) whether one holds) at k / rate seconds, of (start, end, class) pieces that are half open.

    Pieces may reach beyond the video, or end before it. Raises DatasetError where two classes hold at one moment.
    """
    truth, known = np.zeros(frames, np.int64), np.zeros(frames, bool)
    for start, end, label in pieces:
        first, last = _moments(start, end, frames, rate)
        twice = known[first:last] & (truth[first:last] != label)
        if twice.any():
            raise DatasetError(
                f"{name}: two labels hold at {(first + int(twice.argmax())) / rate:g} s; correct the annotation, or say that "
                "there may be several by a card"
            )
        truth[first:last], known[first:last] = label, True
    return truth, known


def dense_sets(
    pieces: Sequence[tuple[float, float, Sequence[int]]], frames: int, rate: float, classes: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """((T, K) which classes hold, (T,) whether that is known): a piece may have several, or none."""
    truth, known = np.zeros((frames, classes), bool), np.zeros(frames, bool)
    for start, end, labels in pieces:
        first, last = _moments(start, end, frames, rate)
        truth[first:last, list(labels)] = True
        known[first:last] = True
    return truth, known


def open_workflow_task(
    dataset: str, root: Path, choices: MetricChoices, *, cache: Path | None = None, **of_table: object
) -> WorkflowTask:
    """A data set as whole videos. of_table: of `labelled`. Raises DatasetError and ConfigError."""
    card, rows, _ = labelled(dataset, root, **of_table)  # pyright: ignore[reportArgumentType]
    return WorkflowTask(Path(dataset).stem, card, rows, choices, cache=cache or Path(root) / ".trocar")


def _moments(start: float, end: float, frames: int, rate: float) -> tuple[int, int]:
    """The first moment within a piece, and the first one behind it."""
    first, last = (int(min(max(np.ceil((seconds - TOLERANCE_SECONDS) * rate), 0), frames)) for seconds in (start, end))
    return first, last


def _name(video: str) -> str:
    """As short as is told apart by: of videos that are all called alike, the folder too."""
    path = Path(video)
    return f"{path.parent.name}/{path.stem}" if path.stem == "video_left" else path.stem.removesuffix("_*")
