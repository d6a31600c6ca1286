"""Colonoscopic lesions (UCI 408): {Adenoma,Hyperplasic,Serrated}/NBI(36).mp4, WL(36).mp4: each lesion in two lights.

A name without a number, as WL.mp4, is a lesion of its own.
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import folder, matching
from ..dataset import Segment

CLASSES = ("Adenoma", "Hyperplasic", "Serrated")


def read(root: Path) -> list[Segment]:
    """One segment for each video, the whole of it; the subject is the lesion, which both lights show."""
    table = []
    for label in CLASSES:
        for match, path in matching(folder(root, label), r"(NBI|WL) ?(?:\((\d+)\))?\.mp4"):
            lesion = f"{label} {match[2] or 0}"
            table.append(Segment(str(path), None, None, label, lesion, source=f"Colonoscopic/{match[1]}"))
    return table
