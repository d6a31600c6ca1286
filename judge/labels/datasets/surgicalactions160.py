"""SurgicalActions160: 16 folders of ten clips, 01_abdominal_access/01_08.mp4.

Which operation a clip comes from is not published: the subject is the clip.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..annotations import matching, natural
from ..dataset import Segment


def read(root: Path) -> list[Segment]:
    """One segment for each clip, the whole of it; the label is its folder's name behind the number."""
    table = []
    parents = [path for path in root.iterdir() if path.is_dir() and re.fullmatch(r"\d\d_.+", path.name)]
    for parent in sorted(parents, key=lambda path: natural(path.name)):
        for match, path in matching(parent, r"(\d+_\d+)\.mp4"):
            table.append(Segment(str(path), None, None, parent.name[3:], match[1], source="SurgicalActions160"))
    return table
