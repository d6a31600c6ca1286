"""CholecT50, action triplets: folders of pictures videos/VID01/000000.png, one a second, and labels/VID01.json; CholecT45, 45 of
its videos as they were published first: data/VID01/000000.png, triplet/VID01.txt and the names in dict/triplet.txt.

A picture may have several triplets, or none.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..annotations import folder, lines, matching, number, pictures, runs
from ..dataset import MANY, DatasetError, Segment

VALIDATION, TEST = (5, 18, 36, 65, 74), (92, 96, 103, 110, 111)  # the CholecTriplet challenge's


def read(root: Path) -> list[Segment]:
    """One segment for each run of pictures with the same triplets; the label is their names, joined by "|"."""
    table = []
    for match, annotation in matching(folder(root, "labels"), r"(VID(\d+))\.json"):
        split = "val" if int(match[2]) in VALIDATION else "test" if int(match[2]) in TEST else "train"
        found = Segment("", None, None, "", match[1], source="CholecT50", split=split)
        table += _segments(folder(root, "videos") / match[1], annotation, _triplets(annotation), found)
    return table


def read_cholect45(root: Path) -> list[Segment]:
    """The same of CholecT45, which has no split but its folds (the card's `named_splits`)."""
    names_file, names = root / "dict" / "triplet.txt", {}
    for row in lines(names_file, separator=":"):
        if len(row) != 2:
            raise DatasetError(f"{names_file}: the row {row} is not number:instrument,verb,target")
        names[number(row[0], names_file)] = row[1]
    table = []
    for match, annotation in matching(folder(root, "triplet"), r"(VID\d+)\.txt"):
        frames = []
        for row in lines(annotation, separator=","):
            frame, *shown = (number(value, annotation) for value in row)
            if len(shown) != len(names) or not {*shown} <= {0, 1}:
                raise DatasetError(f"{annotation}: the row of frame {frame} is not 0 or 1 for {len(names)} triplets")
            frames.append((frame, MANY.join(names[triplet] for triplet, there in enumerate(shown) if there)))
        found = Segment("", None, None, "", match[1], source="CholecT45")
        table += _segments(folder(root, "data") / match[1], annotation, frames, found)
    return table


def _segments(video: Path, annotation: Path, frames: list[tuple[int, str]], found: Segment) -> list[Segment]:
    """frames: (picture's number, triplets), in order. found: what all segments of a video have alike."""
    places = {int(path.stem): place for place, path in enumerate(pictures(folder(video.parent, video.name)))}
    kept = [(places[frame], triplets) for frame, triplets in frames if frame in places]
    if len(kept) != len(places):
        raise DatasetError(f"{annotation}: {len(places) - len(kept)} of {len(places)} pictures have no annotation")
    return [replace(found, video=str(video), start=start, end=end, label=label) for start, end, label in runs(kept, 1)]


def _triplets(path: Path) -> list[tuple[int, str]]:
    """(picture's number, its triplets), in order. The first value of an instance is its triplet's number, -1 for none."""
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        names = tree["categories"]["triplet"]
        found = []
        for frame, instances in sorted(tree["annotations"].items(), key=lambda item: int(item[0])):
            numbers = sorted({int(instance[0]) for instance in instances if int(instance[0]) >= 0})
            found.append((int(frame), MANY.join(names[str(triplet)] for triplet in numbers)))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DatasetError(f'{path}: not JSON with "categories" and "annotations" of triplets ({error!r})') from error
    return found
