"""HyperKvasir, labelled videos: labeled-videos/{lower,upper}-gi-tract/CATEGORY/FINDING/NAME.avi.

There is no official split of the videos, and patients are not published: the subject is the video.
"""

from __future__ import annotations

from pathlib import Path

from ..annotations import folder
from ..dataset import Segment

TRACTS = {"lower-gi-tract": "lower", "upper-gi-tract": "upper"}


def read(root: Path) -> list[Segment]:
    """One segment for each video, the whole of it; the label is tract and finding, as in lower-polyps."""
    table = []
    parent = folder(root, "labeled-videos", ".")
    for tract, short in TRACTS.items():
        for path in sorted(folder(parent, tract).glob("*/*/*.avi")):
            label = f"{short}-{path.parent.name}"
            table.append(Segment(str(path), None, None, label, path.stem, source=f"HyperKvasir/{tract}"))
    return table
