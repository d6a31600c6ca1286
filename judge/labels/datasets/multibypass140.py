"""MultiBypass140, phases and steps of 70 gastric bypasses in Bern and 70 in Strasbourg.

Videos lie in {BernBypass70,StrasBypass70}/videos/BBP01.mp4 (at the root or in datasets/MultiBypass140), annotations in
labels/{bern,strasbourg}/labels_by70/BBP01.mp4.json of the repository, in milliseconds. The folds exist in pickled files alone. A
pickle is a program, which is not run here: the names of the videos are read from its text.
"""

from __future__ import annotations

import json
import pickletools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..annotations import file, folder, matching
from ..dataset import DatasetError, Segment

CENTRES = {"bern": "BernBypass70", "strasbourg": "StrasBypass70"}
OUT_OF_BODY = "out_of_body"
FOLD = 0


def read(root: Path) -> list[Segment]:
    """One segment for each span of a phase, without what is out of the body in between; those spans are segments of their own.

    `severe_index` spans, which grade an event, lie over the phases. The split is that of fold 0, "" where its files are missing.
    """
    return _read(root, "phases")


def read_steps(root: Path) -> list[Segment]:
    """The same of steps, which are no phases' parts: one may go on into the next phase."""
    return _read(root, "steps")


def _read(root: Path, kind: str) -> list[Segment]:
    table = []
    videos = folder(root, "datasets/MultiBypass140", ".")
    for centre, name in CENTRES.items():
        labels = folder(root, f"labels/{centre}/labels_by70", f"MultiBypass140/labels/{centre}/labels_by70")
        splits = dict(_fold(labels.parent / "labels_by70_splits" / "labels"))
        for match, annotation in matching(labels, r"(([BS]BP\d+)\.mp4)\.json"):
            video = str(file(videos / name / "videos" / match[1]))
            outside = [span for span in _spans(annotation, "phases") if span[2] == OUT_OF_BODY]
            for start, end, label in _spans(annotation, kind):
                for first, last in _without(start, end, [] if label == OUT_OF_BODY else outside):
                    source = f"MultiBypass140/{name}"
                    times = (first / 1000, last / 1000)
                    table.append(Segment(video, *times, label, match[2], centre, source, splits.get(match[2], "")))
    return table


def _spans(path: Path, kind: str) -> list[tuple[int, int, str]]:
    """(start, end, label) of phases or of steps in milliseconds, in order of time."""
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        spans = [(int(span["start"]), int(span["end"]), str(span["label_name"])) for span in tree[kind]]
    except (ValueError, TypeError, KeyError) as error:
        raise DatasetError(f'{path}: not JSON with "{kind}" of start, end and label_name ({error!r})') from error
    return sorted(spans)


def _without(start: int, end: int, holes: list[tuple[int, int, str]]) -> Iterator[tuple[int, int]]:
    """The pieces of start .. end between the holes, which are in order of time."""
    for first, last, _ in holes:
        if first < end and last > start:
            if first > start:
                yield start, first
            start = last
    if start < end:
        yield start, end


def _fold(parent: Path) -> Iterator[tuple[str, str]]:
    """(video, split) as far as the files of the fold are there."""
    for split in ("train", "val", "test"):
        for name in (f"1fps_100_{FOLD}.pickle", f"1fps_{FOLD}.pickle"):
            path = parent / split / name
            if path.is_file():
                with path.open("rb") as pickled:
                    texts = {value for _, value, _ in pickletools.genops(pickled) if isinstance(value, str)}
                for text in texts:
                    if re.fullmatch(r"[BS]BP\d+", text):
                        yield text, split
                break
