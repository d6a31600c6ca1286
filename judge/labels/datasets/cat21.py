"""cat-21 (21 cataract operations): a table `frame,phase` for each video, with or without a header, phases in German.

The videos are case_01_training.mp4 and case_18_validation.mp4, or case_01.mp4; they and their tables of the same name lie side by
side, or in the folders videos and labels.
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, frame_rate, labelled_frames, lines, matching, number
from ..dataset import DatasetError, Segment

LAST_TRAINING_VIDEO = 17


def read(root: Path) -> list[Segment]:
    """One segment for each run of a phase. `not_initialized`, where nothing was labelled, is a label like the others here."""
    table = []
    labels = root / "labels" if (root / "labels").is_dir() else root
    videos = root / "videos" if (root / "videos").is_dir() else root
    for match, annotation in matching(labels, r"(case_(\d+))(?:_(training|validation))?\.csv"):
        rows = lines(annotation, separator=",")
        if rows and not rows[0][0].lstrip("-").isdecimal():
            rows = rows[1:]
        if any(len(row) < 2 for row in rows):
            raise DatasetError(f"{annotation}: not two columns, frame and phase")
        frames = [(number(row[0], annotation), row[1]) for row in rows]
        video = file(videos / f"{annotation.stem}.mp4")
        is_training = match[3] == "training" if match[3] else int(match[2]) <= LAST_TRAINING_VIDEO
        for start, end, phase in labelled_frames(frames, annotation, frame_rate(video)):
            split = "train" if is_training else "test"
            table.append(Segment(str(video), start, end, phase, match[1], source="cat-21", split=split))
    return table
