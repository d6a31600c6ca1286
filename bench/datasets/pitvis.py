"""PitVis, steps: video_01.mp4 and annotations_01.csv, one row a second; its map_steps.csv says what the numbers mean."""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, labelled_frames, matching, number, records
from ..dataset import Segment

TEST = (2, 6, 12, 13, 24)


def read(root: Path) -> list[Segment]:
    """One segment for each run of a step; the label is its number, -1 where there is none."""
    table = []
    for match, annotation in matching(root, r"annotations_(\d+)\.csv"):
        rows = [(row["int_time"], row["int_step"]) for row in records(annotation, "int_time", "int_step")]
        frames = [(number(second, annotation), str(number(step, annotation))) for second, step in rows]
        video, split = str(file(root / f"video_{match[1]}.mp4")), "test" if int(match[1]) in TEST else "train"
        for start, end, step in labelled_frames(frames, annotation, 1):
            table.append(Segment(video, start, end, step, f"video_{match[1]}", source="PitVis", split=split))
    return table
