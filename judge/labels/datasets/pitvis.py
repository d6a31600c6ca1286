"""PitVis, steps: video_01.mp4 and annotations_01.csv, one row a second; steps are numbers from 1 to 14, as in its map_steps.csv."""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, labelled_frames, matching, number, records
from ..dataset import DatasetError, Segment

STEPS = (
    "nasal_corridor_creation",
    "anterior_sphenoidotomy",
    "septum_displacement",
    "sphenoid_sinus_clearance",
    "sellotomy",
    "durotomy",
    "tumour_excision",
    "haemostasis",
    "synthetic_graft_placement",
    "fat_graft_placement",
    "gasket_seal_construct",
    "dural_sealant",
    "nasal_packing",
    "debris_clearance",
)
# -1: the operation has not started or has ended, or the endoscope is out of the patient.
NONE, NO_STEP = -1, "no_step"
TEST = (2, 6, 12, 13, 24)


def read(root: Path) -> list[Segment]:
    """One segment for each run of a step, or of none."""
    table = []
    for match, annotation in matching(root, r"annotations_(\d+)\.csv"):
        frames = [
            (number(row["int_time"], annotation), _name(row["int_step"], annotation))
            for row in records(annotation, "int_time", "int_step")
        ]
        video, split = str(file(root / f"video_{match[1]}.mp4")), "test" if int(match[1]) in TEST else "train"
        for start, end, step in labelled_frames(frames, annotation, 1):
            table.append(Segment(video, start, end, step, f"video_{match[1]}", source="PitVis", split=split))
    return table


def _name(text: str, path: Path) -> str:
    step = number(text, path)
    if step == NONE:
        return NO_STEP
    if not 1 <= step <= len(STEPS):
        raise DatasetError(f"{path}: step {step} is neither {NONE} nor in 1 .. {len(STEPS)}")
    return STEPS[step - 1]
