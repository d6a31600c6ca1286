"""Cataract-101: videos/case_269.mp4 and three tables with semicolons: videos.csv, annotations.csv, phases.csv.

annotations.csv names the frames, counted from 0, at which phases start; a phase lasts until the next one, the last one to the end.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from ..annotations import file, folder, number, records, seconds
from ..dataset import DatasetError, Segment

PHASES = (
    "Incision",
    "Viscous agent injection",
    "Rhexis",
    "Hydrodissection",
    "Phacoemulsification",
    "Irrigation and aspiration",
    "Capsule polishing",
    "Lens implant setting-up",
    "Viscous agent removal",
    "Tonifying and antibiotics",
)


def read(root: Path) -> list[Segment]:
    """One segment for each row of annotations.csv. What lies before a video's first row has no label."""
    videos = folder(root, "videos")
    numbers = [row["Phase"] for row in records(root / "phases.csv", "Phase", "Meaning", separator=";")]
    if numbers != [str(phase + 1) for phase in range(len(PHASES))]:
        raise DatasetError(f"{root / 'phases.csv'}: its phases are {', '.join(numbers)}, not 1 to {len(PHASES)}")
    names = dict(zip(numbers, PHASES, strict=True))
    starts: dict[str, list[tuple[int, str]]] = {}
    annotations = root / "annotations.csv"
    for row in records(annotations, "VideoID", "FrameNo", "Phase", separator=";"):
        if row["Phase"] not in names:
            raise DatasetError(f"{annotations}: phase {row['Phase']} is none of {', '.join(names)}")
        starts.setdefault(row["VideoID"], []).append((number(row["FrameNo"], annotations), names[row["Phase"]]))
    table = []
    facts = root / "videos.csv"
    for row in records(facts, "VideoID", "Frames", "FPS", separator=";"):
        case, rate = row["VideoID"], seconds(row["FPS"], facts)
        video = str(file(videos / f"case_{case}.mp4"))
        if case not in starts:
            raise DatasetError(f"{annotations}: video {case} of videos.csv has no row")
        ends = (number(row["Frames"], facts), "")
        for (first, phase), (last, _) in pairwise([*sorted(starts.pop(case)), ends]):
            if last <= first:
                raise DatasetError(f"{annotations}: video {case}: the phase at frame {first} ends at frame {last}")
            table.append(Segment(video, first / rate, last / rate, phase, f"case_{case}", source="Cataract-101"))
    if starts:
        raise DatasetError(f"{facts}: no row for video {min(starts)} of annotations.csv")
    return table
