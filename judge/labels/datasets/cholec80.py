"""Cholec80, phases: videos/video01.mp4 and phase_annotations/video01-phase.txt, one row for each of 25 frames a second."""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, folder, labelled_frames, lines, matching, number
from ..dataset import Segment

FRAMES_PER_SECOND = 25
LAST_TRAINING_VIDEO = 40


def read(root: Path) -> list[Segment]:
    """One segment for each run of a phase. Other files beside the videos, as video01-timestamp.txt, are not read."""
    table = []
    videos = folder(root, "videos")
    for match, annotation in matching(folder(root, "phase_annotations"), r"(video(\d+))-phase\.txt"):
        rows = lines(annotation, separator="\t", header=("Frame", "Phase"))
        frames = [(number(row[0], annotation), row[1]) for row in rows]
        split = "train" if int(match[2]) <= LAST_TRAINING_VIDEO else "test"
        video = str(file(videos / f"{match[1]}.mp4"))
        for start, end, phase in labelled_frames(frames, annotation, FRAMES_PER_SECOND):
            table.append(Segment(video, start, end, phase, match[1], source="Cholec80", split=split))
    return table
