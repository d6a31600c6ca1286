"""LDPolypVideo: {TrainValid,Test}/Images/ID/*.jpg and Annotations/ID/*.txt, whose first line is the number of polyps.

Pictures of one folder are taken as one video at 25 frames a second, as the card says; no rate is published with them. Further
videos without boxes are not read.
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import file, folder, lines, natural, number, pictures, runs
from ..dataset import DatasetError, Segment

FRAMES_PER_SECOND = 25
PARTS = {"TrainValid": "train", "Test": "test"}


def read(root: Path) -> list[Segment]:
    """One segment for each run of pictures with polyps and without."""
    table = []
    for part, split in PARTS.items():
        videos, annotations = folder(root / part, "Images"), folder(root / part, "Annotations")
        for parent in sorted(videos.iterdir(), key=lambda path: natural(path.name)):
            if not parent.is_dir():
                continue
            labels = folder(annotations, parent.name)
            frames = [(place, _label(labels / f"{path.stem}.txt")) for place, path in enumerate(pictures(parent))]
            for start, end, label in runs(frames, FRAMES_PER_SECOND):
                source = f"LDPolypVideo/{part}"
                table.append(Segment(str(parent), start, end, label, parent.name, source=source, split=split))
    return table


def _label(path: Path) -> str:
    rows = lines(file(path))
    if not rows or len(rows[0]) != 1:
        raise DatasetError(f"{path}: its first line is not the number of polyps")
    return "polyp" if number(rows[0][0], path) else "no_polyp"
