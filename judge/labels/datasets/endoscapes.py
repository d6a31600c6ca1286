"""Endoscapes (2023): the critical view of safety in {train,val,test}/VIDEO_FRAME.jpg, one picture a second.

annotation_ds_coco.json in each folder has the pictures that three surgeons judged, one in five seconds: `ds` is for each
criterion the share of them who see it fulfilled. As in the authors' evaluation a criterion holds where most do. The others have no
label: what annotation_coco_vid.json says of them is the label of the last judged one. Frame numbers are those of the original
videos; pictures of one video follow each other by them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ..annotations import file, folder, natural, runs
from ..dataset import MANY, SPLITS, DatasetError, Segment

CRITERIA = ("C1", "C2", "C3")
ANNOTATION = "annotation_ds_coco.json"


def read(root: Path) -> list[Segment]:
    """One segment for each run of neighbouring judged pictures with the same criteria; the label is their names, joined by "|"."""
    table = []
    for split in SPLITS:
        parent = folder(root, split)
        places: dict[str, dict[str, int]] = {}
        for name in sorted((path.name for path in parent.iterdir()), key=natural):
            if match := re.fullmatch(r"(\d+)_\d+\.jpg", name):
                of_video = places.setdefault(match[1], {})
                of_video[name] = len(of_video)
        for video, judged in _judged(file(parent / ANNOTATION), places).items():
            for start, end, label in runs(judged, 1):
                path = str(parent / f"{video}_*.jpg")
                table.append(Segment(path, start, end, label, video, source="Endoscapes", split=split))
    return table


def _judged(path: Path, places: dict[str, dict[str, int]]) -> dict[str, list[tuple[int, str]]]:
    """{video: [(place among its pictures, criteria that hold)]}, in order. places: {video: {picture: its place}}."""
    found: dict[str, list[tuple[int, str]]] = {}
    try:
        tree: Any = json.loads(path.read_text(encoding="utf-8"))
        for image in tree["images"]:
            name, shares = str(image["file_name"]), [float(share) for share in image["ds"]]
            if len(shares) != len(CRITERIA) or not all(0 <= share <= 1 for share in shares):
                raise DatasetError(f"{path}: {name}: ds is {shares}, not a share for each of {', '.join(CRITERIA)}")
            video = name.partition("_")[0]
            if name not in places.get(video, {}):
                raise DatasetError(f"{path}: {name} is annotated and not beside it")
            if image.get("is_ds_keyframe", True):
                label = MANY.join(criterion for criterion, share in zip(CRITERIA, shares, strict=True) if share > 0.5)
                found.setdefault(video, []).append((places[video][name], label))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f'{path}: not JSON with "images" that have "file_name" and "ds" ({error!r})') from error
    return {video: sorted(judged) for video, judged in sorted(found.items(), key=lambda item: natural(item[0]))}
