"""CholecT50, action triplets: folders of pictures videos/VID01/000000.png, one a second, and labels/VID01.json.

A picture may have several triplets, or none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..annotations import folder, matching, pictures, runs
from ..dataset import MANY, DatasetError, Segment

VALIDATION, TEST = (5, 18, 36, 65, 74), (92, 96, 103, 110, 111)  # the CholecTriplet challenge's


def read(root: Path) -> list[Segment]:
    """One segment for each run of pictures with the same triplets; the label is their names, joined by "|"."""
    table = []
    videos = folder(root, "videos")
    for match, annotation in matching(folder(root, "labels"), r"(VID(\d+))\.json"):
        video = folder(videos, match[1])
        places = {int(path.stem): place for place, path in enumerate(pictures(video))}
        split = "val" if int(match[2]) in VALIDATION else "test" if int(match[2]) in TEST else "train"
        frames = [(frame, triplets) for frame, triplets in _triplets(annotation) if frame in places]
        if len(frames) != len(places):
            raise DatasetError(
                f"{annotation}: {len(places) - len(frames)} of {len(places)} pictures have no annotation"
            )
        for start, end, triplets in runs([(places[frame], triplets) for frame, triplets in frames], 1):
            # Videos 1 to 80 are those of Cholec80.
            table.append(Segment(str(video), start, end, triplets, match[1], source="CholecT50", split=split))
    return table


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
