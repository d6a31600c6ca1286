"""A data set as a task: classes with numbers, a training and a validation split, and a test split that opens once.

What trains and selects is handed `Task.train` and `Task.val`. The test rows come from `Task.open_test` alone, which needs a folder
where the selection is already written down, notes that they were asked for, and refuses when the selection has changed since.

Shapes: N rows of a split, K classes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...engine.config.error import ConfigError
from ...loaders.corpus.changed_settings import changed_settings
from ...loaders.corpus.video_files import VideoFiles
from ...loaders.corpus.whole_file import write_whole
from ..labels.annotations import missing_videos
from ..labels.audit import audit
from ..labels.corpus_overlap import KnownVideo, Overlap, overlap
from ..labels.dataset import SPLITS, Card, DatasetError, Segment, class_names, labels_of
from ..labels.segment_clips import ClipRow, clip_rows
from ..labels.table import NAMED
from .metrics import METRICS, OF_SEVERAL_LABELS, Predictions

SELECTED, OPENED = "selected.json", "test_opened.json"


@dataclass(frozen=True)
class Split:
    """Rows of one split. rows: as the loaders take them, from `videos`. truth: (N,) class numbers, or (N, K) bool. identity: of the
    table."""

    segments: tuple[Segment, ...]
    rows: list[ClipRow]
    videos: VideoFiles
    truth: NDArray
    identity: str

    def predictions(self, scores: NDArray[np.float64]) -> Predictions:
        """scores: (N, K). A row without a start is the whole of its video."""
        starts, ends = (np.array([getattr(s, name) for s in self.segments], float) for name in ("start", "end"))
        subjects, videos = (np.array([getattr(s, name) for s in self.segments]) for name in ("subject", "video"))
        starts, ends = np.nan_to_num(starts), np.where(np.isnan(ends), np.nan_to_num(starts) + 1, ends)
        return Predictions(self.truth, scores, subjects, videos, starts, ends)


class Task:
    """A table with its split, ready to be trained on.

    name: of the data set. table: with splits; rows without one take no part and are counted as `left_out`. cache: for videos of
    folders of pictures. pieces: cut segments into pieces of at most so many seconds, each a row. origin: where the split comes
    from, in words. findings: kinds of faults that the audit found; notes: origin, faults and classes that splits lack, in words.
    missing_classes: those without a row, of each split. Raises DatasetError where a split or a video is missing, or a test clip
    stands in validation too.
    """

    def __init__(
        self,
        name: str,
        card: Card,
        table: Sequence[Segment],
        *,
        cache: Path | None = None,
        pieces: float | None = None,
        origin: str = "",
    ) -> None:
        self.name, self.card = name, card
        self.several, self.main_metric = card.several, card.main_metric
        if self.main_metric not in METRICS or (self.several and self.main_metric not in OF_SEVERAL_LABELS):
            raise DatasetError(
                f"{name}: the metric {self.main_metric!r} of its card is none of {', '.join(METRICS)} that suits"
            )
        counts = Counter(segment.split for segment in table)
        self.left_out = counts[""]
        missing = [split for split in ("train", "val", "test") if not counts[split]]
        if missing:
            raise DatasetError(f"{name}: no rows for {', '.join(missing)} in its table; choose another split")
        kept = [segment for segment in table if segment.split]
        audited = audit(kept, card)
        self.findings = tuple(sorted({finding.kind for finding in audited.findings}))
        self.notes = (*([origin] if origin else []), *map(str, audited.findings), *audited.notes)
        val, test = ({(s.video, *s.seconds()) for s in kept if s.split == split} for split in ("val", "test"))
        if val & test:
            raise DatasetError(
                f"{name}: {len(val & test)} of {len(test)} test clips are validation clips too, so what is selected there has seen "
                "them; take the official split, whose validation is carved from the training subjects, or the leak-free one"
            )
        check_videos(name, kept)
        self.classes = class_names(kept, card)
        found = {split: {label for s in kept if s.split == split for label in labels_of(s, card)} for split in SPLITS}
        self.missing_classes = {
            split: tuple(name for name in self.classes if name not in labels) for split, labels in found.items()
        }
        self._cache, self._pieces = cache, pieces
        self._videos = VideoFiles()  # every file is probed once, whatever asks for its clips
        self.train, self.val = self._split(kept, "train"), self._split(kept, "val")
        self._test = [segment for segment in kept if segment.split == "test"]
        self.digest = digest(
            [self.train.identity, self.val.identity, *(str(astuple(segment)) for segment in self._test), str(pieces)]
        )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def test_overlap(self, known: Sequence[KnownVideo]) -> Overlap:
        """Which test rows come from videos of a corpus. Tells nothing of labels, so the split stays closed. Raises what `overlap`
        does."""
        return overlap(self._test, known, self.card, self._cache)

    def open_test(self, folder: Path) -> Split:
        """The test split, for the selection that stands in `folder`. Raises DatasetError where there is none, or where the split
        was opened for another one."""
        note_opening(folder)
        return self._split(self._test, "test")

    def _split(self, table: Sequence[Segment], split: str) -> Split:
        chosen = [segment for segment in table if segment.split == split]
        if self._pieces:
            chosen = [piece for segment in chosen for piece in pieces_of(segment, self._pieces)]
        number = {name: place for place, name in enumerate(self.classes)}
        labels = [[number[label] for label in labels_of(segment, self.card)] for segment in chosen]
        if self.several:
            truth = np.zeros((len(chosen), self.num_classes), bool)
            for row, found in enumerate(labels):
                truth[row, found] = True
        else:
            truth = np.array([found[0] for found in labels], np.int64)
        rows = clip_rows(chosen, self.card, self._cache)
        return Split(tuple(chosen), rows, self._videos, truth, digest(map(str, rows)))


def note_opening(folder: Path) -> None:
    """Notes that the test split is opened for the selection that stands in `folder`. Raises DatasetError where there is none, or
    where the split was opened for another one."""
    selected, opened = folder / SELECTED, folder / OPENED
    if not selected.exists():
        raise DatasetError(f"{folder}: the test split opens after the selection, and there is no {SELECTED}")
    found = hashlib.sha256(selected.read_bytes()).hexdigest()
    if opened.exists():
        known = json.loads(opened.read_text(encoding="utf-8"))
        if known["selection"] != found:
            raise DatasetError(
                f"{folder}: the test split was opened at {known['time']} for another selection; it is not opened twice. "
                "Start anew in another folder"
            )
    else:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(opened, {"time": now, "selection": found})


def check_videos(name: str, table: Sequence[Segment]) -> None:
    """Raises DatasetError where videos are missing, of whatever split: in training another row would take a missing one's place."""
    missing = missing_videos(table)
    if not missing:
        return
    told = []
    for split, videos in ((split, missing[split]) for split in SPLITS if split in missing):
        more = f" and {len(videos) - NAMED} more" if len(videos) > NAMED else ""
        told.append(f"\n  {split}, {len(videos)}: {', '.join(videos[:NAMED])}{more}")
    count = len(set().union(*missing.values()))
    raise DatasetError(
        f"{name}: {count} videos are missing:{''.join(told)}\ncorrect their paths (relative ones of a table begin at ROOT) "
        "or leave their rows out"
    )


def pieces_of(segment: Segment, seconds: float) -> list[Segment]:
    """A segment as consecutive pieces of equal length, at most `seconds` long; as it is where its ends are not known."""
    if segment.start is None or segment.end is None:
        return [segment]
    count = max(int(np.ceil((segment.end - segment.start) / seconds - 1e-9)), 1)
    edges = np.linspace(segment.start, segment.end, count + 1).tolist()
    return [replace(segment, start=start, end=end) for start, end in pairwise(edges)]


def digest(texts: Iterable[str]) -> str:
    """Of texts in their order."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode(errors="surrogateescape") + b"\0")
    return found.hexdigest()


def write_json(path: Path, value: object) -> None:
    """Whole or not at all."""
    text = json.dumps(value, indent=1)
    write_whole(path, lambda target: target.write_text(text, encoding="utf-8"))


def claim(path: Path, made_of: dict[str, Any], what: str) -> None:
    """Makes a folder the caller's: `path` in it says of what it is made. Raises ConfigError where it holds `what` of another, with
    each key that differs, as it is there and as it is now."""
    made_of = json.loads(json.dumps(made_of))
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if known is None:
        write_json(path, made_of)
    elif known != made_of:
        changed = "; ".join(changed_settings(known, made_of))
        raise ConfigError(
            f"{path.parent}: holds {what} of other settings ({changed}); choose another folder, or these settings"
        )
