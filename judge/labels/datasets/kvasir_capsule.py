"""Kvasir-Capsule: labelled frames of 43 videos; metadata.csv, labelled_videos/ID.mp4 and official_splits/split_{0,1}.csv.

Patients are not published: the subject is the video. Seven videos occur in both official splits.
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, frame_rate, number, records, runs
from ..dataset import Segment

SPLITS = {"split_0.csv": "train", "split_1.csv": "test"}


def read(root: Path) -> list[Segment]:
    """One segment for each run of consecutive frames, counted from 0, with one finding and in one split."""
    splits: dict[str, str] = {}
    for name, split in SPLITS.items():
        for row in records(root / "official_splits" / name, "filename", "label"):
            splits[row["filename"]] = split
    frames: dict[str, set[tuple[str, str, int]]] = {}
    path = root / "metadata.csv"
    for row in records(path, "filename", "video_id", "frame_number", "finding_class", separator=";"):
        # A frame has a row for each box around a finding.
        found = (row["finding_class"], splits.get(row["filename"], ""), number(row["frame_number"], path))
        frames.setdefault(row["video_id"], set()).add(found)
    table = []
    for name, labelled in sorted(frames.items()):
        video = file(*(root / parent / f"{name}.mp4" for parent in ("labelled_videos", "videos", ".")))
        rows = [(frame, (label, split)) for label, split, frame in sorted(labelled)]
        for start, end, (label, split) in sorted(runs(rows, frame_rate(video))):
            table.append(Segment(str(video), start, end, label, name, source="Kvasir-Capsule", split=split))
    return table
