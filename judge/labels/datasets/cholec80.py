"""Cholec80: videos/video01.mp4 and, beside them, phases and tools.

phase_annotations/video01-phase.txt has one row for each of 25 frames a second, tool_annotations/video01-tool.txt one a second,
whose columns are 0 or 1 for each tool.
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, folder, labelled_frames, lines, matching, number
from ..dataset import MANY, DatasetError, Segment

FRAMES_PER_SECOND = 25
LAST_TRAINING_VIDEO = 40
TOOLS = ("Grasper", "Bipolar", "Hook", "Scissors", "Clipper", "Irrigator", "SpecimenBag")


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


def read_tools(root: Path) -> list[Segment]:
    """One segment for each run of the same tools; the label is their names, joined by "|", "" for none."""
    table = []
    videos = folder(root, "videos")
    for match, annotation in matching(folder(root, "tool_annotations"), r"(video(\d+))-tool\.txt"):
        frames = []
        for row in lines(annotation, separator="\t", header=("Frame", *TOOLS)):
            shown = [number(value, annotation) for value in row[1:]]
            if len(shown) != len(TOOLS) or not {*shown} <= {0, 1}:
                raise DatasetError(
                    f"{annotation}: the row {row} is not a frame and 0 or 1 for each of {len(TOOLS)} tools"
                )
            frames.append(
                (number(row[0], annotation), MANY.join(t for t, is_there in zip(TOOLS, shown, strict=True) if is_there))
            )
        split = "train" if int(match[2]) <= LAST_TRAINING_VIDEO else "test"
        video = str(file(videos / f"{match[1]}.mp4"))
        for start, end, tools in labelled_frames(frames, annotation, FRAMES_PER_SECOND, step=FRAMES_PER_SECOND):
            table.append(Segment(video, start, end, tools, match[1], source="Cholec80", split=split))
    return table
