"""SAR-RARP50, actions: {train1,train2,test}/video_01/video_left.avi, 60 frames a second, and action_continues.txt.

Rows are `start end label`, frames counted from 0, both included. Some operations are two folders, video_11_1 and video_11_2.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..annotations import file, folder, lines, natural, number, runs
from ..dataset import DatasetError, Segment

FRAMES_PER_SECOND = 60
DISCRETE_STEP = 6  # of action_discrete.txt, `frame,label`
ACTIONS = (
    "other",
    "picking-up the needle",
    "positioning the needle tip",
    "pushing the needle through the tissue",
    "pulling the needle out of the tissue",
    "tying a knot",
    "cutting the suture",
    "returning/dropping the needle",
)


def read(root: Path) -> list[Segment]:
    """One segment for each row; for each run of an action in action_discrete.txt, where action_continues.txt is missing."""
    table = []
    for part in ("train1", "train2", "test"):
        for parent in sorted(folder(root, part).glob("video_*"), key=lambda path: natural(path.name)):
            match = re.fullmatch(r"(video_\d+)(_\d+)?", parent.name)
            if not match:
                raise DatasetError(f"{parent}: its name is neither like video_01 nor like video_11_1")
            video, split = str(file(parent / "video_left.avi")), part.rstrip("12")
            for start, end, action in _actions(parent):
                table.append(Segment(video, start, end, action, match[1], source=f"SAR-RARP50/{part}", split=split))
    return table


def _actions(parent: Path) -> list[tuple[float, float, str]]:
    continues, discrete = parent / "action_continues.txt", parent / "action_discrete.txt"
    path = file(continues, discrete)
    rows = [[number(value, path) for value in row] for row in lines(path, separator="," if path == discrete else None)]
    for row in rows:
        if not 0 <= row[-1] < len(ACTIONS):
            raise DatasetError(f"{path}: action {row[-1]} is not in 0 .. {len(ACTIONS) - 1}")
    if path == discrete:
        return runs([(row[0], ACTIONS[row[1]]) for row in rows], FRAMES_PER_SECOND, step=DISCRETE_STEP)
    if any(len(row) != 3 for row in rows):
        raise DatasetError(f"{path}: not three columns, start, end and label")
    return [(row[0] / FRAMES_PER_SECOND, (row[1] + 1) / FRAMES_PER_SECOND, ACTIONS[row[2]]) for row in rows]
