"""AutoLaparo, task 1: videos/01.mp4 and labels/label_01.txt, a header and one row a second, phases counted from 1."""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, folder, labelled_frames, lines, matching, number
from ..dataset import DatasetError, Segment

PHASES = (
    "Preparation",
    "Dividing Ligament and Peritoneum",
    "Dividing Uterine Vessels and Ligament",
    "Transecting the Vagina",
    "Specimen Removal",
    "Suturing",
    "Washing",
)
LAST_TRAINING_VIDEO, LAST_VALIDATION_VIDEO = 10, 14


def read(root: Path) -> list[Segment]:
    """One segment for each run of a phase."""
    table = []
    videos = folder(root, "videos")
    for match, annotation in matching(folder(root, "labels"), r"label_(\d+)\.txt"):
        frames = []
        for row in lines(annotation, header=("Frame", "Phase")):
            phase = number(row[1], annotation)
            if not 1 <= phase <= len(PHASES):
                raise DatasetError(f"{annotation}: phase {phase} is not in 1 .. {len(PHASES)}")
            frames.append((number(row[0], annotation), PHASES[phase - 1]))
        video, name = str(file(videos / f"{match[1]}.mp4")), int(match[1])
        split = "train" if name <= LAST_TRAINING_VIDEO else "val" if name <= LAST_VALIDATION_VIDEO else "test"
        for start, end, phase in labelled_frames(frames, annotation, 1):
            table.append(Segment(video, start, end, phase, match[1], source="AutoLaparo", split=split))
    return table
