"""JIGSAWS, gestures: {Suturing,Needle_Passing,Knot_Tying}/video/Suturing_B001_capture1.avi, transcriptions/Suturing_B001.txt.

Rows of a transcription are `start end gesture`, frames at 30 a second, both included. Two cameras film each trial.
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, folder, lines, matching, number
from ..dataset import DatasetError, Segment

FRAMES_PER_SECOND = 30
TASKS = ("Suturing", "Needle_Passing", "Knot_Tying")


def read(root: Path) -> list[Segment]:
    """One segment for each gesture and camera; the subject is the surgeon, B to I. Trials without a transcription are left out."""
    table = []
    for task in TASKS:
        parent = folder(root, task)
        videos = folder(parent, "video")
        for match, path in matching(folder(parent, "transcriptions"), rf"({task}_([B-I])\d{{3}})\.txt"):
            rows = lines(path)
            if any(len(row) != 3 for row in rows):
                raise DatasetError(f"{path}: not three columns, start, end and gesture")
            for camera in ("capture1", "capture2"):
                video = str(file(videos / f"{match[1]}_{camera}.avi"))
                for first, last, gesture in rows:
                    start = number(first, path) / FRAMES_PER_SECOND
                    end = (number(last, path) + 1) / FRAMES_PER_SECOND
                    table.append(Segment(video, start, end, gesture, match[2], source=f"JIGSAWS/{task}"))
    return table
