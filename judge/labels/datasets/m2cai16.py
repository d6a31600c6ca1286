"""M2CAI16-workflow: train_dataset/workflow_video_01.{mp4,txt}, test_dataset/test_workflow_video_01.{mp4,txt}, 25 rows a second."""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, folder, labelled_frames, lines, matching, number
from ..dataset import Segment

FRAMES_PER_SECOND = 25


def read(root: Path) -> list[Segment]:
    """One segment for each run of a phase. The sidecars ..._timestamp.txt and ..._pred.txt are not annotations."""
    table = []
    for split, name in (("train", r"(workflow_video_\d+)\.txt"), ("test", r"(test_workflow_video_\d+)\.txt")):
        parent = folder(root, f"{split}_dataset")
        for match, annotation in matching(parent, name):
            rows = lines(annotation, separator="\t", header=("Frame", "Phase"))
            frames = [(number(row[0], annotation), row[1]) for row in rows]
            video = str(file(parent / f"{match[1]}.mp4"))
            for start, end, phase in labelled_frames(frames, annotation, FRAMES_PER_SECOND):
                table.append(Segment(video, start, end, phase, match[1], source="M2CAI16", split=split))
    return table
