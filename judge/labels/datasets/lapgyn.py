"""Laparoscopic gynaecology, the event set of ITEC (not LapGyn4): EVENT/{Train,Test}/{EVENT,Rest}/case_ID_EVENT_N.mp4.

`Rest` holds what does not show the event.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..annotations import folder, natural
from ..dataset import DatasetError, Segment

EVENTS = ("AbdominalAccess", "Bleeding", "Coag-Transection", "NeedlePassing")
REST = "Rest"


def read(root: Path) -> list[Segment]:
    """One segment for each clip, the whole of it; the label is the event, or `Rest`, and the source says of which event."""
    table = []
    for event in EVENTS:
        for part, split in (("Train", "train"), ("Test", "test")):
            for label in (event, REST):
                parent = folder(root / event / part, label)
                for path in sorted(parent.glob("*.mp4"), key=lambda path: natural(path.name)):
                    match = re.match(r"(case_\d+)_", path.name)
                    if not match:
                        raise DatasetError(f"{path}: its name does not begin like case_12_")
                    source = f"LapGyn events/{event}"
                    table.append(Segment(str(path), None, None, label, match[1], source=source, split=split))
    return table
