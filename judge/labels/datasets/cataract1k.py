"""Cataract-1K, phases: videos/case_4687.mp4, annotations/case_4687/case_4687_annotations_phases.csv.

In older copies the table is called case_4687_annotations.csv. Times are taken from its columns sec and endSec: the frame rates
beside them are wrong for some videos (240 instead of 60).
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, folder, natural, records, seconds
from ..dataset import DatasetError, Segment


def read(root: Path) -> list[Segment]:
    """One segment for each row that has a length (some have none). What lies between the rows is idle and has no label."""
    table = []
    videos, annotations = folder(root, "videos"), folder(root, "annotations")
    for parent in sorted(annotations.glob("case_*"), key=lambda path: natural(path.name)):
        case = parent.name
        path = file(parent / f"{case}_annotations_phases.csv", parent / f"{case}_annotations.csv")
        video = str(file(videos / f"{case}.mp4"))
        for row in records(path, "comment", "sec", "endSec"):
            start, end = seconds(row["sec"], path), seconds(row["endSec"], path)
            if end < start:
                raise DatasetError(f"{path}: {row['comment']} ends at {end:g} s, before it starts at {start:g} s")
            if end > start:
                table.append(Segment(video, start, end, row["comment"], case, source="Cataract-1K"))
    return table
